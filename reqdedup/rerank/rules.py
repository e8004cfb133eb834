"""What a pick must keep: candidates that would break a rule are not allowed while one is left that would not.

A rule answers `allowed`, [N] bool, and is told each `pick`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from reqdedup.rerank.config import HardSpacing, Quota


class Rule(Protocol):
    def allowed(self) -> np.ndarray:
        """Which candidates keep the rule if they are picked now."""
        ...

    def pick(self, candidate: int) -> None: ...


def make_rules(rules: Sequence[HardSpacing | Quota], *, length: int, columns: Mapping[str, np.ndarray]) -> list[Rule]:
    """The rules of one request. length: picks that its slate will have."""
    return [
        _HardSpacing(columns[rule.column], rule.gap)
        if isinstance(rule, HardSpacing)
        else _AtMost(columns[rule.column], rule.value, rule.at_most)
        if rule.at_most is not None
        else _AtLeast(columns[rule.column], rule.value, rule.at_least or 0, length)
        for rule in rules
    ]


class _HardSpacing:
    def __init__(self, value_N: np.ndarray, gap: int) -> None:
        self._code_N = np.unique(value_N, return_inverse=True)[1]
        self._last_pick = np.full(int(self._code_N.max(initial=-1)) + 1, -gap - 1)
        self._gap, self._num_picks = gap, 0

    def allowed(self) -> np.ndarray:
        return self._num_picks - self._last_pick[self._code_N] > self._gap

    def pick(self, candidate: int) -> None:
        self._last_pick[self._code_N[candidate]] = self._num_picks
        self._num_picks += 1


class _AtMost:
    def __init__(self, value_N: np.ndarray, value: int | str | None, at_most: int) -> None:
        self._code_N = np.unique(value_N, return_inverse=True)[1]
        self._left = np.full(int(self._code_N.max(initial=-1)) + 1, at_most)
        if value is not None:
            counted_N = value_N == value
            others = np.ones(len(self._left), bool)
            others[self._code_N[counted_N]] = False
            self._left[others] = len(value_N)

    def allowed(self) -> np.ndarray:
        return self._left[self._code_N] > 0

    def pick(self, candidate: int) -> None:
        self._left[self._code_N[candidate]] -= 1


class _AtLeast:
    """Free until as many places are left as picks are missing; from then on only those that count."""

    def __init__(self, value_N: np.ndarray, value: int | str | None, at_least: int, length: int) -> None:
        self._counts_N = value_N == value
        self._missing, self._places = min(at_least, int(self._counts_N.sum())), length

    def allowed(self) -> np.ndarray:
        return self._counts_N if self._missing >= self._places else np.ones(len(self._counts_N), bool)

    def pick(self, candidate: int) -> None:
        self._places -= 1
        self._missing -= bool(self._counts_N[candidate])
        self._missing = max(self._missing, 0)
