"""In which order rows reach the ranks: row by row (IID), sorted, whole requests shuffled, chunks of requests shuffled.

    table order     | rank 0's share            | rank 1's share            |
    sorted          rank w reads its share from a random place on, `rows_per_rank` rows a step
    requests        its pieces (whole requests, or chunks of at most `chunk_rows` rows) are shuffled inside windows of
                    `buffer_requests` requests, as `RequestLoader` does
    iid             rows are dealt at random over all ranks

Every rank takes exactly `rows_per_rank` rows a step, so a request at a step's end is cut there and goes on in the next
step. The loader keeps it whole and lets row counts vary; here equal rows keep the arms comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.study.arms import Arm, Steps
from benchmarks.study.log import StudyLog


def step_rows(log: StudyLog, rows: np.ndarray, arm: Arm, steps: Steps, rng: np.random.Generator) -> np.ndarray:
    """Row numbers of every step, [num_steps, W, rows_per_rank]; epochs follow one another until the steps are full.

    rows: the rows to learn from, in table order.
    """
    is_iid = arm.order == "iid"
    per_rank = steps.rows_per_rank(
        1.0 if is_iid else len(rows) / len(piece_starts(log.request_B[rows], arm.chunk_rows))
    )
    num_steps = max(1, int(arm.epochs * steps.count(len(rows), per_rank)))
    wanted = num_steps * per_rank
    if is_iid:
        stream = np.concatenate([rng.permutation(rows) for _ in range(-(-wanted * steps.world_size // len(rows)))])
        shape = (num_steps, steps.world_size, per_rank)
        return stream[: wanted * steps.world_size].reshape(shape)
    streams = []
    for share in np.array_split(rows, steps.world_size):
        passes = [_one_pass(log, share, arm, steps.buffer_requests, rng) for _ in range(-(-wanted // len(share)))]
        streams.append(np.concatenate(passes)[:wanted].reshape(num_steps, per_rank))
    return np.stack(streams, axis=1)


def _one_pass(log: StudyLog, share: np.ndarray, arm: Arm, buffer_requests: int, rng: np.random.Generator) -> np.ndarray:
    """A rank's rows once, in the arm's order; a sorted pass begins at a random request."""
    request_B = log.request_B[share]
    first_request = piece_starts(request_B, None)
    if arm.order == "sorted":
        return np.roll(share, -int(rng.choice(first_request)))
    first_piece = piece_starts(request_B, arm.chunk_rows)
    length = np.diff(np.append(first_piece, len(share)))
    window = (np.searchsorted(first_request, first_piece, side="right") - 1) // buffer_requests
    windows_in_order = rng.permutation(window[-1] + 1)
    order = np.lexsort((rng.random(len(first_piece)), windows_in_order[window]))
    before = np.concatenate([[0], length[order].cumsum()[:-1]])
    return share[np.repeat(first_piece[order] - before, length[order]) + np.arange(len(share))]


def piece_starts(request_B: np.ndarray, chunk_rows: int | None) -> np.ndarray:
    """Where pieces begin: at every request, and inside it after every `chunk_rows` rows."""
    is_first_B = np.diff(request_B, prepend=-1) != 0
    if chunk_rows is None:
        return np.flatnonzero(is_first_B)
    starts = np.flatnonzero(is_first_B)
    within_B = np.arange(len(request_B)) - np.repeat(starts, np.diff(np.append(starts, len(request_B))))
    return np.flatnonzero(within_B % chunk_rows == 0)


@dataclass(frozen=True, kw_only=True)
class Meters:
    """What the steps of an arm hold, means over sampled steps.

    users, effective_users: per step over all ranks; effective = 1 / sum of squared shares of the rows.
    passes: user-tower passes per step, a request counts once per rank that holds it.
    false_negatives: share of all pairs of a row and another item in its reach (its rank, or all of them where negatives
        are gathered) whose item the row's user clicked anywhere in the log.  after_mask: the same with same-user pairs
        taken out, of what is left.
    negatives: of a row, those that a mask takes out not counted.  negative_users: effective users that they come from.
    epochs: rows of all steps over training rows.
    """

    users: float
    effective_users: float
    passes: float
    false_negatives: float
    after_mask: float
    negatives: float
    negative_users: float
    epochs: float


def measure(
    log: StudyLog, rows_SWb: np.ndarray, *, arm: Arm, num_rows: int, engaged: np.ndarray, max_steps: int = 8
) -> Meters:
    """Meters over up to `max_steps` evenly spaced steps.  num_rows: training rows of the log."""
    chosen = np.unique(np.linspace(0, len(rows_SWb) - 1, max_steps).astype(int))
    found = [_measure_step(log, rows_SWb[step], arm, engaged) for step in chosen]
    users, effective, passes, pairs, false, legal, still_false, negatives, negative_users = np.array(
        found, np.float64
    ).T
    return Meters(
        users=float(users.mean()),
        effective_users=float(effective.mean()),
        passes=float(passes.mean()),
        false_negatives=float(false.sum() / max(pairs.sum(), 1)),
        after_mask=float(still_false.sum() / max(legal.sum(), 1)),
        negatives=float(negatives.mean()),
        negative_users=float(negative_users.mean()),
        epochs=rows_SWb.size / num_rows,
    )


def _measure_step(log: StudyLog, rows_Wb: np.ndarray, arm: Arm, engaged: np.ndarray) -> tuple[float, ...]:
    user_Wb, item_Wb = log.users_of(rows_Wb), log.item_B[rows_Wb]
    request_Wb = log.request_B[rows_Wb]
    passes = rows_Wb.shape[0] + int((np.diff(request_Wb, axis=1) != 0).sum())
    groups = arm.negative_groups(user_Wb.size, len(user_Wb))
    user_Wb, item_Wb = user_Wb.reshape(groups, -1), item_Wb.reshape(groups, -1)
    every = max(1, user_Wb.size // 256)
    row_user = user_Wb.reshape(-1)[::every]
    row_rank = np.arange(user_Wb.size)[::every] // user_Wb.shape[1]
    row_item = item_Wb.reshape(-1)[::every]
    columns_item, columns_user = item_Wb[row_rank], user_Wb[row_rank]
    is_pair = columns_item != row_item[:, None]
    key = row_user[:, None] * log.num_items + columns_item
    is_false = is_pair & (engaged[np.searchsorted(engaged, key).clip(max=len(engaged) - 1)] == key)
    is_legal = is_pair & (columns_user != row_user[:, None])
    is_negative = is_legal if arm.same_user == "masked" else is_pair
    users_of_negatives = [effective_users(columns_user[k, is_negative[k]]) for k in range(0, len(row_user), 8)]
    return (
        len(np.unique(user_Wb)),
        effective_users(user_Wb),
        passes,
        is_pair.sum(),
        is_false.sum(),
        is_legal.sum(),
        (is_false & is_legal).sum(),
        is_negative.sum(1).mean(),
        float(np.mean(users_of_negatives)),
    )


def effective_users(user_of_row: np.ndarray) -> float:
    """1 / sum of squared shares of the rows; 0 without rows."""
    _, counts = np.unique(user_of_row, return_counts=True)
    return float(counts.sum() ** 2 / max((counts.astype(np.float64) ** 2).sum(), 1))
