"""What a slate gives up in relevance and what it gains in variety, as plain figures of one slate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def slate_measures(
    scores: np.ndarray,
    row: np.ndarray,
    *,
    window: int = 10,
    vectors: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Figures of one request's slate; those that do not apply (fewer than two picks, no vectors) are left out.

    dcg_ratio: discounted gain of the scores, beside that of the best order of the same candidates, at most 1 if no
        score is negative.  mean_score: of the picks.
    mean_distance: mean of 1 - cosine over pairs of picks within `window`.
    distinct_COLUMN: mean number of values in a window of picks.  adjacent_COLUMN: pairs of neighbours with one value.

    scores: [N] finite.  row: [T] candidates in slate order.  vectors: [N, d].  columns: by name [N].
    """
    picked_T = np.asarray(scores, np.float64)[row]
    discount_T = 1 / np.log2(np.arange(len(row)) + 2)
    best_T = np.sort(np.asarray(scores, np.float64))[::-1][: len(row)]
    figures: dict[str, float] = {}
    if len(row):
        figures["mean_score"] = float(picked_T.mean())
        if best := float((best_T * discount_T).sum()):
            figures["dcg_ratio"] = float((picked_T * discount_T).sum()) / best
    if vectors is not None and len(row) > 1:
        picked_TD = np.asarray(vectors, np.float64)[row]
        length_T = np.linalg.norm(picked_TD, axis=1, keepdims=True)
        unit_TD = np.divide(picked_TD, length_T, out=np.zeros_like(picked_TD), where=length_T > 0)
        apart = [1 - (unit_TD[d:] * unit_TD[:-d]).sum(1) for d in range(1, min(window, len(row)))]
        figures["mean_distance"] = float(np.concatenate(apart).mean()) if apart else 0.0
    for name, value_N in (columns or {}).items():
        code_T = np.unique(np.asarray(value_N)[row], return_inverse=True)[1]
        if not len(code_T):
            continue
        windows = np.lib.stride_tricks.sliding_window_view(code_T, min(window, len(code_T)))
        figures[f"distinct_{name}"] = float(np.mean([len(np.unique(codes)) for codes in windows]))
        figures[f"adjacent_{name}"] = float((code_T[1:] == code_T[:-1]).sum())
    return figures
