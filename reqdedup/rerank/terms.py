"""What terms add to the utility of the candidates of one request, kept up to date pick by pick.

A term answers `values`, [N] float64 before its weight, and is told each `pick`. Positions of picks count from the
newest: distance 1 is the pick just made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from reqdedup.rerank.config import LogVolume, Mmr, PrefixOverlap, SoftSpacing, TermConfig, Volume
from reqdedup.rerank.residual import WindowResidual

SMALLEST_SQUARED_RESIDUAL = 1e-12
"""Of a candidate that the window explains wholly, so that its logarithm is a number."""


class Term(Protocol):
    def values(self) -> np.ndarray:
        """What the term adds to each candidate's utility now, before its weight."""
        ...

    def pick(self, candidate: int) -> None: ...


def make_terms(
    terms: Sequence[TermConfig], *, window: int, vectors_ND: np.ndarray | None, columns: Mapping[str, np.ndarray]
) -> list[Term]:
    """The terms of one request, one for each configuration; those that need residuals share them."""
    made: list[Term] = []
    residual: WindowResidual | None = None
    for term in terms:
        if isinstance(term, Volume | LogVolume | Mmr):
            assert vectors_ND is not None
            is_first = residual is None
            residual = residual or WindowResidual(vectors_ND, window)
            made.append(_OfResidual(term, residual, tells=is_first))
        elif isinstance(term, SoftSpacing):
            made.append(_SoftSpacing(columns[term.column], window))
        elif isinstance(term, PrefixOverlap):
            made.append(_PrefixOverlap([columns[name] for name in term.columns], window))
        else:
            raise ValueError(f"slate: no term for {term}")
    return made


class _OfResidual:
    """Volume, log volume and largest cosine, all from the inner products with the window."""

    def __init__(self, term: TermConfig, residual: WindowResidual, *, tells: bool) -> None:
        self._term, self._residual, self._tells = term, residual, tells
        self._length_N = np.sqrt(residual.squared_length_N)

    def values(self) -> np.ndarray:
        if isinstance(self._term, Volume):
            return np.sqrt(self._residual.squared_N)
        if isinstance(self._term, LogVolume):
            return np.log(np.maximum(self._residual.squared_N, SMALLEST_SQUARED_RESIDUAL))
        products_WN = self._residual.products
        if not len(products_WN):
            return np.zeros(len(self._length_N))
        length_W = self._length_N[self._residual.picks]
        lengths_WN = length_W[:, None] * self._length_N[None]
        cosine_WN = np.divide(products_WN, lengths_WN, out=np.zeros_like(products_WN), where=lengths_WN > 0)
        return -cosine_WN.max(0)

    def pick(self, candidate: int) -> None:
        if self._tells:
            self._residual.pick(candidate)


class _SoftSpacing:
    def __init__(self, flag_N: np.ndarray, window: int) -> None:
        self._flag_N = np.nan_to_num(flag_N.astype(np.float64))
        self._picked: deque[float] = deque(maxlen=window)

    def values(self) -> np.ndarray:
        exposure = sum(flag / distance for distance, flag in enumerate(self._picked, start=1))
        return -exposure * self._flag_N

    def pick(self, candidate: int) -> None:
        self._picked.appendleft(float(self._flag_N[candidate]))


class _PrefixOverlap:
    """Longest prefix shared with the window, counted: how many picks of the window have each prefix.

    A prefix enters or leaves the candidates' overlap only when the first pick with it comes or the last one goes, so a
    pick touches those candidates alone that share its prefixes.
    """

    def __init__(self, levels: Sequence[np.ndarray], window: int) -> None:
        self._prefix_LN = prefix_codes(levels)
        self._members = [_members(prefix_N) for prefix_N in self._prefix_LN]
        self._counts = [np.zeros(len(members), np.int64) for members in self._members]
        self._shared_N = np.zeros(self._prefix_LN.shape[1])
        self._window, self._picked = window, deque[int]()

    def values(self) -> np.ndarray:
        return self._shared_N / -len(self._prefix_LN)

    def pick(self, candidate: int) -> None:
        if len(self._picked) == self._window:
            self._count(self._picked.popleft(), -1)
        self._count(candidate, 1)
        self._picked.append(candidate)

    def _count(self, candidate: int, step: int) -> None:
        for prefix_N, members, counts in zip(self._prefix_LN, self._members, self._counts):
            prefix = prefix_N[candidate]
            counts[prefix] += step
            if counts[prefix] == (1 if step > 0 else 0):
                self._shared_N[members[prefix]] += step


def prefix_codes(levels: Sequence[np.ndarray]) -> np.ndarray:
    """Number of each candidate's prefix at each level, [L, N] int64: equal numbers, equal first l + 1 levels."""
    codes = []
    prefix_N = np.zeros(len(levels[0]), np.int64)
    for level_N in levels:
        values_N = np.unique(level_N, return_inverse=True)[1]
        prefix_N = np.unique(prefix_N * (values_N.max(initial=0) + 1) + values_N, return_inverse=True)[1]
        codes.append(prefix_N)
    return np.array(codes, np.int64)


def _members(code_N: np.ndarray) -> list[np.ndarray]:
    """Candidates of each code."""
    order = np.argsort(code_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(code_N))[:-1]) if len(code_N) else []
