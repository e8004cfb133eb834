"""Row numbers, offsets and ranges of packed values: what repeats, gathers and cuts of ragged arrays are made of."""

from __future__ import annotations

from functools import cache

import numpy as np

MAX_ROW_NUMBERS = 2**20
"""Row numbers that are kept: those of the batches of a join, not those of a whole table."""


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Offsets [N + 1] int64 of lengths [N], the first 0."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[n], starts[n] + 1, ... lengths[n] of them, for every n, packed: [sum(lengths)] int64."""
    lengths = np.asarray(lengths, np.int64)
    rows = np.repeat(np.asarray(starts, np.int64) - (np.cumsum(lengths) - lengths), lengths)
    rows += row_numbers(len(rows))
    return rows


def row_numbers(num_rows: int) -> np.ndarray:
    """0 to num_rows - 1, [N] int64; read-only, and the same memory again and again."""
    if num_rows > MAX_ROW_NUMBERS:
        return np.arange(num_rows)
    return _numbers(max(num_rows - 1, 0).bit_length())[:num_rows]


def greedy_ranges(*limits: tuple[int, np.ndarray]) -> list[tuple[int, int]]:
    """Consecutive ranges [start, end) over all sizes: each as long as every limit allows, at least one long.

    limits: pairs (limit, sizes [N]); the sum of a range's sizes stays at most `limit`.
    """
    totals = [(limit, np.concatenate([[0], np.cumsum(sizes)])) for limit, sizes in limits]
    count = len(totals[0][1]) - 1
    found, start = [], 0
    while start < count:
        ends = [int(np.searchsorted(total, total[start] + limit, side="right")) - 1 for limit, total in totals]
        end = max(min(ends), start + 1)
        found.append((start, end))
        start = end
    return found


@cache
def _numbers(bits: int) -> np.ndarray:
    """0 to 2^bits - 1; a thread never sees another's, since nothing of it changes once it is there."""
    numbers = np.arange(1 << bits)
    numbers.flags.writeable = False
    return numbers
