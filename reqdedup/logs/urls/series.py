"""The tests of a parameter: of which URLs, how many there are, when their answer is known, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, zip_longest

from reqdedup.logs.urls.parsing import SplitUrl, canonical
from reqdedup.logs.urls.rules import Pattern

DOUBT = 1 / 400
"""Probability, at most, that a parameter which changes `threshold` of the pages changed so few in the tests."""

MAX_KEPT_BY_NOISE = 0.01
"""Share of the parameters that do not matter, at most, that noise alone may keep."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """max_patterns: number of patterns that are learned per host, the most frequent first; of others all is kept.
    samples: number of tests per parameter; five times as many if they leave a doubt.
    min_samples: number of tests without which a parameter matters.
    threshold: share of the tests from which on a parameter matters; well above the noise of the fingerprint.
    noise_samples: number of URLs per host that are fetched twice; four times as many if the first look noisy.
    max_parameters: number of names above which a pattern is not learned.
    max_same: share of the pages of a host, or of a pattern of it, every path counting alike, that may look like one.
    early_exit: whether tests end when the answer is decided; it is the same without.
    seed: of the choice of the URLs.
    """

    max_patterns: int = 200
    samples: int = 20
    min_samples: int = 5
    threshold: float = 0.2
    noise_samples: int = 50
    max_parameters: int = 64
    max_same: float = 0.5
    early_exit: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float):
                raise ValueError(f"urls: a number as {name} required, found {value!r:.80}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"urls: a threshold above 0 and up to 1 required, found {self.threshold:g}")
        if not 0 <= self.max_same <= 1:
            raise ValueError(f"urls: a max_same from 0 to 1 required, found {self.max_same:g}")
        if not 1 <= self.min_samples <= self.samples:
            raise ValueError(
                f"urls: 1 <= min_samples <= samples required, found {self.min_samples} and {self.samples} samples"
            )
        if min(self.max_patterns, self.max_parameters, self.noise_samples) < 1:
            raise ValueError("urls: max_patterns, max_parameters and noise_samples of at least 1 required")


def kept_by_noise(noise: float, samples: int, threshold: float) -> float:
    """Probability that a parameter that changes nothing is kept, if equal pages differ at the rate `noise`."""
    return by_chance(noise, samples, needed(threshold, samples))


def by_chance(rate: float, tests: int, at_least: int) -> float:
    """Probability that so many of the tests, or more, come out at this rate."""
    return sum(
        math.comb(tests, count) * rate**count * (1 - rate) ** (tests - count) for count in range(at_least, tests + 1)
    )


class Series:
    """The tests of a parameter, or of several at once, of which `planned` are wanted: whether the answer is known, and
    what it is."""

    def __init__(self, planned: int, config: LearnConfig) -> None:
        self.planned = self.left = planned
        self.done = self.changed = 0
        self._config = config

    def add(self, changed: bool | None) -> None:
        """Note a test; None: it could not be made. One that comes when the answer is decided says nothing more."""
        if not self.is_decided:
            self.left -= 1
            self._count(changed)

    def add_further(self, changed: bool | None) -> None:
        """Note a test beyond those that were planned."""
        self.left = 0
        self._count(changed)

    def _count(self, changed: bool | None) -> None:
        if changed is not None:
            self.done += 1
            self.changed += changed

    @property
    def is_decided(self) -> bool:
        """Whether no outcome of the tests that are left can change the answer."""
        most, least = self.done + self.left, self._config.min_samples
        if most < least:
            return self.planned < least or self.changed > 0
        if self.changed >= needed(self._config.threshold, most):
            return True
        return self.done >= least and self.changed + self.left < needed(self._config.threshold, most)

    @property
    def is_too_short(self) -> bool:
        return self.done + self.left < self._config.min_samples

    @property
    def is_open(self) -> bool:
        """Whether there were URLs enough and answers too few, none of which says that it matters."""
        return self.planned >= self._config.min_samples and self.is_too_short and not self.changed

    @property
    def matters(self) -> bool:
        """The answer, if the tests that are left change nothing of it."""
        return self.is_too_short or self.changed >= needed(self._config.threshold, self.done + self.left)

    @property
    def is_rare(self) -> bool:
        """Whether the parameter surely changes less than the threshold's share of the pages."""
        return is_rare(self.changed, self.done, self._config.threshold)


@lru_cache(maxsize=4096)
def is_rare(changed: int, tests: int, threshold: float) -> bool:
    """Whether so few pages changed that, of a parameter that changes `threshold` of them, it has probability DOUBT."""
    likelihood = sum(
        math.comb(tests, count) * threshold**count * (1 - threshold) ** (tests - count) for count in range(changed + 1)
    )
    return likelihood <= DOUBT


def needed(threshold: float, tests: int) -> int:
    """Number of changed pages from which on a parameter matters; 0.3 of 10 are 3, whatever floats make of it."""
    return max(1, math.ceil(threshold * tests - 1e-9))


def choose(names: frozenset[str], urls: list[SplitUrl], samples: int) -> list[SplitUrl]:
    """Up to `samples` URLs with different values of these parameters; if there are fewer, further ones in turn.

    In turn, as a value that nearly all URLs have is often the default (page=1), which changes nothing, and would hide
    what the others change.
    """
    by_value: dict[tuple[str, ...], list[SplitUrl]] = {}
    places: dict[tuple[str, ...], list[int]] = {}
    for split in urls:
        if split.names not in places:
            places[split.names] = [at for at, own in enumerate(split.names) if canonical(own) in names]
        value = tuple([canonical(split.values[at]) for at in places[split.names]])
        same = by_value.setdefault(value, [])
        if len(same) < samples:
            same.append(split)
        if len(by_value) == samples:
            break
    turns = zip_longest(*by_value.values())
    return list(islice((split for turn in turns for split in turn if split is not None), samples))


def fewer_names(
    names: frozenset[str], neutral: frozenset[str], unknown: set[str], patterns: Iterable[Pattern]
) -> list[frozenset[str]]:
    """The sets of names that a pattern may be cut down to, the smallest first: those that matter, with none or one of
    the unknown ones, or with those that another pattern has."""
    least = names - neutral - unknown
    found = {least, *(least | {name} for name in unknown), *map(frozenset, patterns)}
    return sorted((left for left in found if least <= left < names), key=lambda left: (len(left), sorted(left)))
