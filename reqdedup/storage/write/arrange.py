"""A spilled log in the order of its layout: deduplicated batches, each of them one row group or one file's rows.

    in_request_order   one bucket: (user_id, request_id, item_id), a request whole in one batch
    in_arrival_order   one day, as it came
    in_random_order    all rows, a permutation fixed by the seed

Memory: the rows (not the blobs) of one partition, and the blobs of the batch in hand. Of a bucket with more than
RANGE_ROWS rows it is those of a stretch of its requests, and of all of it 4 bytes a row and some 50 a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.keys import order_in_groups, run_starts
from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup import encoding
from reqdedup.dedup.encoding import BLOB_TYPE, deduplicated_schema, element_type
from reqdedup.dedup.parts import blob_bytes, equal_values, two_values_error
from reqdedup.dedup.stored import has_offsets, value_bytes
from reqdedup.schema import ITEM_ID, REQUEST_ID, USER_ID, Column, EngagementSchema
from reqdedup.storage.write.spill import PART, Spill

NUM_SHUFFLE_PARTITIONS = 64
"""Rows are dealt to so many partitions at random, then each is permuted: together a uniform permutation."""

SHUFFLE_ROWS = 262_144
"""Small partitions are permuted together."""

RANGE_ROWS = 2**22
"""Rows of a bucket that are held at once, some hundred bytes each; what lies in which file does not depend on it."""

RELEASE_BYTES = 16 * 2**20
"""Read from the spill before its pages are given back: pages of a mapped file count as memory of the process."""


def in_request_order(
    spill: Spill, partition: int, *, max_rows: int, max_column_bytes: int, max_fat_bytes: int | None = None
) -> Iterator[pa.RecordBatch]:
    """The bucket's rows by (user_id, request_id, item_id), cut between requests.

    max_rows: per batch.  max_column_bytes: of one blob column's distinct values in a batch, or of one string column.
    max_fat_bytes: of the batch with every blob repeated on each of its rows. One request may be larger than any limit.
    Raises ValueError if parts of one request disagree in a request-level value.
    """
    requests = spill.requests(partition)
    user, request = spill.keys(partition)
    by_key = np.lexsort((request, user))  # stable: the parts of a request stay in order of arrival
    starts = run_starts([user[by_key], request[by_key]])
    request_of_part = np.empty(len(by_key), np.int64)
    request_of_part[by_key] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(by_key))))
    position_of_request = by_key[starts]
    _check_parts_agree(spill, requests, by_key, starts)

    part, batches = _numbers(requests, PART), spill.row_batches(partition)
    request_of_part = request_of_part.astype(np.int32)
    request_of_row = [_of_part(part, batch, request_of_part) for batch in batches]
    del part
    rows_per_request = _per_request(request_of_row, len(starts))
    column_bytes = _blob_bytes(requests, spill.schema)
    limits = [(max_rows, rows_per_request)]
    limits += [(max_column_bytes, sizes[position_of_request]) for sizes in column_bytes]
    for column in spill.schema.columns:
        if column.is_blob or not has_offsets(element_type(column)):
            continue
        if column.name in spill.row_names:
            of_row = [value_bytes(batch.column(column.name)) for batch in batches]
            limits.append((max_column_bytes, _per_request(request_of_row, len(starts), of_row)))
        else:
            of_part = np.concatenate([value_bytes(one.column(column.name)) for one in requests])
            limits.append((max_column_bytes, rows_per_request * of_part[position_of_request]))
    if max_fat_bytes is not None:
        row_bytes = sum(column_bytes, np.zeros(len(by_key), np.int64)) + scalar_bytes(spill.schema)
        limits.append((max_fat_bytes, rows_per_request * row_bytes[position_of_request]))
    ends = np.concatenate([[0], np.cumsum(rows_per_request)])
    groups = greedy_ranges(*limits)
    for first, last in greedy_ranges((RANGE_ROWS, np.diff(ends[[0, *(end for _, end in groups)]]))):
        low, high = groups[first][0], groups[last - 1][1]
        rows, request = _rows_of(spill, batches, request_of_row, low, high)
        order = order_in_groups(request - low, rows.column(ITEM_ID).to_numpy())
        for start, end in groups[first:last]:
            in_order = pa.array(order[ends[start] - ends[low] : ends[end] - ends[low]])
            yield _batch(
                spill,
                requests,
                pc.take(rows, in_order, boundscheck=False),
                position_of_request[start:end],
                np.repeat(np.arange(end - start), rows_per_request[start:end]),
            )
        del rows, request, order, in_order  # before the next ones are taken


def _per_request(
    request_of_row: Sequence[np.ndarray], num_requests: int, weights: Sequence[np.ndarray] | None = None
) -> np.ndarray:
    """Rows of each request, or the sum of the weights of its rows, [R] int64."""
    total = np.zeros(num_requests, np.int64)
    for number, request in enumerate(request_of_row):
        if len(request):
            low = int(request.min())
            found = np.bincount(request - low, None if weights is None else weights[number])
            total[low : low + len(found)] += found.astype(np.int64)
    return total


def _rows_of(
    spill: Spill, batches: Sequence[pa.RecordBatch], request_of_row: Sequence[np.ndarray], low: int, high: int
) -> tuple[pa.RecordBatch, np.ndarray]:
    """The rows of the requests from `low` to before `high`, in arrival order, and the request of each, [N] int32."""
    taken, requests, read_bytes = [], [], 0
    for batch, request in zip(batches, request_of_row):
        inside = (request >= low) & (request < high)
        requests.append(request[inside])
        if inside.all():
            taken.append(batch)
        elif inside.any():
            taken.append(batch.filter(pa.array(inside)))
            read_bytes += batch.nbytes
            if read_bytes >= RELEASE_BYTES:
                spill.release()
                read_bytes = 0
    return _together(taken), np.concatenate(requests)


def _together(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of these batches, which are given up, as one: column by column, so that not all are there twice."""
    schema = batches[0].schema
    columns = [[batch.column(name) for batch in batches] for name in schema.names]
    batches.clear()
    arrays = []
    while columns:
        pieces = columns.pop(0)
        arrays.append(pa.concat_arrays(pieces) if len(pieces) > 1 else pieces[0])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def in_arrival_order(spill: Spill, partition: int, *, max_rows: int, max_column_bytes: int) -> Iterator[pa.RecordBatch]:
    """The partition's rows as they came; limits as in `in_request_order`, cut anywhere."""
    requests, rows = spill.requests(partition), spill.rows(partition)
    position_of_row = _part_positions(requests, rows)
    column_bytes = _blob_bytes(requests, spill.schema)
    text_bytes = _text_bytes(spill, requests, rows, position_of_row)
    start = 0
    while start < rows.num_rows:
        positions = position_of_row[start : start + max_rows]
        first_use = np.zeros(len(positions), bool)
        first_use[np.unique(positions, return_index=True)[1]] = True
        limits = [(max_column_bytes, sizes[positions] * first_use) for sizes in column_bytes]
        limits += [(max_column_bytes, sizes[start : start + max_rows]) for sizes in text_bytes]
        _, length = greedy_ranges((max_rows, np.ones(len(positions), np.int64)), *limits)[0]
        yield _batch(spill, requests, rows.slice(start, length), *_by_first_use(positions[:length]))
        start += length


def in_random_order(spill: Spill, *, seed: int, max_fat_bytes: int) -> Iterator[pa.RecordBatch]:
    """All rows in a random order; `max_fat_bytes` as in `in_request_order`. Rows must have been
    dealt by `deal_rows`."""
    if spill.num_rows == 0:
        return
    requests = spill.requests(0)
    row_bytes = sum(_blob_bytes(requests, spill.schema), np.zeros(spill.num_parts, np.int64))
    row_bytes += scalar_bytes(spill.schema)
    for together in _partitions_together(spill):
        rows = pa.Table.from_batches([spill.rows(partition) for partition in together]).combine_chunks().to_batches()[0]
        rows = rows.take(pa.array(np.random.default_rng((seed, 1, together[0])).permutation(rows.num_rows)))
        position_of_row = _part_positions(requests, rows)
        text_bytes = sum(_text_bytes(spill, requests, rows, position_of_row), np.zeros(rows.num_rows, np.int64))
        for start, end in greedy_ranges((max_fat_bytes, row_bytes[position_of_row] + text_bytes)):
            yield _batch(spill, requests, rows.slice(start, end - start), *_by_first_use(position_of_row[start:end]))
        spill.release()


def _partitions_together(spill: Spill) -> list[list[int]]:
    """Partitions in groups of about SHUFFLE_ROWS rows; a union of random partitions is one."""
    partitions = spill.partitions()
    sizes = np.array([spill.num_rows_of(partition) for partition in partitions], np.int64)
    return [partitions[start:end] for start, end in greedy_ranges((SHUFFLE_ROWS, sizes))] if partitions else []


class DealRows:
    """Deals rows to NUM_SHUFFLE_PARTITIONS at random, the same ones for the same seed and order of arrival."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng((seed, 0))

    def __call__(self, num_rows: int) -> np.ndarray:
        return self._generator.integers(0, NUM_SHUFFLE_PARTITIONS, num_rows)


def scalar_bytes(schema: EngagementSchema) -> int:
    """Arrow bytes of the scalars of one row, strings taken as 16 without their text."""
    kinds = (element_type(column) for column in schema.columns if not column.is_blob)
    return sum(16 if has_offsets(kind) else (kind.bit_width + 7) // 8 for kind in kinds)


def gather(batches: Sequence[pa.RecordBatch], positions: np.ndarray, column: str) -> pa.Array:
    """One column at these positions; see `gather_columns`."""
    return gather_columns(batches, positions, [column]).column(0)


def gather_columns(batches: Sequence[pa.RecordBatch], positions: np.ndarray, columns: Sequence[str]) -> pa.RecordBatch:
    """Columns at these positions, [N] int64, of the batches laid end to end.

    It copies what it returns, at most twice; a plain `take` over chunks would first copy all of them.
    """
    ends = np.cumsum([batch.num_rows for batch in batches])
    starts = ends - [batch.num_rows for batch in batches]
    batch_of = np.searchsorted(ends, positions, side="right")
    order = np.argsort(batch_of, kind="stable")
    bounds = np.append(run_starts([batch_of[order]]), len(order))
    taken = []
    for start, end in pairwise(bounds.tolist()):
        index = int(batch_of[order[start]])
        taken.append(batches[index].select(columns).take(pa.array(positions[order[start:end]] - starts[index])))
    if not taken:
        return batches[0].select(columns).slice(0, 0)
    together = pa.concat_batches(taken) if len(taken) > 1 else taken[0]
    if np.all(order[1:] > order[:-1]):
        return together
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return together.take(pa.array(inverse))


def _by_first_use(position_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct positions in the order in which the rows first use them, [K] int64, and which of them each row has,
    [N] int64."""
    runs = run_starts([position_of_row])
    positions, code = position_of_row[runs], np.arange(len(runs))
    distinct, first, inverse = np.unique(positions, return_index=True, return_inverse=True)
    if len(distinct) < len(positions):  # not in request order: a request comes again
        rank = np.empty(len(distinct), np.int64)
        by_first = np.argsort(first)
        rank[by_first] = np.arange(len(distinct))
        positions, code = distinct[by_first], rank[inverse]
    return positions, np.repeat(code, np.diff(np.append(runs, len(position_of_row))))


def _batch(
    spill: Spill,
    requests: Sequence[pa.RecordBatch],
    rows: pa.RecordBatch,
    positions: np.ndarray,
    code_of_row: np.ndarray,
) -> pa.RecordBatch:
    """The deduplicated batch of these rows; blobs once each, in the order in which the rows first use them.

    positions: of the parts that the rows are of, each once, in order of first use, [K] int64.  code_of_row: which of
    them, [N] int64.
    """
    codes = pa.array(code_of_row.astype(np.uint32))
    names = [column.name for column in spill.request_columns if not column.is_blob]
    scalars = pc.take(gather_columns(requests, positions, names), codes, boundscheck=False)
    of_row = dict(zip(rows.schema.names, rows.columns)) | dict(zip(names, scalars.columns))
    columns = []
    for column in spill.schema.columns:
        if not column.is_blob:
            columns.append(_narrow(of_row[column.name], column, requests, positions))
            continue
        encoded = gather(requests, positions, column.name).dictionary_encode()
        indices = pc.take(encoded.indices, codes, boundscheck=False)
        columns.append(pa.DictionaryArray.from_arrays(indices, encoded.dictionary.cast(BLOB_TYPE.value_type)))
    return pa.RecordBatch.from_arrays(columns, schema=deduplicated_schema(spill.schema))


def _narrow(array: pa.Array, column: Column, requests: Sequence[pa.RecordBatch], positions: np.ndarray) -> pa.Array:
    """Text and the like with 32-bit offsets again. Raises ValueError if one request has too many for that."""
    kind = element_type(column)
    if not has_offsets(kind):
        return array
    num_bytes = int(value_bytes(array).sum())
    if num_bytes > encoding.MAX_BINARY_BYTES:  # greedy ranges leave no other reason
        user, request = (gather(requests, positions[:1], key)[0].as_py() for key in (USER_ID, REQUEST_ID))
        raise ValueError(
            f"column {column.name}: at most {encoding.MAX_BINARY_BYTES:,} bytes on the rows of one request required, "
            f"found {num_bytes:,} in request {request} of user {user}; shorten the text, or store an id in its place"
        )
    return array.cast(kind)


def _text_bytes(
    spill: Spill, requests: Sequence[pa.RecordBatch], rows: pa.RecordBatch, position_of_row: np.ndarray
) -> list[np.ndarray]:
    """Per column of text, or of other values of any length, the bytes that it takes on each row, [N] int64."""
    sizes = []
    for column in spill.schema.columns:
        if column.is_blob or not has_offsets(element_type(column)):
            continue
        if column.name in spill.row_names:
            sizes.append(value_bytes(rows.column(column.name)))
        else:
            sizes.append(np.concatenate([value_bytes(b.column(column.name)) for b in requests])[position_of_row])
    return sizes


def _numbers(batches: Sequence[pa.RecordBatch], name: str) -> np.ndarray:
    return np.concatenate([batch.column(name).to_numpy() for batch in batches])


def _part_positions(requests: Sequence[pa.RecordBatch], rows: pa.RecordBatch) -> np.ndarray:
    """Position of each row's part among the partition's parts, [N] int64."""
    part = _numbers(requests, PART)
    return _of_part(part, rows, np.arange(len(part)))


def _of_part(part: np.ndarray, rows: pa.RecordBatch, values: np.ndarray) -> np.ndarray:
    """Of each row the value of its part, [N]. part: numbers of the partition's parts, [P] int64, which rise as they
    arrived.  values: of the parts, [P]."""
    part_of_row = rows.column(PART).to_numpy()
    starts = run_starts([part_of_row])  # far fewer than rows, as those of a request are neighbours
    of_run = values[np.searchsorted(part, part_of_row[starts])]
    return np.repeat(of_run, np.diff(np.append(starts, len(part_of_row))))


def _blob_bytes(requests: Sequence[pa.RecordBatch], schema: EngagementSchema) -> list[np.ndarray]:
    """Per blob column the bytes of each part's value."""
    return [np.concatenate([blob_bytes(b.column(column.name)) for b in requests]) for column in schema.blobs]


def _check_parts_agree(
    spill: Spill, requests: Sequence[pa.RecordBatch], by_key: np.ndarray, starts: np.ndarray
) -> None:
    lengths = np.diff(np.append(starts, len(by_key)))
    is_later = np.ones(len(by_key), bool)
    is_later[starts] = False
    later, first = by_key[is_later], np.repeat(by_key[starts], lengths)[is_later]
    for start in range(0, len(later), 1024):
        piece = slice(start, start + 1024)
        for column in spill.request_columns:
            same = equal_values(
                gather(requests, first[piece], column.name), gather(requests, later[piece], column.name)
            )
            if not same.all():
                at = later[piece][int(np.argmin(same))]
                user, request = (gather(requests, np.array([at]), key)[0].as_py() for key in (USER_ID, REQUEST_ID))
                raise two_values_error(column.name, user, request, "in different batches")
