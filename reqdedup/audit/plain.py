"""The sample in plain columns, in any order and with any settings of a writer, scaled up to the table.

Of these figures only differences matter (what a cause costs) or a comparison with what is there (the check), so they
carry no interval of their own; the cheapest step takes that of SORTED_LARGE_PAGES, which is the same form.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from reqdedup.audit.footers import TableFacts
from reqdedup.audit.repeats import Repeats, RequestRows
from reqdedup.audit.sample import Sample, SamplePlan
from reqdedup.audit.scan import RequestIndex
from reqdedup.audit.values import SampleColumn
from reqdedup.audit.writing import LARGE_PAGES, OUR_SCALARS, WriterSettings, without_dictionary, written_bytes
from reqdedup.storage.iceberg.settings import DEFAULT_FILE_BYTES, LARGE_PAGE_BYTES

SORTED_ROWS, AS_THEY_LIE = "sorted", "as they lie"
LONG_TEXT_BYTES = 64
"""Text of at least this mean length is written as a sequence is."""


class PlainSample:
    """Columns of one sample, plain; each method gives the whole table's estimated bytes."""

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
        self.sample, self.repeats = sample, repeats
        self._facts, self._index = facts, index
        self._directory, self._number = directory, itertools.count()
        self._orders = {SORTED_ROWS: requests.order, AS_THEY_LIE: np.flatnonzero(sample.in_stretch)}
        file_rows = DEFAULT_FILE_BYTES / plan.row_bytes
        self._group_rows = {SORTED_ROWS: min(file_rows, index.num_rows / num_buckets), AS_THEY_LIE: file_rows}

    def bytes(
        self, name: str, settings: WriterSettings, order: str = SORTED_ROWS, group_rows: int | None = None
    ) -> float:
        """The column's bytes in an order: SORTED_ROWS, or AS_THEY_LIE, stretches of the table's own."""
        rows, column = self._orders[order], self.sample.columns[name]
        count = max(1, round(len(rows) / (group_rows or self._group_rows[order])))
        groups = np.array_split(rows, count)
        path = self._directory / f"{next(self._number)}.parquet"
        slots = self._facts.columns[name].num_values * self._index.num_rows / max(self._facts.num_rows, 1)
        return written_bytes(path, column, groups, settings) * slots / max(int(column.slots[rows].sum()), 1)

    def large_pages(self, name: str) -> tuple[float, WriterSettings]:
        """The column's bytes in large pages, and the settings that make them: lists with a
        dictionary of elements if that is smaller."""
        column = self.sample.columns[name]
        plain = self._settings(column, name)
        total = self.bytes(name, plain)
        if not column.is_list:
            return total, plain
        with_dictionary = replace(plain, dictionary=True, dictionary_bytes=LARGE_PAGE_BYTES)
        other = self.bytes(name, with_dictionary)
        return (other, with_dictionary) if other < total else (total, plain)

    def _settings(self, column: SampleColumn, name: str) -> WriterSettings:
        is_long = column.is_stored and float(column.row_bytes.mean()) >= LONG_TEXT_BYTES
        if column.is_list or is_long:
            return LARGE_PAGES
        is_item_float = not self.repeats[name].is_request_level and pa.types.is_floating(column.leaf.type)
        return without_dictionary(OUR_SCALARS) if is_item_float else OUR_SCALARS
