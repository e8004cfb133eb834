"""Writing a table: batches of any size and order in, the layout's physical form out, one atomic commit.

    arrive -> spill (disk, by partition) -> arrange (one row group at a time) -> data files -> verify -> commit

Peak memory is the rows of one bucket plus the blobs of one row group, not the log; the spill takes the deduplicated
log once on disk. Nothing is visible before the commit; when anything fails before it, the files written so far are
deleted and the table is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.update import SetPropertiesUpdate, TableUpdate

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup import encoding
from reqdedup.dedup.streams import REQUEST_KEY, key_columns
from reqdedup.schema import REQUEST_TS, EngagementSchema
from reqdedup.storage.iceberg.changes import check_one_spec
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.datafile import DAY_MICROSECONDS
from reqdedup.storage.iceberg.encodings import ENOUGH_ROWS
from reqdedup.storage.iceberg.layout import Layout, buckets_of, table_buckets, table_layout, table_schema
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.write.arrange import RELEASE_BYTES, DealRows, in_arrival_order, in_random_order, in_request_order
from reqdedup.storage.write.form import fat_rows, in_form
from reqdedup.storage.write.in_order import InOrder, row_groups_in_order
from reqdedup.storage.write.spill import Spill

PIECE_BYTES = 32 * 2**20
"""Shuffled rows are gathered in pieces of about this many bytes."""


@dataclass(frozen=True)
class WriteProgress:
    """How far a write is. phase: spill, write, verify or commit.  rows_total: None while the log is still arriving."""

    phase: str
    rows_done: int
    rows_total: int | None
    seconds: float

    @property
    def done(self) -> int:
        return self.rows_done

    @property
    def total(self) -> int | None:
        return self.rows_total

    def __str__(self) -> str:
        of = (
            f" of {self.rows_total:,} ({100 * self.rows_done / max(self.rows_total, 1):.0f}%)"
            if self.rows_total
            else ""
        )
        return f"{self.phase}: {self.rows_done:,}{of} rows, {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """What a write did.

    rows, requests, users: written.  files, row_groups, bytes: of the new data files.
    spill_bytes: temporary disk space that was needed.  snapshot_id: of the commit; None if there was nothing to commit.
    """

    rows: int
    requests: int
    users: int
    files: int
    row_groups: int
    bytes: int
    spill_bytes: int
    seconds: float
    snapshot_id: int | None


@dataclass(frozen=True)
class Counts:
    """What has been written, of a whole table or so far."""

    rows: int = 0
    requests: int = 0
    users: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.rows + other.rows, self.requests + other.requests, self.users + other.users)


def check_options(table: Table, layout: Layout | None, mode: str) -> None:
    """Raise ValueError for a layout that is not the table's, another mode, and an append beside another spec."""
    own_layout = table_layout(table)
    if layout is not None and layout is not own_layout:
        raise ValueError(
            f"{'.'.join(table.name())}: layout {own_layout.name} required by the table, found {layout.name}; "
            "create a table of that layout, or replace this one by it (replace_table)"
        )
    if mode not in ("replace", "append"):
        raise ValueError(f"mode must be 'replace' or 'append', found {mode!r}")
    if mode == "append":
        check_one_spec(table, "an append")


def lead_of(num_rows: Sequence[int]) -> int:
    """Number of the partition by which encodings are chosen: the first with enough rows, else the one with most."""
    enough = (number for number, rows in enumerate(num_rows) if rows >= ENOUGH_ROWS)
    return next(enough, max(range(len(num_rows)), key=num_rows.__getitem__))


def set_properties(properties: Mapping[str, str] | None) -> tuple[TableUpdate, ...]:
    """The update that sets these properties of a table."""
    return (SetPropertiesUpdate(updates=dict(properties)),) if properties else ()


Report = Callable[[str, int, int | None], None]
"""Takes phase, rows done and rows in total; see `WriteProgress`."""


def commit_rows(
    files: StagedFiles,
    batches: Iterable[pa.RecordBatch],
    *,
    replace: bool,
    report: Report,
    seed: int = 0,
    spill_dir: str | Path | None = None,
) -> tuple[Counts, int, int | None]:
    """Write batches by this process alone as files of `files`, read their keys back and commit them.

    What was written, bytes of the spill, and the snapshot. Parameters and errors are those of `storage.write`.
    """
    if isinstance(batches, pa.RecordBatch | pa.Table):
        raise ValueError(
            f"batches: an iterable of record batches required, found a {type(batches).__name__}; pass [batch] or "
            "table.to_batches()"
        )
    table = files.target
    schema, layout, num_buckets = table_schema(table), table_layout(table), table_buckets(table)
    if isinstance(batches, InOrder) and layout.is_bucketed and num_buckets is not None:
        counts, spill_bytes = Counts(), 0
        for counts in write_in_order(files, batches.by_bucket(num_buckets), schema, renew=replace):
            report("write", counts.rows, None)
    else:
        with open_spill(table, schema, layout, seed=seed, directory=spill_dir) as spill:
            for batch in batches:
                spill.add(batch)
                report("spill", spill.num_rows, None)
            spill.finish()
            for rows_done in write_files(files, spill, layout, seed=seed, renew=replace):
                report("write", rows_done, spill.num_rows)
            counts = Counts(spill.num_rows, *count_requests(spill, users_apart=layout.is_bucketed))
            spill_bytes = spill.num_bytes
    report("verify", 0, counts.rows)
    files.verify(num_rows=counts.rows, num_requests=counts.requests if layout.is_bucketed else None)
    report("commit", counts.rows, counts.rows)
    return counts, spill_bytes, files.commit(replace=replace)


def write_rows(
    files: StagedFiles,
    batches: Iterable[pa.RecordBatch],
    schema: EngagementSchema,
    *,
    seed: int = 0,
    spill_dir: str | Path | None = None,
    remember: int = 0,
    renew: bool = False,
) -> Counts:
    """Write batches as data files of `files`, in the form of its table's layout; what was written.

    It neither verifies nor commits: that is up to who has the files. schema: of the batches and of the files.
    remember: see `Spill`.  renew: choose the columns' encodings anew, if these are all rows of the table.
    """
    layout = table_layout(files.target)
    with open_spill(files.target, schema, layout, seed=seed, directory=spill_dir, remember=remember) as spill:
        for batch in batches:
            spill.add(batch)
        spill.finish()
        for _ in write_files(files, spill, layout, seed=seed, renew=renew):
            pass
        return Counts(spill.num_rows, *count_requests(spill, users_apart=True))


def write_in_order(
    files: StagedFiles,
    buckets: Iterable[tuple[int, Iterable[pa.RecordBatch]]],
    schema: EngagementSchema,
    *,
    renew: bool = False,
) -> Iterator[Counts]:
    """As `write_rows`, of rows that lie in their order already: bucket after bucket, each by key. Nothing is spilled.

    Yields what has been taken so far, after each row group. Raises ValueError if rows do not lie in order; one in a
    bucket that is not its user's is found by `StagedFiles.verify`.
    """
    layout, settings, done = table_layout(files.target), files.settings.settings, Counts()
    last_user: int | None = None

    def groups() -> Iterator[tuple[int, pa.Table]]:
        nonlocal done, last_user
        for bucket, batches in buckets:
            for batch in row_groups_in_order(
                batches, schema, max_rows=settings.row_group_rows, **_limits(layout, settings)
            ):
                user, request = key_columns(batch, REQUEST_KEY)
                users = len(run_starts([user])) - (last_user == int(user[0]))
                done += Counts(batch.num_rows, len(run_starts([user, request])), users)
                last_user = int(user[-1])
                yield bucket, in_form(batch, layout, schema)

    of_buckets = groups()
    first = _first_rows(of_buckets)
    _decide(files, first, renew=renew)
    for _ in _write_groups(files, chain(first, of_buckets)):
        yield done


def open_spill(
    table: Table,
    schema: EngagementSchema,
    layout: Layout,
    *,
    seed: int,
    directory: str | Path | None,
    hold_bytes: int = 0,
    remember: int = 0,
) -> Spill:
    """One that sorts rows out as the layout wants them; options of `Spill`."""
    options: dict[str, Any] = {"directory": directory, "hold_bytes": hold_bytes, "remember": remember}
    if layout is Layout.SHUFFLED:
        deal = DealRows(seed)
        return Spill(
            schema, lambda users, request_ts: np.zeros(len(users), np.int64), rows_partition_of=deal, **options
        )
    if layout is Layout.ARRIVAL:
        return Spill(schema, lambda users, request_ts: _day(request_ts), **options)
    num_buckets = table_buckets(table)
    if num_buckets is None:
        raise ValueError(
            f"{'.'.join(table.name())}: partition spec bucket(N, user_id) required by {layout.name}, found "
            f"{table.spec()}"
        )
    return Spill(schema, lambda users, request_ts: buckets_of(users, num_buckets), **options)


def _day(request_ts: pa.Array) -> np.ndarray:
    """Days since 1970 of each time."""
    if request_ts.null_count:
        raise ValueError(f"{REQUEST_TS}: a time required on every row, found {request_ts.null_count} nulls in a batch")
    return request_ts.cast(pa.int64()).to_numpy() // DAY_MICROSECONDS


def write_files(files: StagedFiles, spill: Spill, layout: Layout, *, seed: int, renew: bool) -> Iterator[int]:
    """Write all data files; yields the rows written so far. renew: choose the columns' encodings anew."""
    settings, rows_done = files.settings.settings, 0
    if layout is Layout.SHUFFLED:
        pieces: list[pa.Table] = []
        for batch in in_random_order(spill, seed=seed, max_fat_bytes=PIECE_BYTES):
            pieces.append(fat_rows(batch, spill.schema))
            if sum(piece.nbytes for piece in pieces) >= settings.file_bytes:
                rows_done += files.write(None, pa.concat_tables(pieces), target_bytes=0)
                pieces = []
                yield rows_done
        if pieces:
            yield rows_done + files.write(None, pa.concat_tables(pieces), target_bytes=0)
        return
    partitions, read_bytes = spill.partitions(), 0
    groups = _row_groups(spill, layout, settings, partitions)
    if partitions and (renew or not files.settings.is_decided):
        lead = lead_of([spill.num_rows_of(partition) for partition in partitions])
        leading = _row_groups(spill, layout, settings, [partitions[lead]])
        first = _first_rows(leading)
        _decide(files, first, renew=renew)
        if lead == 0:  # not made twice; iter: what is written is let go
            groups = chain(iter(first), leading, _row_groups(spill, layout, settings, partitions[1:]))
        del first, leading  # which holds the rows of its partition
    for num_rows, num_bytes in _write_groups(files, groups):
        rows_done += num_rows
        yield rows_done
        read_bytes += num_bytes
        if read_bytes >= RELEASE_BYTES:
            spill.release()
            read_bytes = 0
    spill.release()


def _write_groups(files: StagedFiles, groups: Iterator[tuple[int, pa.Table]]) -> Iterator[tuple[int, int]]:
    """Write row groups of one partition after the other; yields the rows and bytes of each when it is written."""
    is_one_a_file = table_layout(files.target) is Layout.SORTED  # as pyiceberg; our own layouts fill files
    target_bytes = 0 if is_one_a_file else files.settings.settings.file_bytes
    now = None
    for partition, rows in groups:
        if partition != now:
            files.close_file()
            now = partition
        yield files.write(partition, rows, target_bytes=target_bytes), rows.nbytes
    files.close_file()


def _decide(files: StagedFiles, first: list[tuple[int, pa.Table]], *, renew: bool) -> None:
    if first:
        last = first[-1][1]
        rows = last if len(last) >= ENOUGH_ROWS else pa.concat_tables([rows for _, rows in first])
        files.settings.decide(rows, renew=renew)


def _first_rows(groups: Iterator[tuple[int, pa.Table]]) -> list[tuple[int, pa.Table]]:
    """Row groups to choose encodings by: the last of them alone if it is long enough, else all.

    They are read off `groups`.
    """
    first: list[tuple[int, pa.Table]] = []
    for group in groups:
        first.append(group)
        if len(group[1]) >= ENOUGH_ROWS:
            break
    return first


def _row_groups(
    spill: Spill, layout: Layout, settings: WriteSettings, partitions: Sequence[int]
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of these partitions in the order and form of the layout, one row group at a time."""
    in_order = in_arrival_order if layout is Layout.ARRIVAL else in_request_order
    for partition in partitions:
        for batch in in_order(spill, partition, max_rows=settings.row_group_rows, **_limits(layout, settings)):
            yield partition, in_form(batch, layout, spill.schema)


def _limits(layout: Layout, settings: WriteSettings) -> dict[str, int]:
    """Bytes of a row group, beside its rows."""
    if layout is Layout.SORTED:
        limits = {"max_column_bytes": settings.file_bytes, "max_fat_bytes": settings.file_bytes}
    elif layout.has_blobs:
        limits = {"max_column_bytes": settings.row_group_bytes}
    else:
        limits = {"max_column_bytes": settings.row_group_bytes, "max_fat_bytes": settings.row_group_bytes}
    limits["max_column_bytes"] = min(limits["max_column_bytes"], encoding.MAX_BINARY_BYTES)
    return limits


def count_requests(spill: Spill, *, users_apart: bool) -> tuple[int, int]:
    """Requests and users of the whole log; a request lies in one partition, and a user too where `users_apart`."""
    num_requests, num_users, seen = 0, 0, np.zeros(0, np.int64)
    for partition in spill.request_partitions():
        user, request = spill.keys(partition)
        order = np.lexsort((request, user))
        user, request = user[order], request[order]
        num_requests += len(run_starts([user, request]))
        num_users += len(run_starts([user]))
        if not users_apart:
            seen = np.union1d(seen, user)
        spill.release()
    return num_requests, num_users if users_apart else len(seen)
