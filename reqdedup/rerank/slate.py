"""`rerank`: a slate for each request, pick by pick the candidate of the highest utility.

    utility = score + sum of weight x term         over candidates that are left and keep the rules

Candidates are taken in the order of their ids first, so a slate does not depend on the order in which they came, and
ties go to the smaller id. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reqdedup.rerank.config import SlateConfig, kind_of
from reqdedup.rerank.rules import make_rules
from reqdedup.rerank.terms import make_terms


@dataclass(frozen=True, kw_only=True)
class Slate:
    """Slates of R requests, packed: those of request r are `offsets_R1[r]` to `offsets_R1[r + 1]`.

    row: candidate of each pick, a row of the input, [P] int64.  offsets_R1: [R + 1] int64.
    utility: of each pick when it was picked, [P] float64: the sum of its contributions.
    contributions: by name, [P] float64 each: `score`, then each term as `kind`, a second of its kind as `kind_2`.
    relaxed: rules that gave way for each pick, [P] int64.
    unscored: candidates of each request whose score is no finite number, [R] int64; they come last.
    """

    row: np.ndarray
    offsets_R1: np.ndarray
    utility: np.ndarray
    contributions: dict[str, np.ndarray]
    relaxed: np.ndarray
    unscored: np.ndarray


def rerank(
    config: SlateConfig,
    scores: np.ndarray,
    *,
    item_id: np.ndarray,
    vectors: np.ndarray | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    row_offsets: np.ndarray | None = None,
) -> Slate:
    """Slates of the candidates of R requests.

    scores: relevance, [B] numbers; one that is not finite puts its candidate behind all others.
    item_id: [B] int64, for ties.  vectors: [B, d] numbers, if a term needs them; rows that are not
        finite count as zeros.
    columns: by name [B], those that `config.columns` names.  row_offsets: [R + 1], one request if left out.
    Raises ValueError for a missing column or vectors, and for lengths that do not fit.
    """
    columns = dict(columns or {})
    offsets_R1 = np.array([0, len(scores)]) if row_offsets is None else np.asarray(row_offsets, np.int64)
    _check(config, scores, item_id, vectors, columns, offsets_R1)
    names = ["score", *_term_names(config)]
    picks = [
        _one_slate(
            config,
            np.asarray(scores[start:end], np.float64),
            np.asarray(item_id[start:end]),
            None if vectors is None else np.asarray(vectors[start:end], np.float64),
            {name: np.asarray(columns[name][start:end]) for name in config.columns},
        )
        for start, end in zip(offsets_R1[:-1].tolist(), offsets_R1[1:].tolist())
    ]
    lengths = [len(row) for row, *_ in picks]
    parts = np.concatenate([np.zeros((len(names), 0)), *(part for _, part, _, _ in picks)], axis=1)
    return Slate(
        row=np.concatenate([np.zeros(0, np.int64), *(row + start for (row, *_), start in zip(picks, offsets_R1))]),
        offsets_R1=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        utility=parts.sum(0),
        contributions=dict(zip(names, parts)),
        relaxed=np.concatenate([np.zeros(0, np.int64), *(relaxed for _, _, relaxed, _ in picks)]),
        unscored=np.array([unscored for *_, unscored in picks], np.int64),
    )


def _one_slate(
    config: SlateConfig,
    score_N: np.ndarray,
    item_id_N: np.ndarray,
    vectors_ND: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Picks of one request, their contributions [terms + 1, T], rules relaxed for each, candidates without a score."""
    order_N = np.argsort(item_id_N, kind="stable")
    score_N = score_N[order_N]
    is_scored_N = np.isfinite(score_N)
    num_scored = int(is_scored_N.sum())
    score_N = usable_scores(score_N, standardise=config.standardise)
    columns = {name: values_N[order_N] for name, values_N in columns.items()}
    if vectors_ND is not None:
        vectors_ND = usable_vectors(vectors_ND[order_N])
    length = min(config.length, len(score_N))
    terms = make_terms(config.terms, window=config.window, vectors_ND=vectors_ND, columns=columns)
    rules = make_rules(config.rules, length=length, columns=columns)
    row_T, relaxed_T = np.empty(length, np.int64), np.zeros(length, np.int64)
    part_MT = np.empty((len(terms) + 1, length))
    weights = [weighed.weight for weighed in config.terms]
    left_N = np.where(is_scored_N, score_N, -np.inf)  # of those that may be picked now
    for position in range(length):
        if position == num_scored:
            left_N = np.where(is_scored_N, -np.inf, score_N)  # the turn of those without a score
        utility_N = left_N
        if rules:
            fitting_N, relaxed_T[position] = _fitting(np.isfinite(left_N), [rule.allowed() for rule in rules])
            utility_N = np.where(fitting_N, left_N, -np.inf)
        values = [weight * term.values() for weight, term in zip(weights, terms)]
        for value_N in values:
            utility_N = utility_N + value_N
        pick = int(utility_N.argmax())
        row_T[position] = order_N[pick]
        part_MT[0, position] = score_N[pick]
        for number, value_N in enumerate(values, start=1):
            part_MT[number, position] = value_N[pick]
        left_N[pick] = -np.inf
        for term in terms:
            term.pick(pick)
        for rule in rules:
            rule.pick(pick)
    return row_T, part_MT, relaxed_T, len(score_N) - num_scored


def _fitting(candidates_N: np.ndarray, allowed: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """The candidates that keep as many of the rules, from the first on, as any of them does; rules that gave way."""
    for kept in range(len(allowed), 0, -1):
        fitting_N = np.logical_and.reduce([candidates_N, *allowed[:kept]])
        if fitting_N.any():
            return fitting_N, len(allowed) - kept
    return candidates_N, len(allowed)


def usable_scores(score_N: np.ndarray, *, standardise: bool) -> np.ndarray:
    """Scores with 0 for those that are no finite number, on request with mean 0 and standard deviation 1."""
    is_finite_N = np.isfinite(score_N)
    if standardise and is_finite_N.any():
        finite = score_N[is_finite_N]
        score_N = (score_N - finite.mean()) / (finite.std() or 1.0)
    return np.where(is_finite_N, score_N, 0.0)


def usable_vectors(vectors_ND: np.ndarray) -> np.ndarray:
    """Vectors with zeros for those that hold a number that is not finite: nothing of them is new."""
    return np.where(np.isfinite(vectors_ND).all(1, keepdims=True), vectors_ND, 0.0)


def _term_names(config: SlateConfig) -> list[str]:
    names: list[str] = []
    for term in config.terms:
        kind = kind_of(term)
        seen = sum(name == kind or name.startswith(f"{kind}_") for name in names)
        names.append(f"{kind}_{seen + 1}" if seen else kind)
    return names


def _check(
    config: SlateConfig,
    scores: np.ndarray,
    item_id: np.ndarray,
    vectors: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    offsets_R1: np.ndarray,
) -> None:
    if missing := [name for name in config.columns if name not in columns]:
        raise ValueError(f"slate: columns {', '.join(missing)} required, found {', '.join(columns) or 'none'}")
    if config.needs_vectors and vectors is None:
        raise ValueError("slate: vectors of the candidates required by volume, log_volume and mmr, found none")
    lengths = {"scores": len(scores), "item_id": len(item_id)} | {name: len(columns[name]) for name in config.columns}
    if vectors is not None:
        lengths["vectors"] = len(vectors)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"slate: one value per candidate required, found {lengths}")
    if len(offsets_R1) < 1 or offsets_R1[0] != 0 or offsets_R1[-1] != len(scores) or np.any(np.diff(offsets_R1) < 0):
        raise ValueError(f"slate: row_offsets from 0 to {len(scores)} that never fall required, found {offsets_R1}")
