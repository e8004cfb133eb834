"""Keys of one side in the other against plain Python: a dictionary of first rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqdedup.arrays.keys import key_runs, run_starts
from reqdedup.arrays.match import match_keys, match_runs, match_sorted, unmatched

EXTREMES = [-(2**63), -(2**63) + 1, -1, 0, 1, 2**31, 2**63 - 1]
ids = st.one_of(st.integers(0, 4), st.sampled_from(EXTREMES))


def tuples(depth: int, *, max_size: int = 30):
    return st.lists(st.tuples(*[ids] * depth), max_size=max_size)


def columns(rows: list[tuple[int, ...]], depth: int) -> list[np.ndarray]:
    return [np.array([row[level] for row in rows], np.int64) for level in range(depth)]


def requests(
    seed: int, *, fan_out: int, missing: float, extra: float
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Both sides of 200 requests: of the left rows the right side lacks a share, and has others of its own."""
    rng = np.random.default_rng(seed)
    keys = sorted(
        {(request // 3, request, int(item)) for request in range(200) for item in rng.integers(0, 999, fan_out)}
    )
    is_left, is_right = rng.random(len(keys)) >= extra, rng.random(len(keys)) >= missing
    return [key for key, here in zip(keys, is_left) if here], [key for key, here in zip(keys, is_right) if here]


@pytest.mark.slow
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


@pytest.mark.parametrize("extra", [0, 0.02, 0.5])
@pytest.mark.parametrize("missing", [0, 0.02, 0.2, 0.9])
@pytest.mark.parametrize("fan_out", [1, 7, 40])
def test_gaps_on_either_side_few_or_many_are_found(fan_out, missing, extra):
    left, right = requests(fan_out, fan_out=fan_out, missing=missing, extra=extra)
    first_row = {key: row for row, key in enumerate(right)}
    expected = [first_row.get(key, -1) for key in left]
    assert match_keys(columns(left, 3), columns(right, 3)).tolist() == expected
    shuffled = np.random.default_rng(0).permutation(len(left))
    found = match_keys([column[shuffled] for column in columns(left, 3)], columns(right, 3))
    assert found.tolist() == [expected[row] for row in shuffled]


@pytest.mark.slow
@given(left=tuples(3), right=tuples(3), gaps=st.sets(st.integers(0, 30)), is_part=st.booleans(), in_order=st.booleans())
def test_the_fast_path_finds_what_the_plain_one_finds(left, right, gaps, is_part, in_order):
    if is_part:
        right = [key for row, key in enumerate(sorted(set(left))) if row not in gaps]
    # In request order the left items may come in any order, and twice.
    left = sorted(left) if in_order else sorted(left, key=lambda key: key[:2])
    sides = [key_runs(columns(rows, 3))[0] for rows in (left, sorted(right))]
    position, match = match_runs(*sides), match_sorted(*sides)
    assert match.found.tolist() == (position >= 0).tolist()
    assert match.position.tolist() == position[position >= 0].tolist()


@pytest.mark.parametrize("gaps", [0, 1, 3, 16, 17])
@pytest.mark.parametrize("at", ["start", "end", "spread"])
def test_so_many_gaps_in_a_request_are_found_wherever_they_are(gaps, at):
    items = np.arange(50) * 3
    missing = {"start": items[:gaps], "end": items[len(items) - gaps :], "spread": items[7::2][:gaps]}[at]
    left = [(0, 0, 1), *((1, 5, item) for item in items), (2, 7, 1)]
    right = [key for key in left if key[2] not in missing or key[0] != 1]
    match = match_sorted(key_runs(columns(left, 3))[0], key_runs(columns(right, 3))[0])
    assert match.found.tolist() == [key in set(right) for key in left]
    assert match.position.tolist() == list(range(len(right)))


@pytest.mark.slow
def test_a_large_match_with_gaps_equals_numpy_set_operations():
    rng = np.random.default_rng(0)
    packed = np.sort(rng.choice(10**6, 200_000, replace=False))
    left, right = packed[rng.random(len(packed)) < 0.9], packed[rng.random(len(packed)) < 0.9]

    def split(key: np.ndarray) -> list[np.ndarray]:
        return [key // 10_000, key // 100 % 100, key % 100]

    position = match_keys(split(left), split(right))
    np.testing.assert_array_equal(position >= 0, np.isin(left, right))
    np.testing.assert_array_equal(right[position[position >= 0]], np.intersect1d(left, right))
