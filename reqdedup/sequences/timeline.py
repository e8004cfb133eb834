"""The timeline `user_events`: read by version and bucket, and written in one commit.

    main                          v2 ------- v2 -------   readers
    tag reqdedup-timeline-v1  v1                          requests of before a correction
    branch reqdedup-timeline-v3              v3           staged, seen by nobody until it is published

A request says `(user_id, history_end, timeline_version)`; the version leads to a snapshot, and there the user's events
before `history_end` are what the request saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.ranges import ranges
from reqdedup.sequences.columns import conform
from reqdedup.sequences.definition import ARRIVAL_TS, USER, SequenceDefinition
from reqdedup.sequences.tables import (
    INDEX,
    TIMELINE_ENCODINGS,
    TimelineState,
    arrow_schema,
    load_timeline,
    log_of,
    num_buckets_of,
    state_of,
)
from reqdedup.storage.iceberg.evolve import OWN_REFS
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.iceberg.manifests import data_files
from reqdedup.storage.iceberg.row_files import RowFiles

VERSION_REF = OWN_REFS + "timeline-v"
"""Prefix of the tags of earlier versions, and of the branches of staged ones."""


class Timeline:
    """One version of a timeline, as of one snapshot. num_buckets: of its users."""

    def __init__(self, table: Table, snapshot_id: int | None, state: TimelineState) -> None:
        self.table, self.snapshot_id, self.state = table, snapshot_id, state
        self.log = log_of(table)
        self.num_buckets = num_buckets_of(table)
        self.schema = arrow_schema(table)

    @cached_property
    def files(self) -> list[DataFile]:
        """Of the snapshot. Raises ValueError if it has expired meanwhile."""
        if self.snapshot_id is None:
            return []
        if self.table.snapshot_by_id(self.snapshot_id) is None:
            raise ValueError(
                f"{'.'.join(self.table.name())}: snapshot {self.snapshot_id} required, found it expired; open the "
                "timeline again"
            )
        return data_files(self.table, self.snapshot_id)

    @property
    def definitions(self) -> list[SequenceDefinition]:
        return self.state.parsed()

    def definition(self, name: str) -> SequenceDefinition:
        """Raises ValueError if the timeline has no sequence of this name."""
        for one in self.definitions:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.definitions)
        raise ValueError(f"timeline: a sequence of {known} required, found {name!r}; publish it and run a backfill")

    def bucket_files(self, bucket: int) -> list[DataFile]:
        return [file for file in self.files if file.partition[0] == bucket]

    def read(self, bucket: int, columns: Sequence[str]) -> pa.Table:
        """The bucket's events in the order of (user_id, timeline_index); these columns and the two."""
        return self.read_files(self.bucket_files(bucket), columns)

    def read_files(self, files: Iterable[DataFile], columns: Sequence[str]) -> pa.Table:
        """Of some files of a bucket, as of `read`."""
        names = list(dict.fromkeys([USER, INDEX, *columns]))
        tables = [self.read_file(file, names) for file in sorted(files, key=self._first_arrival)]
        if not tables:
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        whole = pa.concat_tables(tables).combine_chunks()
        return whole if len(tables) == 1 else whole.take(pa.array(order_of(whole)))

    def _first_arrival(self, file: DataFile) -> bytes:
        field = self.table.schema().find_field(ARRIVAL_TS).field_id
        return (file.lower_bounds or {}).get(field, b"")[::-1]  # of little-endian times after 1970, that sort as bytes

    def read_file(self, file: DataFile, columns: Sequence[str]) -> pa.Table:
        """These columns of one file; null where it has none."""
        with self.table.io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
            has = [name for name in columns if name in parquet.schema_arrow.names]
            found = parquet.read(has, use_threads=False)
        made = [
            found.column(name).cast(self.schema.field(name).type)
            if name in has
            else pa.nulls(len(found), self.schema.field(name).type)
            for name in columns
        ]
        return pa.table(made, schema=pa.schema([self.schema.field(name) for name in columns]))


def open_timeline(catalog: Catalog, namespace: str, version: int | None = None) -> Timeline:
    """The timeline as readers see it, or one of its earlier versions, or a staged one.

    Raises ValueError if there is no timeline or no such version, or one that was not finished.
    """
    table = load_timeline(catalog, namespace)
    state = state_of(table)
    if version is None or version == state.version:
        current = table.current_snapshot()
        return Timeline(table, current.snapshot_id if current is not None else None, state)
    ref = table.metadata.refs.get(f"{VERSION_REF}{version}")
    if ref is None:
        raise ValueError(
            f"{namespace}.user_events: a version of the timeline required ({', '.join(map(str, versions(table)))}), "
            f"found {version}"
        )
    state_then = state_of(table, version, ref.snapshot_id)
    if state_then.version != version > state.version:
        raise ValueError(f"{namespace}.user_events: version {version} was not finished; run the backfill again")
    if state_then.version != version:
        raise ValueError(
            f"{namespace}.user_events: what version {version} holds required, found it said nowhere: its last snapshot "
            "is of a deletion or another engine, and an earlier reqdedup published the next; a backfill with its "
            "definitions makes it again, under a new number"
        )
    return Timeline(table, ref.snapshot_id, state_then)


def versions(table: Table) -> list[int]:
    """Versions that can be read: the current one, and those with a tag or branch."""
    kept = [int(ref.removeprefix(VERSION_REF)) for ref in table.metadata.refs if ref.startswith(VERSION_REF)]
    return sorted({state_of(table).version, *kept})


def write_rows(files: RowFiles, rows: pl.DataFrame, num_buckets: int) -> None:
    """Write rows in the order of (user_id, timeline_index) into a file for each bucket and month of arrival."""
    if not rows.height:
        return
    wanted = arrow_schema(files.table)
    bucket_T = buckets_of(rows[USER].to_numpy(), num_buckets)
    month_T = rows.select((pl.col(ARRIVAL_TS).dt.year() - 1970) * 12 + pl.col(ARRIVAL_TS).dt.month() - 1)
    part_T = bucket_T.astype(np.int64) * 100_000 + month_T.to_series().to_numpy()
    order = np.argsort(part_T, kind="stable")
    starts = np.flatnonzero(np.diff(part_T[order], prepend=-1))
    table = conform(rows, wanted).take(pa.array(order))
    for start, end in zip(starts, [*starts[1:], len(order)]):
        bucket, month = divmod(int(part_T[order[start]]), 100_000)
        files.write([bucket, month], table.slice(start, end - start))


def row_files(table: Table) -> RowFiles:
    return RowFiles(table, TIMELINE_ENCODINGS)


def staged_ref(version: int) -> str:
    return f"{VERSION_REF}{version}"


def order_of(table: pa.Table) -> np.ndarray:
    """Rows in the order of (user_id, timeline_index), cheap where files follow one another in time: then a user's rows
    of a file are one run, and runs are put in order instead of rows.

    Arrow takes rows in runs at half of what copying each run costs.
    """
    user_T, index_T = table.column(USER).to_numpy(), table.column(INDEX).to_numpy()
    is_start_T = np.ones(len(user_T), bool)
    is_start_T[1:] = (user_T[1:] != user_T[:-1]) | (index_T[1:] < index_T[:-1])
    start_N = np.flatnonzero(is_start_T)
    length_N = np.diff(start_N, append=len(user_T))
    order_N = np.argsort(user_T[start_N], kind="stable")
    first_N, last_N = start_N[order_N], start_N[order_N] + length_N[order_N] - 1
    is_same = user_T[first_N[1:]] == user_T[first_N[:-1]]
    if (index_T[first_N[1:]] < index_T[last_N[:-1]])[is_same].any():
        return np.lexsort((index_T, user_T))
    return ranges(first_N, length_N[order_N])


def rank_steps(user_T: np.ndarray, rank_T: np.ndarray) -> np.ndarray:
    """By how much each event raises the rank column of a sequence, [T] int64: 1 if it is of the sequence, else 0.

    user_T: users of the events, a user's side by side in the order of the timeline.  rank_T: their ranks, which begin
    from 0 for each user.
    """
    step_T = np.diff(rank_T.astype(np.int64, copy=False), prepend=0)
    first_U = run_starts([user_T])
    step_T[first_U] = rank_T[first_U]
    return step_T


def each_bucket(timeline: Timeline, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The buckets that have events, one after the other."""
    for bucket in sorted({int(file.partition[0]) for file in timeline.files}):
        yield bucket, timeline.read(bucket, columns)
