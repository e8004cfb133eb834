"""Whole numbers are taken for times where they are some, in their unit, and not where they only look large."""

from __future__ import annotations

import numpy as np
import pytest

from reqdedup.arrays.ranges import offsets_of
from reqdedup.dedup.history_time import UNIT_DIGITS, seeming_unit, unit_of_times


def lists_of(rng: np.random.Generator, *, newest_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Times of events in seconds, lists of 0 to 40 of them, in order."""
    lengths = rng.integers(0, 41, 20)
    lists = [np.sort(1_700_000_000 + rng.integers(0, 10**7, length)) for length in lengths]
    return np.concatenate([one[::-1] if newest_first else one for one in lists]), offsets_of(lengths)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("unit", list(UNIT_DIGITS))
def test_times_of_events_in_order_have_a_unit(unit, newest_first):
    seconds, offsets = lists_of(np.random.default_rng(0), newest_first=newest_first)
    assert seeming_unit(seconds * 10 ** UNIT_DIGITS[unit], offsets) == unit


@pytest.mark.parametrize("unit", list(UNIT_DIGITS))
def test_times_of_rows_have_a_unit_between_1990_and_2099(unit):
    scale = 10 ** UNIT_DIGITS[unit]
    for low, high, expected in (
        (1_700_000_000, 1_700_086_400, unit),
        (631_152_000, 4_102_444_799, unit),
        (631_151_999, 1_700_000_000, None),
        (1_700_000_000, 4_102_444_800, None),
    ):
        assert unit_of_times(low * scale, high * scale) == expected
    assert unit_of_times(0, 0) is None
    assert unit_of_times(-5 * scale, 1_700_000_000 * scale) is None


def test_other_numbers_have_none():
    rng = np.random.default_rng(1)
    seconds, offsets = lists_of(rng)
    for other in (
        rng.permutation(seconds),  # ids of that size
        seconds - 1_699_000_000,  # counted from some start
        np.full(len(seconds), 1_700_000_000),
        np.zeros(len(seconds), np.int64),
    ):
        assert seeming_unit(other, offsets) is None
    assert seeming_unit(seconds[:0], np.zeros(1, np.int64)) is None
    assert seeming_unit(seconds[:3], np.array([0, 3])) is None
