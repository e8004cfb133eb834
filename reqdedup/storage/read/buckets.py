"""The sides of a bucket join: one bucket of a table as one sorted stream.

A table qualifies where it is partitioned by bucket(N, user_id) and sorted by (user_id, request_id, ...). Bucket counts
that divide each other fit together: users of bucket b of N are in bucket b % M of M, for every M that divides N. So a
join of N and M buckets has min(N, M) units of work, and a unit may take several buckets of one side, merged in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.sorting import SortDirection, SortOrder
from pyiceberg.transforms import IdentityTransform

from reqdedup.dedup.rows import take_rows
from reqdedup.dedup.streams import merge_streams
from reqdedup.schema import USER_ID
from reqdedup.storage.iceberg.layout import buckets_of, table_buckets
from reqdedup.storage.iceberg.manifests import stored_bytes
from reqdedup.storage.read.reader import FileSource, RowGroup

ROWS_TOGETHER = 2**18
"""Rows that are read as one batch where their blobs are small: enough to pay for the calls that a batch takes."""


class SortedSource(Protocol):
    """Anything that can be read bucket by bucket in key order: a table, or a join of tables.

    num_bytes: of the stored files that it reads, as far as it knows.
    """

    name: str
    num_buckets: int
    num_bytes: int

    def stream(
        self, unit: int, num_units: int, columns: Sequence[str], users: np.ndarray | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of every bucket b with b % num_units == unit, in order; num_units divides num_buckets.

        columns: exactly these, in schema order.  users: only the rows of these, rising.
        """
        ...

    @property
    def file_sources(self) -> list[FileSource]:
        """What it reads."""
        ...

    def weights(self, num_units: int) -> np.ndarray:
        """Rows of each unit, [num_units] int64."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """See `BatchSource`."""
        ...


@dataclass(frozen=True)
class _Planned:
    """Row groups by bucket, as they are asked for, of one set of users. bucket_of_user: [U], None for all users."""

    users: np.ndarray | None
    bucket_of_user: np.ndarray | None
    groups: dict[int, list[RowGroup]]


class SortedTable:
    """A bucketed, sorted table as a side of a join; `order` is the key that its rows must be sorted by.

    use_threads: decode the columns of a batch at once; off where buckets are read beside one another.
    Raises ValueError for a table without the partitioning or the sort order, naming what is missing.
    """

    def __init__(self, table: Table, source: FileSource, order: Sequence[str], *, use_threads: bool = True) -> None:
        self.name, self._use_threads = ".".join(table.name()), use_threads
        num_buckets = check_sorted(table, order)
        self.num_buckets = source.num_buckets or num_buckets  # of an old snapshot, before the count was changed
        self.num_bytes = stored_bytes(table)
        self._order, self._source = tuple(order), source
        self._planned: _Planned | None = None

    def stream(
        self, unit: int, num_units: int, columns: Sequence[str], users: np.ndarray | None = None
    ) -> Iterator[pa.RecordBatch]:
        groups: dict[str, list[RowGroup]] = {}
        for bucket in range(unit, self.num_buckets, num_units):
            for group in self._groups_of(bucket, users):
                groups.setdefault(group.path, []).append(group)
        chains = _chains({path: _user_range(self._source, path) for path in groups})
        read = partial(self._read, columns=columns, users=users)
        streams = [read([group for path in chain for group in groups[path]]) for chain in chains]
        return merge_streams(streams, self._order, self.name) if streams else iter(())

    @property
    def file_sources(self) -> list[FileSource]:
        """What it reads."""
        return [self._source]

    def weights(self, num_units: int) -> np.ndarray:
        """Rows of each unit, by the footers."""
        rows = np.zeros(num_units, np.int64)
        for bucket in range(self.num_buckets):
            rows[bucket % num_units] += sum(group.num_rows for group in self._groups_of(bucket, None))
        return rows

    def fingerprint(self) -> dict[str, str]:
        return self._source.fingerprint()

    def _groups_of(self, bucket: int, users: np.ndarray | None) -> list[RowGroup]:
        """Row groups of a bucket; looked up once for a pass over all buckets, which hands over the same `users`."""
        planned = self._planned
        if planned is None or planned.users is not users:
            own = None if users is None else buckets_of(users, self.num_buckets)
            self._planned = planned = _Planned(users, own, {})
        if bucket not in planned.groups:
            wanted = users if users is None else users[planned.bucket_of_user == bucket]
            planned.groups[bucket] = self._source.row_groups(wanted, bucket=bucket)
        return planned.groups[bucket]

    def _read(
        self, groups: Sequence[RowGroup], columns: Sequence[str], users: np.ndarray | None
    ) -> Iterator[pa.RecordBatch]:
        if users is None:
            yield from self._source.stream(groups, columns, rows_together=ROWS_TOGETHER, use_threads=self._use_threads)
            return
        for group in groups:
            # The ids alone first: most row groups hold none of a small sample's users.
            keep = np.isin(self._source.read_row_group(group, [USER_ID]).column(0).to_numpy(), users)
            if keep.any():
                yield take_rows(self._source.read_row_group(group, columns), keep)


def check_sorted(table: Table, order: Sequence[str]) -> int:
    """The table's number of buckets. Raises ValueError unless it is bucketed by user and sorted by `order`."""
    num_buckets = table_buckets(table)
    # Any order that it knows counts, since rows are checked as they are read: another engine may have made another one
    # the default for what it writes itself.
    known = [_rising(table, one) for one in (table.sort_order(), *table.sort_orders().values())]
    missing = []
    if num_buckets is None:
        missing.append(f"partitioning by bucket(N, user_id), found [{', '.join(map(str, table.spec().fields))}]")
    if not any(fields[: len(order)] == list(order) for fields in known):
        missing.append(f"the sort order ({', '.join(order)}), found ({', '.join(map(str, known[0]))})")
    if missing or num_buckets is None:
        raise ValueError(
            f"{'.'.join(table.name())}: a bucket join needs {' and '.join(missing)}; write the table again with "
            "Layout.BY_REQUEST, SORTED or SORTED_LARGE_PAGES, or run `reqdedup convert`"
        )
    return num_buckets


def _rising(table: Table, order: SortOrder) -> list[str | None]:
    """The columns of an order that rise."""
    fields = [
        f for f in order.fields if isinstance(f.transform, IdentityTransform) and f.direction is SortDirection.ASC
    ]
    return [table.schema().find_column_name(field.source_id) for field in fields]


def join_units(left: SortedSource, right: SortedSource) -> int:
    """Units of work of a join: the smaller bucket count. Raises ValueError unless it divides the larger."""
    low, high = sorted((left.num_buckets, right.num_buckets))
    if high % low:
        raise ValueError(
            f"bucket join: bucket counts must divide each other, found {left.num_buckets} in {left.name} and "
            f"{right.num_buckets} in {right.name}; create one of them again with a divisor or multiple, say {low}"
        )
    return low


def _user_range(source: FileSource, path: str) -> tuple[int, int] | None:
    """Lowest and highest user of a file; None if its statistics do not say."""
    low, high, footer, name = [], [], source.footer(path), source.name_in(path, USER_ID)
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        leaf = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == name)
        if leaf.statistics is None or not leaf.statistics.has_min_max:
            return None
        low.append(leaf.statistics.min)
        high.append(leaf.statistics.max)
    return min(low), max(high)


def _chains(user_range: dict[str, tuple[int, int] | None]) -> list[list[str]]:
    """Files that can be read one after the other: no user of one is above those of the next. Fewest chains."""
    chains: list[tuple[list[str], int | None]] = []
    known = {path: span for path, span in user_range.items() if span is not None}
    for path in sorted(known, key=lambda path: known[path]):
        low, high = known[path]
        place = next((i for i, (_, last) in enumerate(chains) if last is not None and last < low), None)
        if place is None:
            chains.append(([path], high))
        else:
            chains[place] = ([*chains[place][0], path], high)
    return [chain for chain, _ in chains] + [[path] for path, span in user_range.items() if span is None]
