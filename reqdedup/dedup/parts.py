"""One input batch taken apart: its requests once, and which of them each row belongs to; what is wrong with it, said.

A *part* is what one batch holds of one request. A request may come in several batches, its rows in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.stored import is_nested, same_values
from reqdedup.schema import NUMBER_WIDTH_BYTES, REQUEST_ID, USER_ID, Column


def split_parts(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Part of each row, [B] int64, and the first row of each part, [P] int64; parts are numbered in
    order of arrival."""
    key = [batch.column(USER_ID).to_numpy(), batch.column(REQUEST_ID).to_numpy()]
    starts = run_starts(key)
    lengths = np.diff(np.append(starts, batch.num_rows))
    run_key = [column[starts] for column in key]
    order = np.lexsort((run_key[1], run_key[0]))  # stable: equal keys stay in order of arrival
    first = run_starts([column[order] for column in run_key])
    if len(first) == len(starts):
        return np.repeat(np.arange(len(starts)), lengths), starts
    first_run = order[first]
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first_run)] = np.arange(len(first))
    part_of_run = np.empty(len(starts), np.int64)
    part_of_run[order] = np.repeat(rank, np.diff(np.append(first, len(order))))
    return np.repeat(part_of_run, lengths), starts[np.sort(first_run)]


def check_one_value_per_request(
    batch: pa.RecordBatch, columns: Sequence[Column], part_of_row: np.ndarray, first_row: np.ndarray
) -> None:
    """Raise ValueError naming the column and the request where a request-level value differs inside a request."""
    # Where the rows of a part are neighbours, each is compared with the one before it, which copies nothing.
    is_contiguous = bool(np.all(part_of_row[1:] >= part_of_row[:-1]))
    first_row_of_row = None if is_contiguous else first_row[part_of_row]
    for column in columns:
        array = batch.column(column.name)
        if column.name in (USER_ID, REQUEST_ID):  # what tells one part from the next
            continue
        same = _as_first(array.indices if column.is_blob else array, first_row, first_row_of_row)
        if column.is_blob and not same.all():  # two codes may stand for the same bytes
            codes = array.dictionary.dictionary_encode().indices.take(array.indices)
            same = _as_first(codes, first_row, first_row_of_row)
        if not same.all():
            row = int(np.argmin(same))
            user, request = (batch.column(key)[row].as_py() for key in (USER_ID, REQUEST_ID))
            raise two_values_error(column.name, user, request, f"row {row} of the batch")


def _as_first(array: pa.Array, first_row: np.ndarray, first_row_of_row: np.ndarray | None) -> np.ndarray:
    """If each value is that of the first row of its part, [N] bool; None: each part's rows are neighbours."""
    if first_row_of_row is not None:
        return equal_values(array, array.take(pa.array(first_row_of_row)))
    same = np.ones(len(array), bool)
    same[1:] = equal_values(array[1:], array[:-1])
    same[first_row] = True
    return same


class RequestValuesError(ValueError):
    """Values of a request that do not go together.

    columns: one with two values, or two sequences of different lengths.  user_id, request_id: whose.
    """

    def __init__(self, message: str, *, columns: tuple[str, ...], user_id: int, request_id: int) -> None:
        super().__init__(message)
        self.columns, self.user_id, self.request_id = columns, user_id, request_id

    def __reduce__(self) -> tuple[Any, ...]:
        known: dict[str, Any] = {"columns": self.columns, "user_id": self.user_id, "request_id": self.request_id}
        return partial(type(self), **known), self.args


def two_values_error(name: str, user: int, request: int, where: str) -> RequestValuesError:
    return RequestValuesError(
        f"column {name}: one value per request required, found two in request {request} of user {user} ({where}); "
        "make the column item-level, or give the requests ids of their own",
        columns=(name,),
        user_id=user,
        request_id=request,
    )


def equal_values(left: pa.Array, right: pa.Array) -> np.ndarray:
    """Where the values are the same, [N] bool; null equals null, NaN equals NaN, and -0.0 is not 0.0.

    What counts as the same here is stored once, so it must be the same to `content_checksum` too.
    """
    if is_nested(left.type):
        return same_values(left, right, equal_values)
    if not (left.null_count or right.null_count or pa.types.is_floating(left.type)):
        if pa.types.is_timestamp(left.type):
            left, right = left.view(pa.int64()), right.view(pa.int64())
        if pa.types.is_integer(left.type):
            return left.to_numpy() == right.to_numpy()
        return pc.equal(left, right).to_numpy(zero_copy_only=False)
    same = pc.fill_null(pc.equal(left, right), False)
    if pa.types.is_floating(left.type):
        same = pc.and_(same, pa.array(_signs(left) == _signs(right)))
        same = pc.or_(same, pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), False))
    same = pc.or_(same, pc.and_(pc.is_null(left), pc.is_null(right)))
    return same.to_numpy(zero_copy_only=False)


def _signs(array: pa.Array) -> np.ndarray:
    return np.signbit(pc.fill_null(array, 0).to_numpy(zero_copy_only=False))


def check_blobs(array: pa.LargeBinaryArray, column: Column) -> None:
    """Raise ValueError for a null, or for a blob that is no whole number of elements."""
    if array.null_count:
        raise ValueError(f"column {column.name}: blobs cannot be null, found {array.null_count}; store an empty value")
    width = NUMBER_WIDTH_BYTES[column.dtype]
    lengths = blob_bytes(array)
    if np.any(lengths % width):
        raise ValueError(
            f"column {column.name}: every blob must be whole {column.dtype}s of {width} bytes, found one of "
            f"{int(lengths[np.argmax(lengths % width > 0)])} bytes"
        )


def check_sequence_lengths(requests: pa.RecordBatch, sequences: Sequence[Column]) -> None:
    """Raise ValueError if sequences of a request differ in length: they are columns of the same events."""
    if not sequences:
        return
    lengths = [blob_bytes(requests.column(c.name)) // NUMBER_WIDTH_BYTES[c.dtype] for c in sequences]
    for column, found in zip(sequences[1:], lengths[1:]):
        if not np.array_equal(found, lengths[0]):
            row = int(np.argmax(found != lengths[0]))
            user, request = (requests.column(key)[row].as_py() for key in (USER_ID, REQUEST_ID))
            raise RequestValuesError(
                f"request {request} of user {user}: sequences of one length required, found {int(lengths[0][row])} "
                f"events in {sequences[0].name} and {int(found[row])} in {column.name}",
                columns=(sequences[0].name, column.name),
                user_id=user,
                request_id=request,
            )


def blob_bytes(array: pa.Array) -> np.ndarray:
    """Length of each value of a binary array [bytes], [N] int64; 0 for a null."""
    return pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
