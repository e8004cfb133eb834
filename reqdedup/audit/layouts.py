"""The sample written in each layout by the library's own writer, into files that never become a table, and scaled up.

    SHUFFLED             single rows
    SORTED, SORTED_LARGE_PAGES, BY_REQUEST   whole users
    STORE_ONCE           of BY_REQUEST, every distinct value once: `store_once_bytes`, the limit

A sample is smaller than its table, and a row group has costs of its own: the dictionaries of its columns, the headers
of its pages. So the sample is written with the settings and row-group limits of the real thing, and into so few buckets
that each is as large as one of the table's. A sample of one part in a hundred of a table with 16 buckets fills a sixth
of a bucket: its row groups are then smaller than the table's, unless they are full. `estimate.py` says how that is
corrected, and what it adds to the interval. A second writing, into GROUPS buckets, gives the bytes of groups of users
for the jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table

from reqdedup.arrays.hashing import below_rate
from reqdedup.audit.columns import SampleTable
from reqdedup.audit.estimate import ColumnTotal, Population, Written, between, estimate_columns, joined
from reqdedup.audit.footers import TableFacts
from reqdedup.audit.repeats import RequestRows
from reqdedup.audit.report import SHUFFLED, STORE_ONCE
from reqdedup.audit.sample import Sample, SamplePlan
from reqdedup.audit.scan import RequestIndex
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.iceberg.encodings import FAST_LEVELS
from reqdedup.storage.iceberg.layout import Layout, buckets_of, create_table
from reqdedup.storage.iceberg.paths import local_path
from reqdedup.storage.iceberg.settings import (
    DEFAULT_FILE_BYTES,
    LARGE_PAGES_ROW_GROUP_BYTES,
    ROW_GROUP_BYTES,
    ZSTD_LEVEL,
    default_settings,
)
from reqdedup.storage.measure.store_once import Codec, store_once_bytes
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.write.writer import write_rows

CODECS = (Codec("zstd", ZSTD_LEVEL), Codec("zstd", FAST_LEVELS[0]))

GROUPS = 16
"""Of users, for the jackknife."""

ENOUGH_GROUPS = 10
"""Buckets of the first writing that serve as the groups."""


@dataclass(frozen=True)
class LayoutTotals:
    """columns: layout -> leaf -> estimate; leaves without a place in our layouts are not in it."""

    columns: dict[str, dict[str, ColumnTotal]]
    users: Population
    singles: Population

    def population(self, layout: str) -> Population:
        return self.singles if layout == SHUFFLED else self.users


class SampleLayouts:
    """Writes the sample in layouts, and says what the whole table would take."""

    def __init__(
        self,
        table: SampleTable,
        sample: Sample,
        requests: RequestRows,
        facts: TableFacts,
        index: RequestIndex,
        plan: SamplePlan,
        *,
        num_buckets: int,
        directory: Path,
    ) -> None:
        self._table, self._sample, self._requests = table, sample, requests
        self._facts, self._index, self._plan, self._num_buckets = facts, index, plan, num_buckets
        self._directory = directory
        self._catalog = load_catalog("audit", type="in-memory", warehouse=f"file://{directory}/tables")
        self.singles = _thinned(sample, facts.num_rows, is_whole=plan.is_whole)

    def measure(self, progress: Callable[[int, int], None] = lambda done, total: None) -> LayoutTotals:
        """All layouts, one after the other."""
        users = Population(self._index.num_users, self._requests.num_users, self._plan.is_whole)
        singles = Population(self._index.num_rows, len(self.singles), self._plan.is_whole)
        with closing(self._catalog):
            columns = {SHUFFLED: self._shuffled()}
            progress(1, 4)
            for done, layout in enumerate((Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST), start=2):
                columns |= self._bucketed(layout)
                progress(done, 4)
        return LayoutTotals(columns, users, singles)

    def _bucketed(self, layout: Layout) -> dict[str, dict[str, ColumnTotal]]:
        rows = self._requests.order
        share = self._requests.num_users / max(self._index.num_users, 1)
        num_buckets = self._num_buckets if self._plan.is_whole else max(1, round(self._num_buckets * share))
        once: dict[str, float] = {}
        large = groups = self._written(layout, rows, num_buckets=num_buckets, once=once)
        if not self._plan.is_whole and num_buckets < ENOUGH_GROUPS:
            groups = self._written(layout, rows, num_buckets=GROUPS)
        by_request = layout is Layout.BY_REQUEST
        limit = self._blob_rows() if by_request else self._rows_of(LARGE_PAGES_ROW_GROUP_BYTES)
        bucket_rows = self._index.num_rows / self._num_buckets
        group_rows = bucket_rows / max(1, int(np.ceil(bucket_rows / limit)))
        found = {layout.name: estimate_columns(large, groups, self._sizes, table_group_rows=group_rows)}
        if (
            layout is Layout.BY_REQUEST
        ):  # the limit, with the same relative error; what is stored in less there, in that
            found[STORE_ONCE] = {
                leaf: total.times(min(once[leaf] / max(float(large.bytes[leaf].sum()), 1.0), 1.0))
                for leaf, total in found[layout.name].items()
            }
        return found

    def _shuffled(self) -> dict[str, ColumnTotal]:
        """Of two random orders: their difference is chance, and counts as error."""
        rows = self.singles
        large, other = (self._written(Layout.SHUFFLED, rows, seed=seed) for seed in (0, 1))
        groups = large
        if not self._plan.is_whole:
            dealt = np.random.default_rng(0).permutation(len(rows)) % GROUPS
            parts = [rows[dealt == group] for group in range(min(GROUPS, len(rows)))]
            groups = joined([self._written(Layout.SHUFFLED, part) for part in parts])
        sizes = {kind: total for kind, total in self._sizes.items() if kind not in ("users", "requests")}
        group_rows = min(self._index.num_rows, self._rows_of(DEFAULT_FILE_BYTES))
        one, two = (estimate_columns(written, groups, sizes, table_group_rows=group_rows) for written in (large, other))
        return {name: between(one[name], two[name]) for name in one}

    def _blob_rows(self) -> float:
        """Rows of a row group of BY_REQUEST: what its scalars allow, and the distinct values of its longest column."""
        lists = [self._sample.columns[leaf] for leaf in self._table.leaves if self._sample.columns[leaf].is_list]
        longest = max((float(column.slots.mean()) for column in lists), default=0.0) * 8
        rows_per_request = self._index.num_rows / max(self._index.num_requests, 1)
        by_scalars = max(default_settings(Layout.BY_REQUEST, one).row_group_rows for one in self._table.schemas)
        return min(by_scalars, ROW_GROUP_BYTES * rows_per_request / longest if longest else by_scalars)

    def _rows_of(self, num_bytes: int) -> float:
        """Fat rows that so many Arrow bytes hold."""
        return max(num_bytes / self._plan.row_bytes, 1.0)

    @property
    def _sizes(self) -> dict[str, float]:
        """What is known of the whole table; rows without a key are few and taken to be like the others."""
        with_key = self._index.num_rows / max(self._facts.num_rows, 1)
        known = {
            "users": float(self._index.num_users),
            "requests": float(self._index.num_requests),
            "rows": float(self._index.num_rows),
        }
        elements = {
            leaf: facts.num_values * with_key
            for leaf, facts in self._facts.columns.items()
            if leaf in self._table.leaves and self._sample.columns[leaf].is_list and not self._plan.is_whole
        }
        return known | elements

    def _written(
        self,
        layout: Layout,
        rows: np.ndarray,
        *,
        num_buckets: int = 1,
        seed: int = 0,
        once: dict[str, float] | None = None,
    ) -> Written:
        """Write these rows; bytes and sizes of each bucket that has some, or of all rows. No file stays.

        once: takes the bytes of every leaf stored once.
        """
        group = buckets_of(self._table.user_ids(rows), num_buckets) if layout.is_bucketed else np.zeros(len(rows), int)
        used, position = np.unique(group, return_inverse=True)
        place = {int(bucket): at for at, bucket in enumerate(used)}
        taken = {leaf: np.zeros(len(used)) for leaf in self._table.leaves}
        num_groups = 0
        for schema in self._table.schemas:
            leaf_of = {name: self._table.leaf_of[name] for name in self._table.counted(schema)}
            with StagedFiles(self._target(schema, layout, num_buckets)) as files:
                batches = self._table.batches(schema, rows)
                write_rows(files, batches, schema, seed=seed, spill_dir=self._directory)
                paths = [file.file_path for file in files.data_files]
                for file, path in zip(files.data_files, paths):
                    footer = pq.read_metadata(local_path(path))
                    num_groups += footer.num_row_groups
                    at = place[file.partition[0]] if layout.is_bucketed else 0
                    for name, num_bytes in chunk_bytes(footer):
                        if name in leaf_of:
                            taken[leaf_of[name]][at] += num_bytes
                if once is not None and layout is Layout.BY_REQUEST:
                    of_codec = store_once_bytes(FileSource(paths, schema).batches(), schema, CODECS).values()
                    for name, leaf in leaf_of.items():
                        once[leaf] = once.get(leaf, 0.0) + min(of_column[name] for of_column in of_codec)
        group_rows = len(rows) * len(self._table.schemas) / max(num_groups, 1)
        return Written(taken, self._sizes_of(rows, position, len(used)), group_rows)

    def _target(self, schema: EngagementSchema, layout: Layout, num_buckets: int) -> Table:
        """The table that files are written for; it stays empty."""
        name = f"audit.{layout.value}_{num_buckets}_{self._table.schemas.index(schema)}"
        if not self._catalog.table_exists(name):
            create_table(self._catalog, name, schema, layout, num_buckets=num_buckets)
        return self._catalog.load_table(name)

    def _sizes_of(self, rows: np.ndarray, group: np.ndarray, num_groups: int) -> dict[str, np.ndarray]:
        def count(identity: np.ndarray) -> np.ndarray:
            _, first = np.unique(identity, return_index=True)
            return np.bincount(group[first], minlength=num_groups).astype(np.float64)

        sizes = {
            "users": count(self._sample.user[rows]),
            "requests": count(self._sample.request[rows]),
            "rows": np.bincount(group, minlength=num_groups).astype(np.float64),
        }
        for leaf in self._table.leaves:
            if self._sample.columns[leaf].is_list:
                sizes[leaf] = np.bincount(group, self._sample.columns[leaf].slots[rows], minlength=num_groups)
        return sizes


def chunk_bytes(footer: pq.FileMetaData) -> Iterator[tuple[str, int]]:
    """Top-level column and compressed bytes of every column chunk."""
    for group in (footer.row_group(index) for index in range(footer.num_row_groups)):
        for chunk in (group.column(leaf) for leaf in range(group.num_columns)):
            yield chunk.path_in_schema.split(".")[0], chunk.total_compressed_size


def _thinned(sample: Sample, num_rows: int, *, is_whole: bool) -> np.ndarray:
    """The single rows, so thinned out that two of one request meet in a page as rarely as in a
    shuffle of the whole table.

    They were drawn from the row groups that were read. If those are a part of the table, rows of one request are that
    much more frequent among them: all of them stay of that part of the requests, and one of each other request.
    """
    rows = np.flatnonzero(sample.in_single)
    read_share = sample.rows_touched / max(num_rows, 1)
    if is_whole or read_share > 0.99:
        return rows
    request = sample.request[rows]
    first = np.zeros(len(rows), bool)
    first[np.unique(request, return_index=True)[1]] = True
    return rows[first | below_rate(request, read_share)]
