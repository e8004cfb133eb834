"""Many features folded into the main table in one pass: their columns become its own.

    main      -- s -------------------------------------- s'       readers: s, then s', nothing between
               \\                                         /
    promoting   `-- buckets 0-31 -- 32-63 -- ... -- all --'         one commit per group, one that publishes

Every bucket is joined with its features, written by the writer in the layout's form, and committed to a branch, after
its old columns have been found unchanged by checksum. What a killed run has committed there is not done again. The last
commit moves main to the branch and shows the new columns: readers see all of it or nothing. It asks that main is still
at `s`; an append meanwhile has requests without these features, so it is refused instead of merged.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Summary
from pyiceberg.table.update import SetPropertiesUpdate

from reqdedup.distributed import Engine, engine_for
from reqdedup.schema import Column, EngagementSchema
from reqdedup.storage.features.promoted_units import Promoting, UnitTask
from reqdedup.storage.iceberg.changes import check_no_columns_added, check_one_spec
from reqdedup.storage.iceberg.datafile import FileSettings
from reqdedup.storage.iceberg.encodings import CHOICES_PROPERTY, SAMPLE_ROWS, to_json
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.evolve import (
    MAIN,
    OWN_REFS,
    add_columns,
    commit_refs,
    move_ref,
    ref_snapshot,
    remove_ref,
)
from reqdedup.storage.iceberg.layout import (
    SCHEMA_PROPERTY,
    table_layout,
    table_properties,
    table_schema,
)
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.iceberg.reference import PortableTable
from reqdedup.storage.iceberg.same_requests import PLAN
from reqdedup.storage.iceberg.written import Written
from reqdedup.storage.join.bucket_join import BucketJoin, bucket_join
from reqdedup.storage.measure.checks import ContentChecksum
from reqdedup.storage.read.feature_table import feature_schema
from reqdedup.storage.tasks import GroupCommits, Part, groups_of
from reqdedup.storage.write.form import in_form

BRANCH = OWN_REFS + "promoting"
UNIT, BASE = "reqdedup.promote-unit", "reqdedup.promote-base"
"""Snapshot properties of the branch beside PLAN: the parts that this commit did, and the snapshot it began from."""

CHECKSUM = "reqdedup.promote-checksum"
"""Snapshot property: rows of these parts, and the checksum of their old columns."""

MISSING_ERROR, MISSING_NULL = "error", "null"


@dataclass(frozen=True, kw_only=True)
class PromoteReport:
    """What a promotion did.

    columns: added.  rows: of the main table.  buckets: written by this run; resumed: by runs before it.
    bytes: of the main table's files afterwards; old_bytes: before.  added_bytes: of the new columns, which is what any
    store has to write; the rest is the price of Iceberg having no column families.
    checksum: of the old columns, unchanged.  snapshot_id: that readers see now.
    """

    columns: tuple[str, ...]
    rows: int
    buckets: int
    resumed: int
    bytes: int
    old_bytes: int
    added_bytes: int
    checksum: ContentChecksum
    seconds: float
    snapshot_id: int


def promote(
    main_table: Table,
    side_tables: Sequence[Table],
    *,
    columns: Sequence[str] | None = None,
    missing: Literal["error", "null"] = "error",
    progress: Callable[[int, int], None] | None = None,
    spill_dir: str | Path | None = None,
    engine: str | Engine | None = None,
) -> PromoteReport:
    """Make features of `side_tables` columns of `main_table`, all of them in one switch.

    columns: of the feature tables, all by default.  missing: "error" if a request has no row in a feature table, or
        "null": its scalars become null and its vectors zeros.
    progress: called with parts done and parts in total.  spill_dir: for temporary files, of one bucket at a time.
    engine: where parts are written: "inline", "processes:N"; see `reqdedup.distributed`.
    A sequence must have the length of the history, as all sequences of an engagement table, and so cannot be missing.
    The feature tables stay as they are. A run that was killed is resumed by the same call; one that had already
    published does nothing. Raises ValueError for tables that do not fit, for names that the main table has, and for a
    request without features; IntegrityError if the old columns come out different, ConflictError if another writer
    changed the main table meanwhile: then readers saw nothing, and the next call starts again.
    """
    started = time.monotonic()
    if missing not in (MISSING_ERROR, MISSING_NULL):
        raise ValueError(f"promote: missing must be 'error' or 'null', found {missing!r}")
    for table in (main_table, *side_tables):
        table.refresh()
    run = _Promotion(main_table, side_tables, columns, missing)
    published = run.published()
    if published is None:
        resumed = run.resume()
        run.write(resumed, spill_dir, engine, progress)
        published = run.publish()
    else:
        resumed = set(range(run.num_units))
    return run.report(published, resumed, time.monotonic() - started)


class _Promotion:
    """One promotion: what it adds, the branch it is on, and the parts that are done. A part is a bucket, or a few."""

    def __init__(self, main: Table, sides: Sequence[Table], columns: Sequence[str] | None, missing: str) -> None:
        self.main, self.missing, self.layout = main, missing, table_layout(main)
        self.name = ".".join(main.name())
        self.base = ref_snapshot(main, MAIN)
        chosen = {tuple(side.name()): _chosen(side, columns) for side in sides}
        found = [column for of_side in chosen.values() for column in of_side]
        unknown = sorted(set(columns or ()) - {column.name for column in found})
        if unknown or not found:
            raise ValueError(f"promote: features required, found none of the name {', '.join(unknown) or 'any'}")
        pinned = [[".".join(s.name()), str(s.metadata.table_uuid), ref_snapshot(s, MAIN)] for s in sides]
        plan = {"features": pinned, "columns": [column.name for column in found], "missing": missing}
        self.plan = json.dumps(plan, separators=(",", ":"))
        self.added = tuple(column if column.is_blob else _as_filled(column, missing) for column in found)
        self.sides = [(side, [column.name for column in chosen[tuple(side.name())]]) for side in sides]
        self.num_units = 0

    def published(self) -> int | None:
        """The newest snapshot of an equal promotion that readers see already; else checks that there is room for it."""
        snapshot = self.main.current_snapshot()
        while snapshot is not None and snapshot.summary is not None:
            if snapshot.summary.get(PLAN) == self.plan:
                self.old_schema = table_schema(self.main, int(snapshot.summary.get(BASE) or 0))
                self.num_units = int((snapshot.summary.get(UNIT) or "0/0").partition("/")[2])
                return snapshot.snapshot_id
            parent = snapshot.parent_snapshot_id
            snapshot = self.main.snapshot_by_id(parent) if parent is not None else None
        if self.base is None:
            raise ValueError(f"{self.name}: rows required, found an empty table; write it first")
        self.old_schema = table_schema(self.main)
        check_one_spec(self.main, "a promotion")
        check_no_columns_added(self.main, self.old_schema.names, "promote features into it")
        joined: Table | BucketJoin = self.main
        for side, names in self.sides:
            joined = bucket_join(joined, side, how="inner" if self.missing == MISSING_ERROR else "left", columns=names)
        assert isinstance(joined, BucketJoin)
        self.join, self.num_units = joined, joined.num_buckets
        self.schema = EngagementSchema((*self.old_schema.columns, *self.added))
        return None

    def resume(self) -> set[int]:
        """Make the branch this promotion's; the parts that it holds already."""
        settings = FileSettings(self.layout, self.schema, self.main.properties)
        settings.decide(self._first_rows())  # once for all parts
        properties = table_properties(self.schema, self.layout)
        if settings.choices:
            properties[CHOICES_PROPERTY] = to_json(settings.choices)
        self.updates = (*add_columns(self.main, self.added, self.layout), SetPropertiesUpdate(updates=properties))
        head = ref_snapshot(self.main.refresh(), BRANCH)
        parts = list(self._parts(head))
        done = {int(unit) for part in parts for unit in (part.get(UNIT) or "").partition("/")[0].split(",")}
        if parts and all(part.get(BASE) == str(self.base) for part in parts):
            return done
        assert self.base is not None
        commit_refs(self.main, [move_ref(BRANCH, self.base)], expected={MAIN: self.base, BRANCH: head})
        return set()

    def _first_rows(self) -> pa.Table:
        """Rows by which to choose the encodings of the new columns."""
        first: list[pa.Table] = []
        for unit in range(self.num_units):
            for batch in self.join.stream(unit, self.num_units, self.schema.names):
                first.append(in_form(batch, self.layout, self.schema))
                if sum(len(rows) for rows in first) >= SAMPLE_ROWS:
                    return pa.concat_tables(first)
        return pa.concat_tables(first) if first else pa.table({})

    def write(
        self,
        resumed: set[int],
        spill_dir: str | Path | None,
        engine: str | Engine | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Write the parts that are left with their features, and commit them to the branch in groups."""
        by_unit: dict[int, list[DataFile]] = defaultdict(list)
        for file in self._files(self.base):
            by_unit[file.partition[0] % self.num_units].append(file)
        parts = []
        for unit, old in sorted(by_unit.items()):
            paths, num_rows = tuple(file.file_path for file in old), sum(file.record_count for file in old)
            task = UnitTask(unit=unit, paths=paths, num_rows=num_rows)
            parts += [Part(task, tuple(old), num_rows)] if unit not in resumed else []
        work = Promoting(
            table=PortableTable(self.main),
            join=self.join,
            schema=self.schema,
            old_schema=self.old_schema,
            updates=self.updates,
            spill_dir=spill_dir,
        )
        num_bytes = sum(part.num_bytes for part in parts)
        chosen = engine_for(engine, work, num_tasks=len(parts), num_bytes=num_bytes)
        done = itertools.count(self.num_units - len(parts))

        def report() -> None:
            if progress is not None:
                progress(next(done), self.num_units)

        report()
        commits = GroupCommits(self.main, self.schema, self.updates, properties=self._properties, branch=BRANCH)
        for landed in commits.run(work, groups_of(parts), chosen, progress=report):
            if landed.stale:
                raise ConflictError(
                    f"{self.name}: the branch {BRANCH} left alone by others required, found its files replaced; "
                    "nothing was published. Run it again when the other promotion is done"
                )

    def _properties(self, together: Sequence[tuple[Part, Written]]) -> dict[str, str]:
        """Of the snapshot that adds these parts."""
        checksum = sum((written.checksum for _, written in together), ContentChecksum())
        return {
            PLAN: self.plan,
            UNIT: f"{','.join(str(part.task.unit) for part, _ in together)}/{self.num_units}",
            BASE: str(self.base),
            CHECKSUM: f"{checksum.rows}:{checksum.checksum:x}",
            SCHEMA_PROPERTY: self.schema.to_json(),
        }

    def publish(self) -> int:
        """Show the branch and its columns to readers, in one commit; the snapshot that they see."""
        head = ref_snapshot(self.main.refresh(), BRANCH)
        assert head is not None
        updates = [*self.updates, move_ref(MAIN, head), remove_ref(BRANCH)]
        commit_refs(self.main, updates, expected={MAIN: self.base, BRANCH: head})
        return head

    def report(self, snapshot_id: int, resumed: set[int], seconds: float) -> PromoteReport:
        parts = list(self._parts(snapshot_id))
        base = int(parts[0].get(BASE) or 0) if parts else self.base
        sums = [(part.get(CHECKSUM) or "0:0").split(":") for part in parts]
        rows = sum(int(num_rows) for num_rows, _ in sums)
        old, new = self._files(base), self._files(snapshot_id)
        names = [column.name for column in self.added]
        ids = {field.field_id for field in self.main.schema().fields if field.name in names}
        return PromoteReport(
            columns=tuple(names),
            rows=rows,
            buckets=self.num_units - len(resumed),
            resumed=len(resumed),
            bytes=sum(file.file_size_in_bytes for file in new),
            old_bytes=sum(file.file_size_in_bytes for file in old),
            added_bytes=sum(size for file in new for id_, size in file.column_sizes.items() if id_ in ids),
            checksum=ContentChecksum(rows, sum(int(checksum, 16) for _, checksum in sums) % 2**64),
            seconds=seconds,
            snapshot_id=snapshot_id,
        )

    def _parts(self, snapshot_id: int | None) -> Iterator[Summary]:
        """Summaries of this promotion's commits that lead to a snapshot, newest first."""
        snapshot = self.main.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
        while snapshot is not None and snapshot.summary is not None and snapshot.summary.get(PLAN) == self.plan:
            yield snapshot.summary
            parent = snapshot.parent_snapshot_id
            snapshot = self.main.snapshot_by_id(parent) if parent is not None else None

    def _files(self, snapshot_id: int | None) -> list[DataFile]:
        """Data files of a snapshot."""
        if snapshot_id is None or self.main.snapshot_by_id(snapshot_id) is None:
            return []
        return data_files(self.main, snapshot_id)


def _chosen(side: Table, columns: Sequence[str] | None) -> list[Column]:
    features = feature_schema(side).features
    return [column for column in features if columns is None or column.name in columns]


def _as_filled(column: Column, missing: str) -> Column:
    return replace(column, nullable=True) if missing == MISSING_NULL else column
