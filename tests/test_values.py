"""Which plain values a column takes: one at a time by the definition, a list of them at once, with the same outcome."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.schema import Column, Kind, Level
from reqdedup.values import TYPES, UnfitError, check_readable, many, null_of, one

COLUMNS = [Column(name="x", dtype=dtype, level=Level.ITEM) for dtype in TYPES]
VECTOR = Column(name="x", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=2)
VALUES = [
    *(0, 1, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**70, 10**400),
    *(0.0, -0.5, 3.4e38, 3.5e38, 1.7e308, math.inf, -math.inf, math.nan),
    *(True, False, None, "7", b"7", [], [1], (1,), {}, np.int32(3), np.float32(0.5), np.bool_(True), 1j),
]


def outcome(take, *arguments, **options):
    """What comes of it; of a refusal, nothing."""
    try:
        return take(*arguments, **options)
    except UnfitError:
        return None


@pytest.mark.parametrize("column", COLUMNS, ids=list(TYPES))
def test_a_list_takes_what_each_of_its_values_is_taken_for(column):
    """Every two values, so that none hides behind what numpy makes of them together."""
    for first in VALUES:
        for second in VALUES:
            ones = [outcome(one, value, column) for value in (first, second)]
            found = outcome(many, [first, second], column)
            if None in ones:
                assert found is None, (first, second, found)
            else:
                np.testing.assert_array_equal(found, np.array(ones, TYPES[column.dtype]), strict=True)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(VALUES), max_size=4), st.sampled_from(COLUMNS))
def test_the_first_value_that_does_not_fit_is_named_with_its_place(values, column):
    odd = [outcome(one, value, column) is None for value in values]
    if any(odd):
        with pytest.raises(
            UnfitError, match=rf"^here: a list of {column.dtype} required, .* at place {odd.index(True)}"
        ):
            many(values, column, "here")
    else:
        assert len(many(values, column)) == len(values)


def test_a_null_is_what_the_caller_says_and_nan_a_value_of_tables_alone():
    for column in COLUMNS:
        value = True if column.dtype == "bool" else 3
        found = many([value, None], column, default=null_of(column), takes_nan=True)
        np.testing.assert_array_equal(found, np.array([value, null_of(column)], TYPES[column.dtype]), strict=True)
    floats = COLUMNS[list(TYPES).index("float32")]
    assert np.isnan(many([None, math.nan], floats, default=math.nan, takes_nan=True)).all()
    with pytest.raises(UnfitError, match="found nan at place 1"):
        many([1.0, math.nan], floats)
    with pytest.raises(UnfitError, match="found None at place 1"):
        many([math.nan, None], floats, takes_nan=True)
    with pytest.raises(UnfitError, match="found inf at place 1"):
        many([math.nan, math.inf], floats, takes_nan=True)


@pytest.mark.parametrize(
    "vector", [[1], [1, 2, 3], None, 1.0, "ab", [1, "b"], [1, None], [1, True], [[1], [2]], [1, math.inf], {"a": 1}]
)
def test_a_vector_is_a_list_of_its_width_of_finite_numbers(vector):
    assert one([1, 0.5], VECTOR).tolist() == one(np.array([1, 0.5]), VECTOR).tolist() == [1, 0.5]
    for take in (lambda: one(vector, VECTOR), lambda: many([[1, 2], vector], VECTOR)):
        with pytest.raises(UnfitError, match=r"x: 2 numbers \(float32\) required, found"):
            take()


@pytest.mark.parametrize(
    "values", [["x" * 10**6, *range(2000)], [["x" * 10**6], *range(2000)], [["x" * 10**6, *range(2000)]]]
)
def test_one_long_text_among_numbers_costs_no_memory(values):
    """numpy would make an array of texts of it, each as long as the longest: eight gigabytes here."""
    tracemalloc.start()
    try:
        for column in (COLUMNS[1], VECTOR):
            assert outcome(many, values, column) is None
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_what_is_returned_may_be_written_to_and_is_no_copy_without_need():
    ids = np.arange(5)
    assert many(ids, COLUMNS[2]) is ids
    ids.flags.writeable = False
    assert many(ids, COLUMNS[2]).flags.writeable
    assert many([], VECTOR).shape == (0, 2)
    assert many([], COLUMNS[0]).dtype == bool


@pytest.mark.parametrize("dtype", ["string", "decimal(9,2)", "list<int32>", "", None, 7])
def test_a_type_that_no_tensor_has_is_no_input(dtype):
    with pytest.raises(
        ValueError, match="input x: a dtype of bool, int32, int64, float32, float64, timestamp required"
    ):
        check_readable("x", dtype)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([value for value in VALUES if type(value) is float]), min_size=2, max_size=2))
def test_a_vector_of_floats_is_what_a_list_of_such_vectors_has(values):
    found, wanted = outcome(one, values, VECTOR), outcome(many, [values], VECTOR)
    assert (found is None) == (wanted is None)
    if wanted is not None:
        np.testing.assert_array_equal(found, wanted[0], strict=True)
