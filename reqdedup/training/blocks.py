"""Whole requests in Arrow memory, and RequestBatches taken from them.

A block is a deduplicated `pa.RecordBatch` with the bounds of its requests. Taking requests out of it copies each
request-level value once, whatever the fan-out, and not at all where they lie one after the other: a range of requests
becomes slices of the Arrow buffers (read-only by contract: nobody may write into a batch). There is no Python loop over
rows or history events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from reqdedup.arrays.ranges import offsets_of, ranges
from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.dedup.encoding import numpy_from_blobs, take_blobs
from reqdedup.dedup.rows import compact_batch
from reqdedup.models.transforms import cut_histories, history_name
from reqdedup.schema import HISTORY_END, ITEM_ID, REQUEST_ID, REQUEST_TS, USER_ID, Column, EngagementSchema, Kind, Level
from reqdedup.values import numbers, type_of


@dataclass(frozen=True)
class RequestBlock:
    """Whole requests, each a run of rows.

    rows: a deduplicated batch of `schema`, requests contiguous; its dictionaries may hold values that no row uses.
    row_offsets: [R + 1] int64, the rows of request r are row_offsets[r] : row_offsets[r + 1], none empty.
    """

    rows: pa.RecordBatch
    row_offsets: np.ndarray
    schema: EngagementSchema

    @classmethod
    def of(cls, rows: pa.RecordBatch, schema: EngagementSchema) -> RequestBlock:
        """Requests are runs of equal (user_id, request_id): two that share every sequence are still two."""
        user_id, request_id = _numbers(rows, USER_ID), _numbers(rows, REQUEST_ID)
        starts = np.flatnonzero((user_id[1:] != user_id[:-1]) | (request_id[1:] != request_id[:-1])) + 1
        ends = [0, rows.num_rows] if rows.num_rows else [0]
        return cls(rows, np.concatenate([ends[:1], starts, ends[1:]]).astype(np.int64), schema)

    @property
    def num_requests(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Bytes of the Arrow buffers that the block keeps alive, shared ones counted once."""
        return self.rows.get_total_buffer_size()

    def user_ids(self) -> np.ndarray:
        """[R]"""
        return _numbers(self.rows, USER_ID)[self.row_offsets[:-1]]

    def request_times(self) -> np.ndarray:
        """[R] int64 [microseconds since 1970, UTC]"""
        return column_values(self.rows.column(REQUEST_TS), self.schema[REQUEST_TS])[self.row_offsets[:-1]]

    def where_requests(self, keep_R: np.ndarray) -> RequestBlock:
        """Only these requests ([R] bool)."""
        return self if keep_R.all() else self.where_rows(np.repeat(keep_R, np.diff(self.row_offsets)))

    def where_rows(self, keep_B: np.ndarray) -> RequestBlock:
        """Only these rows ([B] bool), and only the requests that keep one."""
        if keep_B.all():
            return self
        kept_before = np.concatenate([[0], np.cumsum(keep_B)])[self.row_offsets]
        row_offsets = np.unique(kept_before)
        rows = self.rows.filter(pa.array(keep_B))
        if len(row_offsets) < 0.8 * len(self.row_offsets):  # else the values that nobody uses are not worth a copy
            rows = compact_batch(rows)
        return replace(self, rows=rows, row_offsets=row_offsets)

    def where_label(self, label: str) -> RequestBlock:
        """Only the rows whose label is positive; missing labels are not."""
        return self.where_rows(np.nan_to_num(column_values(self.rows.column(label), self.schema[label])) > 0)

    def in_chunks(self, max_rows: int) -> RequestBlock:
        """Every request cut into runs of at most `max_rows` rows, each a request of its own from here on.

        More users fit into a batch of so many rows; the price is that a request's values move once per chunk.
        """
        chunks_R = -(-np.diff(self.row_offsets) // max_rows)
        starts = ranges(np.zeros(len(chunks_R), np.int64), chunks_R) * max_rows
        starts += np.repeat(self.row_offsets[:-1], chunks_R)
        return replace(self, row_offsets=np.concatenate([starts, self.row_offsets[-1:]]))

    @staticmethod
    def concatenate(blocks: Sequence[RequestBlock]) -> RequestBlock:
        """All requests of several blocks; copies each distinct sequence once."""
        if len(blocks) == 1:
            return blocks[0]
        schema = blocks[0].schema
        columns = []
        for name in blocks[0].rows.schema.names:
            parts = [block.rows.column(name) for block in blocks]
            columns.append(
                _concatenate_blobs(parts) if pa.types.is_dictionary(parts[0].type) else pa.concat_arrays(parts)
            )
        rows = pa.RecordBatch.from_arrays(columns, schema=blocks[0].rows.schema)
        lengths = np.concatenate([np.diff(block.row_offsets) for block in blocks])
        return RequestBlock(rows, offsets_of(lengths), schema)

    def take(self, requests_R: np.ndarray, *, cut: HistoryCut | None = None) -> RequestBatch:
        """These requests (positions in the block, [R]) with all their rows, in the order given."""
        first_B_of_R, fan_out_R = (
            self.row_offsets[requests_R],
            self.row_offsets[requests_R + 1] - self.row_offsets[requests_R],
        )
        is_range = len(requests_R) > 0 and bool(np.all(np.diff(requests_R) == 1))
        if is_range:
            start, end = int(first_B_of_R[0]), int(first_B_of_R[-1] + fan_out_R[-1])
        rows_B = None if is_range else ranges(first_B_of_R, fan_out_R)

        def of_rows(column: Column) -> torch.Tensor:
            array = self.rows.column(column.name)
            return _tensor(array.slice(start, end - start) if rows_B is None else array.take(pa.array(rows_B)), column)

        def of_requests(column: Column) -> torch.Tensor:
            return _tensor(self.rows.column(column.name).take(pa.array(first_B_of_R)), column)

        request: dict[str, torch.Tensor] = {REQUEST_ID: of_requests(self.schema[REQUEST_ID])}
        sequences: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for column in _readable(self.schema, Level.REQUEST):
            if column.kind is Kind.SCALAR:
                request[column.name] = of_requests(column)
                continue
            values, offsets = self._blobs(column, first_B_of_R)
            if column.kind is Kind.VECTOR:
                request[column.name] = _from_numpy(values).view(len(requests_R), column.width)
            else:
                sequences[column.name] = (values, offsets)
        if cut is not None:
            history_end_R = request[HISTORY_END].numpy() if HISTORY_END in request else None
            sequences = cut_histories(sequences, cut, history_end_R)
        row_offsets = offsets_of(fan_out_R)
        return RequestBatch(
            user_id_R=of_requests(self.schema[USER_ID]),
            item_id_B=of_rows(self.schema[ITEM_ID]),
            request_of_row_B=torch.from_numpy(np.repeat(np.arange(len(requests_R)), fan_out_R)),
            row_offsets_R1=torch.from_numpy(row_offsets),
            history_offsets_R1=torch.from_numpy(_common_offsets(sequences, len(requests_R))),
            request=request,
            row={column.name: of_rows(column) for column in _readable(self.schema, Level.ITEM, Level.LABEL)},
            history={history_name(name): _from_numpy(values) for name, (values, _) in sequences.items()},
        )

    def _blobs(self, column: Column, first_B_of_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One value per request, packed, with offsets."""
        array = self.rows.column(column.name)
        codes = array.indices.to_numpy()[first_B_of_R]
        if len(codes) and np.all(np.diff(codes) == 1):
            blobs = array.dictionary.slice(int(codes[0]), len(codes))
        else:
            blobs = take_blobs(array.dictionary, codes)
        return numpy_from_blobs(blobs, column.dtype)


def empty_batch(schema: EngagementSchema) -> RequestBatch:
    """A batch of no requests with every tensor that batches of this schema have: what a rank
    without data computes on."""
    none = torch.zeros(0, dtype=torch.int64)

    def empty(column: Column) -> torch.Tensor:
        shape = (0, column.width) if column.kind is Kind.VECTOR else 0
        return torch.from_numpy(np.zeros(shape, type_of(column)))

    scalars_and_vectors = [c for c in _readable(schema, Level.REQUEST) if c.kind is not Kind.SEQUENCE]
    return RequestBatch(
        user_id_R=none,
        item_id_B=none,
        request_of_row_B=none,
        row_offsets_R1=torch.zeros(1, dtype=torch.int64),
        history_offsets_R1=torch.zeros(1, dtype=torch.int64),
        request={REQUEST_ID: none, **{column.name: empty(column) for column in scalars_and_vectors}},
        row={column.name: empty(column) for column in _readable(schema, Level.ITEM, Level.LABEL)},
        history={history_name(column.name): empty(column) for column in schema.sequences},
    )


def _readable(schema: EngagementSchema, *levels: Level) -> list[Column]:
    """The columns that become tensors: strings do not."""
    return [column for column in schema.at(*levels) if column.is_number]


def _numbers(rows: pa.RecordBatch, name: str) -> np.ndarray:
    return rows.column(name).to_numpy()


def _tensor(array: pa.Array, column: Column) -> torch.Tensor:
    """One scalar column as a tensor, without a copy if it has no nulls and its own type."""
    return _from_numpy(column_values(array, column))


def column_values(array: pa.Array, column: Column) -> np.ndarray:
    """One scalar column, no string, as a model reads it."""
    if column.dtype == "timestamp":
        array = array.cast(pa.int64())
    is_null = None
    if array.null_count:
        is_null = array.is_null().to_numpy(zero_copy_only=False)
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    return numbers(column, array.to_numpy(zero_copy_only=False), is_null)


def _from_numpy(values: np.ndarray) -> torch.Tensor:
    """A tensor on the same memory. Arrow's is read-only, of which torch.from_numpy warns; DLPack carries it quietly."""
    if values.flags.writeable:
        return torch.from_numpy(values)
    if len(values) == 0:
        return torch.from_numpy(values.copy())
    return torch.from_dlpack(pa.array(values))


def _concatenate_blobs(parts: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    before = offsets_of(np.array([len(part.dictionary) for part in parts]))
    indices = np.concatenate(
        [part.indices.to_numpy() + first for part, first in zip(parts, before[:-1].astype(np.int32))]
    )
    values = pa.concat_arrays([part.dictionary for part in parts])
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), values)


def _common_offsets(sequences: dict[str, tuple[np.ndarray, np.ndarray]], num_requests: int) -> np.ndarray:
    """The offsets that all sequences share, [R + 1]."""
    common: np.ndarray | None = None
    for name, (_, offsets) in sequences.items():
        if common is not None and not np.array_equal(common, offsets):
            raise ValueError(
                f"column {name}: its sequences must be as long as those of {next(iter(sequences))} in every request, "
                "found other lengths; one event is one element of each history column"
            )
        common = offsets if common is None else common
    return np.zeros(num_requests + 1, np.int64) if common is None else common
