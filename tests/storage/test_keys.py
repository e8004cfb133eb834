"""Sorted composite keys against plain Python: dictionaries, tuples and `bisect`."""

from __future__ import annotations

import bisect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.storage.keys import count_up_to, first_disorder, match_keys, order_in_groups, run_starts, unmatched

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**63 - 1]
ids = st.one_of(st.integers(0, 4), st.sampled_from(EXTREMES))


def tuples(depth: int, *, max_size: int = 30):
    return st.lists(st.tuples(*[ids] * depth), max_size=max_size)


def columns(rows: list[tuple[int, ...]], depth: int) -> list[np.ndarray]:
    return [np.array([row[level] for row in rows], np.int64) for level in range(depth)]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_left_key_is_found_where_a_dictionary_finds_it_first(depth):
    @given(left=tuples(depth), right=tuples(depth))
    def check(left, right):
        right = sorted(right)
        first_row = {key: row for row, key in reversed(list(enumerate(right)))}
        position = match_keys(columns(left, depth), columns(right, depth))
        assert position.tolist() == [first_row.get(key, -1) for key in left]
        assert unmatched(position[position >= 0], run_starts(columns(right, depth))) == len(set(right) - set(left))

    check()


@given(rows=tuples(2))
def test_keys_are_in_order_exactly_where_sorting_changes_nothing(rows):
    found = first_disorder(columns(rows, 2))
    assert found == next((i for i in range(1, len(rows)) if rows[i] < rows[i - 1]), -1)
    assert (found == -1) == (sorted(rows) == rows)


@given(rows=tuples(2))
def test_runs_start_where_the_key_changes(rows):
    assert run_starts(columns(rows, 2)).tolist() == [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]


@given(rows=tuples(2), last=st.tuples(ids, ids))
def test_counting_up_to_a_key_is_bisect(rows, last):
    rows = sorted(rows)
    assert count_up_to(columns(rows, 2), last) == bisect.bisect_right(rows, last)


def test_a_large_match_with_gaps_equals_numpy_set_operations():
    rng = np.random.default_rng(0)
    packed = np.sort(rng.choice(10**6, 200_000, replace=False))
    left, right = packed[rng.random(len(packed)) < 0.9], packed[rng.random(len(packed)) < 0.9]

    def split(key: np.ndarray) -> list[np.ndarray]:
        return [key // 10_000, key // 100 % 100, key % 100]

    position = match_keys(split(left), split(right))
    np.testing.assert_array_equal(position >= 0, np.isin(left, right))
    np.testing.assert_array_equal(right[position[position >= 0]], np.intersect1d(left, right))


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0, 1, -1, 5, 2**62, -(2**63), 2**63 - 1])), max_size=12
    ),
    shift=st.sampled_from([0, 2**40, 2**62]),
)
def test_order_in_groups_is_the_lexicographic_one_whatever_the_range(rows, shift):
    group, value = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    for one in (value, value // 2**40, value // 2**62 + shift):
        assert order_in_groups(group, one).tolist() == np.lexsort((one, group)).tolist()
