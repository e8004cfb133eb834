"""The rank of each row's own item among the other items of a catalogue, for scores of any origin."""

from __future__ import annotations

import numpy as np

TOP = 10
"""Items of each request that are kept, for coverage and popularity."""
ROUNDING_OF_COSINES = 1e-6
"""More than float32 scores of equal vectors differ by, with the place that each has in a matrix product (up to 2.4e-7
at widths 8 to 256)."""
_ROWS_TOGETHER = 256


def ranks_of_rows(
    score_RC: np.ndarray,
    own_B: np.ndarray,
    *,
    request_of_row_B: np.ndarray,
    place_B: np.ndarray,
    is_seen_RC: np.ndarray,
    rounding: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """(rank, rank among unseen items) of each row's item, [B] float64 each; 1 is best, ties count half.

    own_B: score of the row's own item.  place_B: where the catalogue has it, -1 if it does not; it is no rival of
    itself.  is_seen_RC: items of the request's history, which the second rank leaves out.  rounding: scores that
    differ by so much at most are tied.
    """
    rank_B, unseen_rank_B = np.ones(len(own_B)), np.ones(len(own_B))
    for first in range(0, len(own_B), _ROWS_TOGETHER):
        rows = slice(first, first + _ROWS_TOGETHER)
        request_b, own_b, place_b = request_of_row_B[rows], own_B[rows, None], place_B[rows]
        score_bC = score_RC[request_b]
        is_above_bC = score_bC > own_b + rounding
        is_tied_bC = ~is_above_bC & (score_bC >= own_b - rounding)
        known = np.flatnonzero(place_b >= 0)
        for is_bC in (is_above_bC, is_tied_bC):
            is_bC[known, place_b[known]] = False
        is_new_bC = ~is_seen_RC[request_b]
        rank_B[rows] += is_above_bC.sum(1) + is_tied_bC.sum(1) / 2
        unseen_rank_B[rows] += (is_above_bC & is_new_bC).sum(1) + (is_tied_bC & is_new_bC).sum(1) / 2
    return rank_B, unseen_rank_B


def best_places(score_RC: np.ndarray, k: int = TOP) -> np.ndarray:
    """[R, k] places of the best items of each request, in any order; of fewer items all."""
    k = min(k, score_RC.shape[1])
    if k == score_RC.shape[1]:
        return np.broadcast_to(np.arange(k), (len(score_RC), k))
    return np.argpartition(-score_RC, k - 1, axis=1)[:, :k] if k else np.zeros((len(score_RC), 0), np.int64)


def seen_places(place_T: np.ndarray, offsets_R1: np.ndarray, num_items: int) -> np.ndarray:
    """[R, num_items] bool: which places the packed histories hold. place_T: -1 for what has none."""
    is_seen_RC = np.zeros((len(offsets_R1) - 1, num_items), bool)
    request_T = np.repeat(np.arange(len(offsets_R1) - 1), np.diff(offsets_R1))
    is_known_T = place_T >= 0
    is_seen_RC[request_T[is_known_T], place_T[is_known_T]] = True
    return is_seen_RC


def holds(
    item_id_T: np.ndarray, offsets_R1: np.ndarray, request_of_row_B: np.ndarray, item_id_B: np.ndarray
) -> np.ndarray:
    """[B] bool: whether the packed history of each row's request holds the row's item."""
    request_T = np.repeat(np.arange(len(offsets_R1) - 1), np.diff(offsets_R1))
    items, number = np.unique(np.concatenate([item_id_T, item_id_B]), return_inverse=True)
    number_T, number_B = number[: len(item_id_T)], number[len(item_id_T) :]
    return np.isin(request_of_row_B * len(items) + number_B, request_T * len(items) + number_T)
