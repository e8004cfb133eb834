"""Lists, blobs and packed arrays are one another's inverses, bit for bit; Python's own `struct` is the reference."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.dedup.encoding import (
    blobs_from_lists,
    blobs_from_numpy,
    check_deduplicated,
    deduplicated_schema,
    expand_to_lists,
    list_schema,
    lists_from_blobs,
    numpy_from_blobs,
    sequence_lengths,
    take_blobs,
)
from reqdedup.dedup.rows import compact_blobs, concat, take_rows
from reqdedup.schema import Column, Kind, Level
from tests.storage.small_log import log_schema, make_log, to_batch

CODES = {"int32": "i", "int64": "q", "float32": "f", "float64": "d"}
NUMBERS = {
    "int32": st.sampled_from([0, -1, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1),
    "int64": st.sampled_from([0, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1),
    "float32": st.sampled_from([0.0, -0.0, float("nan"), float("inf")]) | st.floats(width=32),
    "float64": st.sampled_from([0.0, -0.0, float("nan"), float("inf")]) | st.floats(),
}


@st.composite
def columns_and_lists(draw) -> tuple[Column, list[list]]:
    dtype = draw(st.sampled_from(sorted(CODES)))
    lists = draw(st.lists(st.lists(NUMBERS[dtype], max_size=4), max_size=6))
    return Column(name="x", dtype=dtype, level=Level.REQUEST, kind=Kind.SEQUENCE), lists


def packed(column: Column, values: list) -> bytes:
    return struct.pack(f"<{len(values)}{CODES[column.dtype]}", *values)


@pytest.mark.slow
@settings(max_examples=80, derandomize=True, deadline=None)
@given(columns_and_lists(), st.data())
def test_lists_become_blobs_and_blobs_lists_whatever_is_cut_off_around_them(column_and_lists, data):
    column, lists = column_and_lists
    wanted = [packed(column, values) for values in lists]
    kind = {"int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64()}[column.dtype]
    make = data.draw(st.sampled_from([pa.list_, pa.large_list]))
    array = pa.array(lists, make(kind))
    start = data.draw(st.integers(0, len(lists)))
    length = data.draw(st.integers(0, len(lists) - start))
    array, wanted, lists = array.slice(start, length), wanted[start : start + length], lists[start : start + length]
    blobs = blobs_from_lists(array, column)
    assert blobs.to_pylist() == wanted
    for one in (blobs, pa.array([b"12345", *wanted])[1:], pa.array([b"1", *wanted], pa.large_binary())[1:]):
        values, offsets = numpy_from_blobs(one, column.dtype)
        assert values.tobytes() == b"".join(wanted)
        assert offsets.tolist() == [sum(map(len, lists[:i])) for i in range(len(lists) + 1)]
        assert values.dtype == np.dtype(column.dtype)
        back = lists_from_blobs(one, column)
        assert [packed(column, values) for values in back.to_pylist()] == wanted
        again = blobs_from_numpy(values, offsets)
        assert again.to_pylist() == wanted
    if len(lists):
        positions = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)), np.int64)
        assert take_blobs(blobs, positions).to_pylist() == [wanted[p] for p in positions.tolist()]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    values=st.lists(st.binary(max_size=3), min_size=1, max_size=5),
    codes=st.lists(st.integers(0, 4), max_size=9),
    data=st.data(),
)
def test_a_compacted_dictionary_has_the_rows_of_the_old_one_and_each_value_in_order_of_use(values, codes, data):
    codes = [code % len(values) for code in codes]
    array = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values, pa.binary()))
    start = data.draw(st.integers(0, len(codes)))
    array, codes = array[start:], codes[start:]
    compact = compact_blobs(array)
    assert compact.to_pylist() == [values[code] for code in codes]
    assert compact.dictionary.to_pylist() == [values[code] for code in dict.fromkeys(codes)]
    rows = data.draw(st.lists(st.integers(0, max(len(codes) - 1, 0)), max_size=6 if codes else 0))
    batch = take_rows(pa.record_batch({"x": array}), np.array(rows, np.int64))
    assert batch["x"].to_pylist() == [values[codes[row]] for row in rows]
    assert len(batch["x"].dictionary) == len({codes[row] for row in rows})
    cut = data.draw(st.integers(0, len(codes)))
    together = concat([pa.record_batch({"x": array[:cut]}), pa.record_batch({"x": array[cut:]})])["x"]
    assert together.to_pylist() == array.to_pylist()
    assert sorted(together.dictionary.to_pylist()) == sorted(
        values[code] for part in (codes[:cut], codes[cut:]) for code in set(part)
    )


def test_fat_rows_hold_each_list_on_every_row_and_lengths_are_those_of_the_lists():
    schema, batch = log_schema(), to_batch(make_log(num_users=5)).slice(3, 40)
    fat = expand_to_lists(batch, schema)
    assert fat.schema == list_schema(schema)
    for column in schema.blobs:
        blobs = batch[column.name].to_pylist()
        assert [packed(column, values) for values in fat[column.name].to_pylist()] == blobs
        lengths = sequence_lengths(batch[column.name], column)
        assert lengths.tolist() == [len(blob) // struct.calcsize(CODES[column.dtype]) for blob in blobs]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: pa.Table.from_batches([batch]), "a pa.RecordBatch required, found Table"),
        (lambda batch: batch.drop_columns(["device"]), "column device .* required, found only"),
        (
            lambda batch: batch.set_column(0, "user_id", batch["user_id"].cast(pa.int32(), safe=False)),
            "user_id must be",
        ),
        (
            lambda batch: batch.set_column(0, "user_id", batch["user_id"].cast(pa.string())),
            "user_id must be int64, found string; ids of text become numbers with `reqdedup convert`",
        ),
        (lambda batch: batch.set_column(0, "user_id", pa.nulls(len(batch), pa.int64())), "user_id must not be null"),
        (
            lambda batch: batch.set_column(8, "user_embedding", batch["history_ts"]),
            "user_embedding must have 4 elements",
        ),
    ],
)
def test_what_is_no_deduplicated_batch_is_named(change, message):
    batch = to_batch(make_log(num_users=3))
    check_deduplicated(batch, log_schema())
    assert batch.schema == deduplicated_schema(log_schema())
    with pytest.raises(ValueError, match=message):
        check_deduplicated(change(batch), log_schema())


def test_blobs_that_are_no_numbers_are_refused():
    for blobs, message in (
        (pa.array([b"123"]), "must be a multiple of 8 bytes"),
        (pa.array([None], pa.binary()), "null"),
    ):
        with pytest.raises(ValueError, match=message):
            numpy_from_blobs(blobs, "int64")
