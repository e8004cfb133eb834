"""The order of a timeline's files put together, and the search of many segments at once, as plain Python does them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.sequences.timeline import order_of
from reqdedup.sequences.windows import count_below


def files_of_a_timeline(rng: np.random.Generator) -> list[list[tuple[int, int]]]:
    """Files that follow one another in time, of (user, number) each, sorted."""
    ends: dict[int, int] = {}
    files = []
    for _ in range(rng.integers(1, 5)):
        rows = []
        for user in np.unique(rng.integers(-3, 4, rng.integers(0, 5))).tolist():
            first = ends.get(user, 0)
            ends[user] = first + int(rng.integers(1, 4))
            rows += [(user, number) for number in range(first, ends[user])]
        files.append(rows)
    return files


@pytest.mark.parametrize("how", ["files in order", "files in any order", "rows in any order"])
def test_rows_of_several_files_come_in_the_order_of_user_and_number(how):
    rng = np.random.default_rng(0)
    for _ in range(100):
        files = files_of_a_timeline(rng)
        if how == "files in any order":
            rng.shuffle(files)
        rows = [row for file in files for row in file]
        if how == "rows in any order":
            rng.shuffle(rows)
        keys = {"user_id": [user for user, _ in rows], "timeline_index": [number for _, number in rows]}
        table = pa.table({name: pa.array(values, pa.int64()) for name, values in keys.items()})
        assert [tuple(rows[place]) for place in order_of(table).tolist()] == sorted(map(tuple, rows))


def test_how_many_of_a_segment_are_below_a_limit_is_what_counting_says():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 63, 1000):
        values = np.sort(rng.integers(0, 10, length))
        start, end = np.sort(rng.integers(0, length + 1, (2, 200)), axis=0)
        limit = rng.integers(-1, 12, 200)
        found = count_below(values, start, end, limit).tolist()
        assert found == [int((values[a:b] < most).sum()) for a, b, most in zip(start, end, limit)]
