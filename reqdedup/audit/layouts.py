"""The sample written in each layout, and scaled up to the table.

    SHUFFLED             single rows in random order, pyiceberg's defaults
    SORTED               whole users in key order, plain, pyiceberg's defaults
    SORTED_LARGE_PAGES   the same with large pages, zstd, dictionaries of list elements only where they help
    BY_REQUEST           the same, lists as dictionary-encoded blobs
    store once           each distinct sequence of a user once, each scalar of a request once, in key order: the limit

Settings and row groups are those of reqdedup's own writer. What is assumed: users are alike in the way a random sample
of them shows, tables are written in files of the default size, and buckets are as large as the mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.audit.estimate import ColumnTotal, Population, estimate_column
from reqdedup.audit.footers import TableFacts
from reqdedup.audit.repeats import KEY, REQUEST, Repeats, RequestRows
from reqdedup.audit.sample import Sample, SamplePlan
from reqdedup.audit.scan import RequestIndex
from reqdedup.audit.values import SampleColumn
from reqdedup.audit.writing import (
    BLOBS,
    LARGE_PAGES,
    OUR_SCALARS,
    WriterSettings,
    without_dictionary,
    write_blobs,
    write_rows,
    write_values,
)
from reqdedup.storage.iceberg.layout import LARGE_PAGE_BYTES

FILE_BYTES = 512 * 2**20
"""Arrow bytes of a row group of plain lists: pyiceberg's default file, and reqdedup's row group with large pages."""

SHUFFLED, RUNS = "shuffled", "runs"
BUCKET_TOLERANCE = 0.1
BLOB_GROUP_ROWS = 16_384
LONG_TEXT_BYTES = 64
"""Text of at least this mean length is stored once per row group like a sequence."""


@dataclass(frozen=True)
class Groups:
    """Row groups of one order of the sampled rows, and the user that each row is of; the first `num_users` users are in.

    Of a shuffle, every row is a unit of its own in place of a user.
    """

    rows: list[np.ndarray]
    user_of_row: np.ndarray
    num_users: int

    def group_of_user(self) -> np.ndarray:
        """The row group with the first of each user's rows, [num_users]."""
        group_of_row = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])
        users, first = np.unique(self.user_of_row, return_index=True)
        group = np.zeros(self.num_users, np.int64)
        group[users] = group_of_row[first]
        return group


class SampleLayouts:
    """Writes columns of one sample in any order and settings, each time giving the whole table's estimated bytes."""

    def __init__(
        self,
        sample: Sample,
        requests: RequestRows,
        repeats: dict[str, Repeats],
        facts: TableFacts,
        index: RequestIndex,
        plan: SamplePlan,
        *,
        num_buckets: int,
        directory: Path,
    ) -> None:
        self.sample, self.requests, self.repeats, self.facts = sample, requests, repeats, facts
        self.index, self.plan, self.num_buckets = index, plan, num_buckets
        self._directory, self._number = directory, itertools.count()
        self._groups: dict[object, Groups] = {}
        self.users = Population(index.num_users, requests.num_users, plan.is_whole)
        self.num_single = int(sample.in_single.sum())
        self.singles = Population(index.num_rows, self.num_single, plan.is_whole)
        self._fat_bytes = sum(
            (column.row_bytes for column in sample.columns.values()), np.zeros(len(sample.user), np.int64)
        )
        self._sorted_rows = requests.order
        self._counts = np.stack(
            [
                np.bincount(requests.user_of_row, minlength=requests.num_users),
                np.bincount(requests.user_of_request, minlength=requests.num_users),
            ],
            axis=1,
        ).astype(np.float64)

    def large_pages(self, name: str) -> tuple[ColumnTotal, WriterSettings]:
        """The column's bytes in SORTED_LARGE_PAGES, and the settings that make them: lists with a dictionary of elements
        where that is smaller, as reqdedup's writer decides from its first rows."""
        column = self.sample.columns[name]
        plain = self.plain_settings(name)
        total = self.sorted(name, plain)
        if not column.is_list:
            return total, plain
        with_dictionary = replace(plain, dictionary=True, dictionary_bytes=LARGE_PAGE_BYTES)
        other = self.sorted(name, with_dictionary)
        return (other, with_dictionary) if other.total < total.total else (total, plain)

    def plain_settings(self, name: str) -> WriterSettings:
        """Of a column that is not a list with a dictionary: what the project's writer would choose."""
        column = self.sample.columns[name]
        if column.is_list or self._is_long_text(column):
            return LARGE_PAGES
        is_item_float = not self.repeats[name].is_request_level and pa.types.is_floating(column.leaf.type)
        return without_dictionary(OUR_SCALARS) if is_item_float else OUR_SCALARS

    def shuffled(self, name: str, settings: WriterSettings, *, group_rows: int | None = None) -> ColumnTotal:
        """The column's bytes with rows in random order."""
        groups = self._shuffled_groups(group_rows)
        bytes_of_row = write_rows(self._path(), self.sample.columns[name], groups.rows, settings)
        rows = np.concatenate(groups.rows)
        slots = self.sample.columns[name].slots[rows].astype(np.float64)
        x = np.stack([np.ones(len(rows)), slots], axis=1)
        return estimate_column(bytes_of_row, x, np.array([self.index.num_rows, self._elements(name)]), self.singles)

    def sorted(self, name: str, settings: WriterSettings, *, group_rows: int | None = None) -> ColumnTotal:
        """The column's bytes with rows in key order, plain."""
        groups = self._row_groups(rows_limit=group_rows)
        return self._total(name, groups, write_rows(self._path(), self.sample.columns[name], groups.rows, settings))

    def in_runs(self, name: str, settings: WriterSettings, *, group_rows: int | None = None) -> ColumnTotal:
        """The column's bytes in today's order: runs of a request's rows as long as today's, the runs in random order."""
        groups = self._run_groups(group_rows)
        return self._total(name, groups, write_rows(self._path(), self.sample.columns[name], groups.rows, settings))

    def by_request(self, name: str) -> ColumnTotal:
        """The column's bytes in Layout.BY_REQUEST; lists whose values differ per row stay plain.

        Scalars of the row take a dictionary or not, whichever is smaller, as reqdedup's writer finds on its first rows.
        """
        column = self.sample.columns[name]
        groups = self._row_groups(rows_limit=BLOB_GROUP_ROWS)
        if self._has_blobs(name):
            return self._total(name, groups, write_blobs(self._path(), column, groups.rows, BLOBS), dedup=True)
        settings = [self.plain_settings(name)]
        if not column.is_list and not self.repeats[name].is_request_level and self.repeats[name].level != KEY:
            settings += _without_a_dictionary_of_rows(column.leaf.type)
        totals = [self._total(name, groups, write_rows(self._path(), column, groups.rows, one)) for one in settings]
        return min(totals, key=lambda total: total.total)

    def store_once(self, name: str) -> ColumnTotal:
        """The limit: see the module; item-level columns as BY_REQUEST has them."""
        column = self.sample.columns[name]
        if not self._has_blobs(name):
            return self._one_per_request(name) if self.repeats[name].level == REQUEST else self.by_request(name)
        pairs = np.stack([self.requests.user_of_row, column.ids[self._sorted_rows]])
        _, first = np.unique(pairs, axis=1, return_index=True)
        first.sort()
        bytes_of_value = write_values(self._path(), column, self._sorted_rows[first], LARGE_PAGES)
        units = self.requests.user_of_row[first]
        return self._per_user(
            name, np.bincount(units, weights=bytes_of_value, minlength=self.requests.num_users), dedup=True
        )

    def _one_per_request(self, name: str) -> ColumnTotal:
        first = self._sorted_rows[self.requests.start]
        groups = np.array_split(first, max(1, -(-len(first) // BLOB_GROUP_ROWS)))
        bytes_of_value = write_rows(self._path(), self.sample.columns[name], groups, self.plain_settings(name))
        users = np.bincount(self.requests.user_of_request, weights=bytes_of_value, minlength=self.requests.num_users)
        return self._per_user(name, users, dedup=True)

    def _has_blobs(self, name: str) -> bool:
        column = self.sample.columns[name]
        stored = column.is_blob and (column.is_list or self._is_long_text(column))
        return stored and self.repeats[name].is_request_level

    def _is_long_text(self, column: SampleColumn) -> bool:
        return column.is_stored and not column.is_list and float(column.row_bytes.mean()) >= LONG_TEXT_BYTES

    def _elements(self, name: str) -> float:
        """Elements of the whole table; rows without a key are few and taken to be like the others."""
        facts = self.facts.columns[name]
        return facts.num_values * self.index.num_rows / max(self.facts.num_rows, 1)

    def _total(self, name: str, groups: Groups, bytes_of_row: np.ndarray, *, dedup: bool = False) -> ColumnTotal:
        users = np.bincount(groups.user_of_row, weights=bytes_of_row, minlength=groups.num_users)
        return replace(self._per_user(name, users, dedup=dedup), group=groups.group_of_user())

    def _per_user(self, name: str, bytes_of_user: np.ndarray, *, dedup: bool) -> ColumnTotal:
        """The first users' bytes, scaled up by what is known of the table; the best regressor comes first."""
        rows, requests = self._counts.T
        known = [(rows, float(self.index.num_rows)), (requests, float(self.index.num_requests))]
        if dedup:
            known.reverse()
        known.append((np.ones(len(rows)), float(self.index.num_users)))  # a user's first request costs most
        if self.sample.columns[name].is_list:
            slots = self.sample.columns[name].slots[self._sorted_rows].astype(np.float64)
            elements = np.bincount(self.requests.user_of_row, weights=slots, minlength=self.requests.num_users)
            known.insert(0, (elements, self._elements(name)))
        x = np.stack([values for values, _ in known], axis=1)[: len(bytes_of_user)]
        totals = np.array([total for _, total in known], np.float64)
        population = replace(self.users, num_sampled=len(bytes_of_user))
        return estimate_column(bytes_of_user, x, totals, population)

    def _path(self) -> Path:
        return self._directory / f"{next(self._number)}.parquet"

    def prepare(self, group_rows: Sequence[int | None]) -> None:
        """Cut all orders into row groups now, so that threads share them."""
        for rows in {None, BLOB_GROUP_ROWS, *group_rows}:
            self._row_groups(rows_limit=rows)
            self._run_groups(rows)
            self._shuffled_groups(rows)

    def _row_groups(self, *, rows_limit: int | None) -> Groups:
        """Rows cut between requests into row groups as large as the whole table's would be."""
        if rows_limit not in self._groups:
            self._groups[rows_limit] = self._cut(rows_limit)
        return self._groups[rows_limit]

    def _cut(self, rows_limit: int | None) -> Groups:
        order, start, counts = self._sorted_rows, self.requests.start, self.requests.rows_of_request
        weight = counts if rows_limit else np.add.reduceat(self._fat_bytes[order], start)
        limit, user = rows_limit or FILE_BYTES, self.requests.user_of_request
        num_users, users_per_bucket = self.requests.num_users, self.index.num_users / self.num_buckets
        if self.plan.is_whole:
            bucket = self.sample.bucket[order[start]]
            by_bucket = np.argsort(bucket, kind="stable")
            cuts = _greedy(bucket[by_bucket], weight[by_bucket], limit)
            order, counts = order[_ranges(start[by_bucket], counts[by_bucket])], counts[by_bucket]
        elif num_users >= users_per_bucket:
            # As many users to a bucket as in the table. Where none of that size fit, those over are left out.
            num_buckets = max(1, round(num_users / users_per_bucket))
            if abs(num_users / num_buckets / users_per_bucket - 1) > BUCKET_TOLERANCE:
                num_buckets = int(num_users / users_per_bucket)
                num_users = int(num_buckets * users_per_bucket)
            num_requests = int(np.searchsorted(user, num_users))
            bucket = user[:num_requests] * num_buckets // num_users
            cuts = _greedy(bucket, weight[:num_requests], limit)
        else:
            table_weight = self.index.num_rows * (1.0 if rows_limit else self.plan.row_bytes)
            cuts, num_users = _full_groups(weight, user, _group_weight(table_weight / self.num_buckets, limit))
        ends = np.concatenate([[0], np.cumsum(counts)])
        rows = [order[ends[first] : ends[last]] for first, last in cuts]
        return Groups(rows, self._user_of(np.concatenate(rows)), num_users)

    def _user_of(self, rows: np.ndarray) -> np.ndarray:
        user = np.full(len(self.sample.user), -1, np.int64)
        user[self._sorted_rows] = self.requests.user_of_row
        return user[rows]

    def _shuffled_groups(self, group_rows: int | None) -> Groups:
        if (SHUFFLED, group_rows) not in self._groups:
            rows = np.flatnonzero(self.sample.in_single)
            read_share = self.sample.rows_touched / max(self.facts.num_rows, 1)
            order = rows[_mixed_order(self.sample.user[rows], read_share, self.plan.is_whole)]
            self._groups[SHUFFLED, group_rows] = Groups(
                self._cut_anywhere(order, group_rows), np.arange(len(order)), len(order)
            )
        return self._groups[SHUFFLED, group_rows]

    def _run_groups(self, group_rows: int | None) -> Groups:
        if (RUNS, group_rows) not in self._groups:
            rows = np.flatnonzero(self.sample.in_users)
            run = self.sample.run[rows]
            starts = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]]))
            lengths = np.diff(np.append(starts, len(rows)))
            shuffled = np.random.default_rng(0).permutation(len(starts))
            order = rows[_ranges(starts[shuffled], lengths[shuffled])]
            self._groups[RUNS, group_rows] = Groups(
                self._cut_anywhere(order, group_rows), self._user_of(order), self.requests.num_users
            )
        return self._groups[RUNS, group_rows]

    def _cut_anywhere(self, order: np.ndarray, group_rows: int | None) -> list[np.ndarray]:
        if group_rows:
            return np.array_split(order, max(1, round(len(order) / group_rows)))
        return _by_bytes(order, self._fat_bytes, FILE_BYTES)


def _without_a_dictionary_of_rows(kind: pa.DataType) -> list[WriterSettings]:
    return [] if pa.types.is_floating(kind) else [replace(OUR_SCALARS, encoding="PLAIN")]


def _ranges(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The numbers of [start, start + length) of each range, one behind the other."""
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(int(length.sum()))


def _greedy(bucket: np.ndarray, weight: np.ndarray, limit: float) -> list[tuple[int, int]]:
    """Ranges of requests that share a bucket and together pass the limit at most by their last."""
    cuts, first, total = [], 0, 0.0
    for position in range(len(bucket)):
        new_bucket = position > first and bucket[position] != bucket[first]
        if position > first and (new_bucket or total + weight[position] > limit):
            cuts.append((first, position))
            first, total = position, 0.0
        total += float(weight[position])
    return [*cuts, (first, len(bucket))]


def _group_weight(bucket_weight: float, limit: float) -> float:
    """Mean weight of the row groups that a bucket is cut into."""
    return bucket_weight / max(1, int(np.ceil(bucket_weight / limit)))


def _full_groups(weight: np.ndarray, user: np.ndarray, target: float) -> tuple[list[tuple[int, int]], int]:
    """Ranges of requests of about `target`, whole users together, and the number of users in them.

    A rest that would make row groups of another size is left out: a dictionary costs a small row group more.
    """
    last_of_user = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    ends = np.cumsum(weight)[last_of_user]
    count = int(float(ends[-1]) / target + 0.05)
    if count == 0:
        return [(0, len(weight))], len(ends)
    kept = min(float(ends[-1]), count * target)
    bounds = np.searchsorted(ends, kept * np.arange(1, count + 1) / count * (1 - 1e-9))
    bounds = np.unique(np.minimum(bounds, len(ends) - 1))
    cuts = [0, *(last_of_user[bounds] + 1).tolist()]
    return list(itertools.pairwise(cuts)), int(bounds[-1]) + 1


def _by_bytes(order: np.ndarray, row_bytes: np.ndarray, limit: int) -> list[np.ndarray]:
    ends = np.cumsum(row_bytes[order])
    count = max(1, int(np.ceil(float(ends[-1]) / limit))) if len(order) else 1
    return np.array_split(order, np.searchsorted(ends, ends[-1] * np.arange(1, count) / count))


def _mixed_order(user: np.ndarray, read_share: float, is_whole: bool) -> np.ndarray:
    """A random order in which rows of one user meet as rarely as in the whole table.

    Of rows that were drawn from a part of the table, two of one user are that much closer than in a shuffle of all. So
    only that part of the users is placed at random, the rows of the others are spread evenly.
    """
    rng = np.random.default_rng(0)
    if is_whole:
        return rng.permutation(len(user))
    by_user = np.lexsort((rng.random(len(user)), user))
    grouped = user[by_user]
    starts = np.flatnonzero(np.concatenate([[True], grouped[1:] != grouped[:-1]]))
    counts = np.diff(np.append(starts, len(user)))
    step = np.arange(len(user)) - np.repeat(starts, counts)
    even = (step + np.repeat(rng.random(len(starts)), counts)) / np.repeat(counts, counts)
    at_random = np.repeat(rng.random(len(starts)) < read_share, counts)
    when = np.where(at_random, rng.random(len(user)), even)
    return by_user[np.argsort(when, kind="stable")]
