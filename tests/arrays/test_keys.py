"""Sorted composite keys against plain Python: tuples and `bisect`."""

from __future__ import annotations

import bisect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.arrays.keys import count_up_to, first_disorder, key_runs, order_in_groups, run_starts
from reqdedup.arrays.ranges import row_numbers

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**63 - 1]
ids = st.one_of(st.integers(0, 4), st.sampled_from(EXTREMES))


def tuples(depth: int, *, max_size: int = 30):
    return st.lists(st.tuples(*[ids] * depth), max_size=max_size)


def columns(rows: list[tuple[int, ...]], depth: int) -> list[np.ndarray]:
    return [np.array([row[level] for row in rows], np.int64) for level in range(depth)]


@pytest.mark.slow
@given(rows=tuples(2))
def test_keys_are_in_order_exactly_where_sorting_changes_nothing(rows):
    found = first_disorder(columns(rows, 2))
    assert found == next((i for i in range(1, len(rows)) if rows[i] < rows[i - 1]), -1)
    assert (found == -1) == (sorted(rows) == rows)


@pytest.mark.parametrize("value_bits", [4, 60, 64])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_rows_go_by_group_and_value_and_equal_ones_stay_in_order(value_bits, kind):
    rng = np.random.default_rng(value_bits)
    for num_rows in (0, 1, 2, 3000):
        group = rng.integers(0, 7, num_rows).astype(kind)
        value = rng.integers(-(2 ** (value_bits - 1)), 2 ** (value_bits - 1), num_rows)
        value[1::3] = value[::3][: len(value[1::3])]  # the same value twice, in any groups
        wanted = sorted(range(num_rows), key=lambda row: (group[row], value[row]))
        assert order_in_groups(group, value).tolist() == wanted


@pytest.mark.slow
@given(rows=tuples(2))
def test_runs_start_where_the_key_changes(rows):
    assert run_starts(columns(rows, 2)).tolist() == [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]


@pytest.mark.slow
@given(rows=tuples(2), last=st.tuples(ids, ids))
def test_counting_up_to_a_key_is_bisect(rows, last):
    rows = sorted(rows)
    assert count_up_to(columns(rows, 2), last) == bisect.bisect_right(rows, last)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_runs_and_order_in_one_go_are_those_of_each_alone(depth):
    @given(rows=tuples(depth), in_order=st.booleans(), cut=st.tuples(st.integers(0, 30), st.integers(0, 30)))
    def check(rows, in_order, cut):
        rows = sorted(rows) if in_order else rows
        key = columns(rows, depth)
        for order in range(1, depth + 1):
            runs, row = key_runs(key, order)
            assert row == first_disorder(key[:order])
            assert [starts.tolist() for starts in runs.starts] == [
                run_starts(key[: level + 1]).tolist() for level in range(depth)
            ]
            same = [i for i in range(1, len(rows)) if rows[i][:-1] == rows[i - 1][:-1]]
            assert runs.rises == all(rows[i] > rows[i - 1] for i in same)
        start, end = sorted(min(edge, len(rows)) for edge in cut)
        part = runs.cut(start, end)
        assert [starts.tolist() for starts in part.starts] == [
            run_starts([column[start:end] for column in key[: level + 1]]).tolist() for level in range(depth)
        ]

    check()


def test_row_numbers_are_as_many_as_were_asked_for_whatever_other_threads_ask_for():
    sizes = np.random.default_rng(0).integers(0, 3000, (4, 500))

    def ask(of_thread: np.ndarray) -> bool:
        return all(np.array_equal(row_numbers(n), np.arange(n)) for n in of_thread.tolist())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, sizes))
    assert not row_numbers(7).flags.writeable
    assert len(row_numbers(2**20 + 1)) == 2**20 + 1
