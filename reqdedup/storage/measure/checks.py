"""Integrity of a table, read from its files: what a commit promised, and what no file format can promise.

Each check streams row groups and says what it saw; none of them changes anything. `content_checksum` needs no order:
tables of any layout that hold the same rows and values have the same checksum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.arrays.keys import first_disorder, run_starts
from reqdedup.dedup.checksum import ContentChecksum, content_checksum
from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.dedup.parts import check_one_value_per_request, split_parts
from reqdedup.dedup.streams import REQUEST_KEY, Cursor
from reqdedup.schema import HISTORY_TS, KEYS, REQUEST_ID, REQUEST_TS, USER_ID
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from reqdedup.storage.read.buckets import SortedTable
from reqdedup.storage.read.table_source import TableSource

__all__ = [
    "CheckResult",
    "ContentChecksum",
    "buckets_right",
    "content_checksum",
    "no_future_events",
    "requests_agree",
    "requests_whole",
    "sort_order_true",
]


@dataclass(frozen=True)
class CheckResult:
    """ok: whether it holds.  checked: how many were looked at (`detail` says what).  detail: what
    was seen, or is wrong."""

    ok: bool
    checked: int
    detail: str


def requests_whole(table: Table) -> CheckResult:
    """Whether every request lies in one file, its rows one after another."""
    num_runs, num_rows = 0, 0
    seen: list[tuple[str, list[np.ndarray]]] = []
    bucket: int | None = None
    twice: str | None = None
    for path, next_bucket, key in _keys_by_file(table, (USER_ID, REQUEST_ID)):
        if next_bucket != bucket and next_bucket is not None:  # a user is in one bucket: what came before cannot recur
            twice, seen = twice or _first_twice(seen), []
        bucket = next_bucket
        starts = run_starts(key)
        seen.append((path, [column[starts] for column in key]))
        num_runs, num_rows = num_runs + len(starts), num_rows + len(key[0])
    twice = twice or _first_twice(seen)
    if twice:
        return CheckResult(False, num_rows, f"{_name(table)}: {twice}")
    return CheckResult(True, num_rows, f"{num_rows:,} rows in {num_runs:,} requests, each in one place")


def requests_agree(table: Table) -> CheckResult:
    """Whether every request has one value in each request-level column, whichever appends its rows came with.

    An append does not look: it would read the keys of every bucket that it touches. Compaction
    finds the same, and refuses.
    """
    source = TableSource(table)
    side, columns = SortedTable(table, source, REQUEST_KEY), source.schema.request_columns
    num_rows = 0
    for bucket in range(side.num_buckets):
        names = [*REQUEST_KEY, *(column.name for column in columns)]
        cursor = Cursor(side.stream(bucket, side.num_buckets, names), REQUEST_KEY, side.name)
        while cursor.fill():
            batch = cursor.take().batch
            try:
                check_one_value_per_request(batch, columns, *split_parts(batch))
            except ValueError as error:
                return CheckResult(False, num_rows, f"{side.name}: {error}")
            num_rows += batch.num_rows
    return CheckResult(True, num_rows, f"{num_rows:,} rows, one value per request in {len(columns)} columns")


def sort_order_true(table: Table) -> CheckResult:
    """Whether the rows of every file are in (user_id, request_id, item_id) order, as the table's sort order says."""
    declared = [table.schema().find_column_name(field.source_id) for field in table.sort_order().fields]
    if declared != list(KEYS):
        return CheckResult(False, 0, f"{_name(table)}: sort order {KEYS} required, the table declares {declared}")
    num_rows = 0
    for path, _, key in _keys_by_file(table, KEYS):
        row = first_disorder(key)
        if row >= 0:
            return CheckResult(
                False, num_rows + row, f"{_name(table)}: rows are not in {KEYS} order at row {row + 1} of {path}"
            )
        num_rows += len(key[0])
    return CheckResult(True, num_rows, f"{num_rows:,} rows in {KEYS} order")


def buckets_right(table: Table) -> CheckResult:
    """Whether every row's user hashes to the bucket of its file."""
    num_buckets = table_buckets(table)
    if num_buckets is None:
        return CheckResult(
            False, 0, f"{_name(table)}: partition spec bucket(N, user_id) required, found {table.spec()}"
        )
    num_rows = 0
    for path, bucket, (users,) in _keys_by_file(table, (USER_ID,)):
        distinct = users[run_starts([users])]
        wrong = buckets_of(distinct, num_buckets) != bucket
        if wrong.any():
            user = int(distinct[np.argmax(wrong)])
            return CheckResult(
                False,
                num_rows,
                f"{_name(table)}: user {user} is of bucket {int(buckets_of(np.array([user]), num_buckets)[0])} of "
                f"{num_buckets} and lies in bucket {bucket}, {path}",
            )
        num_rows += len(users)
    return CheckResult(True, num_rows, f"{num_rows:,} rows in the right one of {num_buckets} buckets")


def no_future_events(table: Table) -> CheckResult:
    """Whether every event of a request's history happened before the request."""
    source = TableSource(table)
    if HISTORY_TS not in source.schema:
        return CheckResult(True, 0, f"{_name(table)}: the log has no {HISTORY_TS}, nothing to compare")
    num_rows = 0
    for batch in source.batches([REQUEST_ID, USER_ID, REQUEST_TS, HISTORY_TS]):
        array = batch.column(HISTORY_TS)
        times, offsets = numpy_from_blobs(array.dictionary, source.schema[HISTORY_TS].dtype)
        latest_ms = np.full(len(offsets) - 1, -(2**62) // 1000, np.int64)
        filled = np.flatnonzero(np.diff(offsets))
        if len(filled):
            latest_ms[filled] = np.maximum.reduceat(times, offsets[filled])
        latest_us = latest_ms[array.indices.to_numpy()] * 1000
        late = latest_us >= batch.column(REQUEST_TS).cast(pa.int64()).to_numpy()
        if late.any():
            row = int(np.argmax(late))
            request, user = (batch.column(name)[row].as_py() for name in (REQUEST_ID, USER_ID))
            return CheckResult(
                False,
                num_rows + row,
                f"{_name(table)}: request {request} of user {user} at {batch.column(REQUEST_TS)[row]} has a history "
                f"event at {pa.scalar(int(latest_us[row]), pa.timestamp('us', tz='UTC'))}",
            )
        num_rows += batch.num_rows
    return CheckResult(True, num_rows, f"{num_rows:,} rows, every history ends before its request")


def _keys_by_file(table: Table, names: tuple[str, ...]) -> Iterator[tuple[str, int | None, list[np.ndarray]]]:
    """(path, bucket, key columns) of each file in reading order; only the keys are read."""
    source = TableSource(table)
    path, bucket, parts = None, None, []
    for group in source.row_groups():
        if path is not None and group.path != path:
            yield path, bucket, [np.concatenate(columns) for columns in zip(*parts)]
            parts = []
        path, bucket = group.path, group.bucket
        batch = source.read_row_group(group, list(names))
        parts.append([batch.column(name).to_numpy() for name in names])
    if path is not None:
        yield path, bucket, [np.concatenate(columns) for columns in zip(*parts)]


def _first_twice(seen: list[tuple[str, list[np.ndarray]]]) -> str | None:
    """The first request that has two runs of rows, with its files; None if there is none."""
    if not seen:
        return None
    user, request = (np.concatenate([key[level] for _, key in seen]) for level in (0, 1))
    order = np.lexsort((request, user))
    same = (user[order][1:] == user[order][:-1]) & (request[order][1:] == request[order][:-1])
    if not same.any():
        return None
    at = int(np.argmax(same))
    ends = np.cumsum([len(key[0]) for _, key in seen])
    first, second = (seen[int(np.searchsorted(ends, order[i], side="right"))][0] for i in (at, at + 1))
    where = f"in two places of {first}" if first == second else f"in {first} and in {second}"
    return f"request {int(request[order[at]])} of user {int(user[order[at]])} lies {where}"


def _name(table: Table) -> str:
    return ".".join(table.name())
