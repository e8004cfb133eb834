"""Re-ranking: a windowed SSD slate beside its definition and the package that people use, and the price of more terms.

    python -m benchmarks.rerank [--rounds 9] [--seeds 500]

500 candidates of 64 dimensions, 100 picks, a window of 10, float64. First the slates of all seeds must equal the
definition's (`by_qr`: a QR of the window at every pick); pyversity's window is another one (a basis vector that leaves
stays inside those after it), so its slates differ and only its time is compared. One thread, interleaved, CPU time.
Replaces `benchmarks/results/rerank.jsonl`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.interleaved import interleaved, line, ratio_row
from benchmarks.record import write_results
from reqdedup.rerank import SlateConfig, rerank
from reqdedup.rerank.config import PrefixOverlap, SoftSpacing, Volume

Row = dict[str, Any]
NUM, WIDTH, PICKS, WINDOW, WEIGHT = 500, 64, 100, 10, 0.5
SSD = SlateConfig(length=PICKS, window=WINDOW, terms=(Volume(weight=WEIGHT),))
ALL_TERMS = SlateConfig(
    length=PICKS,
    window=WINDOW,
    terms=(
        Volume(weight=WEIGHT),
        SoftSpacing(weight=0.3, column="is_sensitive"),
        PrefixOverlap(weight=0.3, columns=("genre", "topic", "series")),
    ),
)


def candidates(seed: int) -> dict[str, Any]:
    """Scores, ids, unit vectors and columns of one request."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((NUM, WIDTH))
    columns = {
        "is_sensitive": rng.random(NUM) < 0.2,
        "genre": rng.integers(0, 8, NUM),
        "topic": rng.integers(0, 64, NUM),
        "series": rng.integers(0, 500, NUM),
    }
    return {
        "scores": rng.standard_normal(NUM),
        "item_id": rng.permutation(NUM),
        "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        "columns": columns,
    }


def by_qr(scores: np.ndarray, vectors: np.ndarray, *, length: int, window: int, weight: float) -> list[int]:
    """The slate of windowed SSD by its definition: what the window's span does not explain, anew at every pick."""
    picks: list[int] = []
    left_N = scores.astype(np.float64)
    while len(picks) < min(length, len(scores)):
        residual_ND = vectors
        if picks:
            basis_DW, _ = np.linalg.qr(vectors[picks[-window:]].T)
            residual_ND = vectors - (vectors @ basis_DW) @ basis_DW.T
        pick = int((left_N + weight * np.sqrt((residual_ND * residual_ND).sum(1))).argmax())
        picks.append(pick)
        left_N[pick] = -np.inf
    return picks


def equal_slates(num_seeds: int) -> Row:
    """Raises AssertionError for the first seed whose slate is not the definition's."""
    for seed in range(num_seeds):
        one = candidates(seed)
        ours = rerank(SSD, **one).row.tolist()
        if ours != by_qr(one["scores"], one["vectors"], length=PICKS, window=WINDOW, weight=WEIGHT):
            raise AssertionError(f"seed {seed}: another slate than by a QR at every pick")
    return {
        "claim": "windowed SSD", "variant": "slates equal to the definition", "value": num_seeds,
        "unit": f"of {num_seeds} seeds", "target": num_seeds, "sizes": sizes(SSD),
    }  # fmt: skip


def times(rounds: int) -> Iterator[Row]:
    import pyversity

    one = candidates(0)
    scores, vectors = one["scores"], one["vectors"]
    timings = interleaved(
        {
            "reqdedup": partial(rerank, SSD, **one),
            "reqdedup, three terms": partial(rerank, ALL_TERMS, **one),
            "pyversity": partial(pyversity.ssd, vectors, scores, k=PICKS, window=WINDOW),
            "QR at every pick": partial(by_qr, scores, vectors, length=PICKS, window=WINDOW, weight=WEIGHT),
        },
        rounds=rounds,
        repeats={"reqdedup": 40, "reqdedup, three terms": 20, "pyversity": 20, "QR at every pick": 10},
    )
    yield ratio_row("windowed SSD, beside pyversity", timings, baseline="pyversity", sizes=sizes(SSD), target=2.0)
    yield ratio_row(
        "windowed SSD, beside its definition", timings, baseline="QR at every pick", sizes=sizes(SSD), target=5.0
    )
    yield ratio_row(
        "SSD alone, beside SSD, soft spacing and prefixes of 3 levels (at most 3)",
        timings,
        baseline="reqdedup, three terms",
        sizes=sizes(ALL_TERMS),
    )


def sizes(config: SlateConfig) -> dict[str, Any]:
    terms = len(config.terms)
    return {"candidates": NUM, "width": WIDTH, "picks": PICKS, "window": WINDOW, "terms": terms, "threads": 1}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rerank")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=500)
    args = parser.parse_args(argv)
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("one thread required, set before numpy is loaded: OMP_NUM_THREADS=1 python -m benchmarks.rerank")
    rows = [equal_slates(args.seeds)]
    print(line(rows[0]), flush=True)
    for row in times(args.rounds):
        rows.append(row)
        print(line(row), flush=True)
    if args.seeds >= 500:
        print(write_results("rerank", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
