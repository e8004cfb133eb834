"""Write, audit, publish: a feature on a branch of its table, which readers do not see until it is published.

    main   -- v1 ---------------------------- v2      readers
                \\                             /
    its branch   `-- computed -- checked -----'       publish: one commit; drop: as if it had never been

Columns that are added come with the rows that have them: in the commit that publishes. Two features staged from the
same version cannot both be published: the second would undo the first, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.update import (
    SetCurrentSchemaUpdate,
    SetPropertiesUpdate,
    TableUpdate,
)

from reqdedup.schema import Column
from reqdedup.storage.features.backfill import BUCKETS, Backfill, FeatureReport
from reqdedup.storage.features.checks import Ranges, feature_checks
from reqdedup.storage.features.values import Compute
from reqdedup.storage.features.versions import check_tag_name
from reqdedup.storage.iceberg.evolve import MAIN, OWN_REFS, commit_refs, move_ref, ref_snapshot, remove_ref
from reqdedup.storage.join.bucket_join import BucketJoin, bucket_join
from reqdedup.storage.measure.checks import CheckResult
from reqdedup.storage.read.feature_table import feature_properties, feature_schema

STAGED = OWN_REFS + "staged-"
"""Prefix of the branches of staged features."""

BASE_SNAPSHOT = "reqdedup.base-snapshot"
"""Snapshot property: the version that a staged one was made from."""


def stage_request_feature(
    main_table: Table,
    side_table: Table,
    compute: Compute,
    *,
    name: str,
    inputs: Sequence[str] | None = None,
    users: np.ndarray | pa.Array | None = None,
    columns: Sequence[Column] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StagedFeature:
    """Do what `add_request_feature` does, on the branch `reqdedup-staged-<name>` of `side_table`.

    What was staged under this name before, and neither published nor dropped, is replaced. The other parameters and
    errors are those of `add_request_feature`.
    """
    side_table.refresh()
    branch = _branch(name)
    backfill = Backfill(main_table, side_table, compute, inputs=inputs, users=users, columns=columns)
    base = backfill.base_snapshot_id
    if base is None:
        base = backfill.base_snapshot_id = _empty_version(side_table)
    report = backfill.run(
        branch=branch,
        before_commit=lambda table: _branch_off(table, branch, base),
        properties={BASE_SNAPSHOT: str(base)},
        progress=progress,
    )
    return StagedFeature(main_table, side_table, name, report=report)


def staged_feature(main_table: Table, side_table: Table, name: str) -> StagedFeature:
    """What was staged under this name, maybe by another process. Raises ValueError if nothing is."""
    side_table.refresh()
    return StagedFeature(main_table, side_table, name)


def staged_features(side_table: Table) -> list[str]:
    """Names under which something is staged in the table as loaded."""
    return sorted(ref.removeprefix(STAGED) for ref in side_table.metadata.refs if ref.startswith(STAGED))


class StagedFeature:
    """A version of a feature table that readers do not see yet.

    snapshot_id: the version.  base_snapshot_id: what it was made from.
    report: of the backfill, if this process ran it.
    """

    def __init__(self, main_table: Table, side_table: Table, name: str, *, report: FeatureReport | None = None) -> None:
        self.main_table, self.side_table, self.name, self.report = main_table, side_table, name, report
        self._branch = _branch(name)
        head = report.snapshot_id if report is not None else ref_snapshot(side_table, self._branch)
        snapshot = side_table.snapshot_by_id(head) if head is not None else None
        base = snapshot.summary.get(BASE_SNAPSHOT) if snapshot is not None and snapshot.summary is not None else None
        # A killed run may leave the branch at a version that was published long ago: nothing is staged there either.
        if head is None or snapshot is None or base is None or head == ref_snapshot(side_table, MAIN):
            raise ValueError(
                f"{'.'.join(side_table.name())}: a feature staged as {name!r} required, found "
                f"{staged_features(side_table) or 'none'}; stage it with stage_request_feature"
            )
        self.snapshot_id, self.base_snapshot_id = head, int(base)
        buckets = snapshot.summary.get(BUCKETS) or "all"  # type: ignore[union-attr]
        self._buckets = None if buckets == "all" else [int(bucket) for bucket in buckets.split(",")]
        self._schema_id = snapshot.schema_id
        self.checks: dict[str, CheckResult] | None = None

    def join(self, *, how: Literal["inner", "left"] = "inner", columns: Sequence[str] | None = None) -> BucketJoin:
        """The main table with the staged features, as `bucket_join` will read them once they are published."""
        return bucket_join(
            self.main_table, self.side_table, how=how, columns=columns, right_snapshot_id=self.snapshot_id
        )

    def check(self, *, ranges: Ranges | None = None) -> dict[str, CheckResult]:
        """Check the staged rows against the main table as it is now; see `feature_checks`.

        If it was staged for some users, their buckets must be complete.
        """
        self.main_table.refresh()
        self.checks = feature_checks(
            self.main_table, self.side_table, self.snapshot_id, buckets=self._buckets, ranges=ranges
        )
        return self.checks

    def publish(self, *, tag: str | None = None) -> int:
        """Make the staged version the one that readers see, in one commit; its snapshot id.

        It is checked first if that has not been done.  tag: for this version, in the same commit.
        Raises ValueError if a check has failed or the tag's name is one of ours, ConflictError if another version has
        been published since this one was staged, or if it was dropped or staged anew. Then nothing changed.
        """
        if tag is not None:
            check_tag_name(tag)
        failed = [f"{name}: {result.detail}" for name, result in (self.checks or self.check()).items() if not result.ok]
        if failed:
            raise ValueError(
                f"{'.'.join(self.side_table.name())}: every check passed required before {self.name!r} is published, "
                f"found {'; '.join(failed)}. drop() it, or stage it again"
            )
        self.side_table.refresh()
        gone = ref_snapshot(self.side_table, self._branch) is None
        if gone and ref_snapshot(self.side_table, MAIN) == self.snapshot_id:
            return self.snapshot_id  # by a run that was killed before it could say so
        schema = feature_schema(self.side_table, self.snapshot_id)
        updates: list[TableUpdate] = [SetPropertiesUpdate(updates=feature_properties(schema))]
        if self._schema_id is not None:
            updates.append(SetCurrentSchemaUpdate(schema_id=self._schema_id))  # type: ignore[call-arg]
        updates += [move_ref(MAIN, self.snapshot_id), remove_ref(self._branch)]
        expected: dict[str, int | None] = {MAIN: self.base_snapshot_id, self._branch: self.snapshot_id}
        if tag is not None:
            expected[tag] = None
            updates.append(move_ref(tag, self.snapshot_id, SnapshotRefType.TAG))
        commit_refs(self.side_table, updates, expected=expected)
        return self.snapshot_id

    def drop(self) -> None:
        """Forget it; its files go when snapshots expire. Raises ConflictError if it is no longer there."""
        remove = remove_ref(self._branch)
        commit_refs(self.side_table, [remove], expected={self._branch: self.snapshot_id})


def _empty_version(table: Table) -> int:
    """A first version without rows: Iceberg has no branches of a table that has no version."""
    with table.transaction() as transaction, transaction.update_snapshot().fast_append():
        pass
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return snapshot.snapshot_id


def _branch_off(table: Table, branch: str, base_snapshot_id: int) -> None:
    """Put the branch at the base, whatever it was at."""
    head = ref_snapshot(table.refresh(), branch)
    commit_refs(table, [move_ref(branch, base_snapshot_id)], expected={MAIN: base_snapshot_id, branch: head})


def _branch(name: str) -> str:
    if not name.strip():
        raise ValueError("stage: a name required, found an empty one; it names the branch")
    return STAGED + name
