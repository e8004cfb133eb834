"""Histories of MovieLens by sittings and by ratings, the two presets: empty ones, their length, rows per request.

python -m benchmarks.movielens_histories ml-100k       # its folder; counts, not times: a second, the same everywhere
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.record import write_results
from reqdedup.logs import read_log

CLAIM = "histories of MovieLens-100K"


def rows(folder: str) -> Iterator[dict[str, Any]]:
    for preset in ("movielens", "movielens_ratings"):
        reader = read_log(folder, preset=preset)
        lengths = np.concatenate([batch.column("history_end").to_numpy() for batch in reader])
        yield {
            "claim": CLAIM,
            "variant": preset,
            "value": float(100 * np.mean(lengths == 0)),
            "unit": "% of the rows with an empty history",
            "target": None,
            "mean_length": float(np.mean(lengths)),
            "rows_per_request": reader.counts.fan_out,
            "sizes": {"rows": reader.counts.rows, "requests": reader.counts.requests, "users": reader.counts.users},
        }


if __name__ == "__main__":
    print(write_results("movielens", rows(sys.argv[1])))
