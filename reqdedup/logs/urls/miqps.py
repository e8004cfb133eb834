"""Learns which parameters change the page: MIQPS, the minimal important set of query parameters.

URLs of one host with one set of parameter names are a pattern. A parameter of it matters if pages change when it is
left out: in at least `threshold` of the tests, each a URL with it and without it, compared by a fingerprint of the
page that the caller brings. What was tested too little matters, too: a false merge is worse than a copy.

Where this differs from the published procedure, as far as its text goes (docs/decisions/0064-*):

- a parameter with few values (utm_source) is tested on further URLs, so that it gets its `samples`;
- a test series ends early only when the rest cannot change its answer, not once the running rate is above;
- parameters found neutral before are left out together with the one in question, and compared with the whole URL: of
  `id` and `slug` that both name the page, one is kept, while tests of one at a time would drop both;
- parameters of which nothing is known one by one, as two trackers that always come together, are left out as a group;
- the noise is measured: a page that changes by itself, twice the same URL, would keep everything;
- pages that look alike are, too: one page for all, a login wall, would make one item of everything.

Memory is that of all distinct URLs in parts, 1 to 1.5 kB each at ten parameters.

Source: Pinterest Engineering, Smarter URL Normalization at Scale, 2026-04.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest

from reqdedup.logs.urls.parsing import SplitUrl, canonical, pattern_of, split_url, write_url
from reqdedup.logs.urls.rules import Pattern, Rules

Fingerprint = Callable[[str], Hashable | None]
"""What a URL's page is known by, equal for pages that are the same; None if it is unknown."""

MAX_KEPT_BY_NOISE = 0.01
"""Share of the parameters that do not matter, at most, that noise alone may keep."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """max_patterns: number of patterns that are learned per host, the most frequent first; of others all is kept.
    samples: number of tests per parameter.
    min_samples: number of tests without which a parameter matters.
    threshold: share of the tests from which on a parameter matters; well above the noise of the fingerprint.
    noise_samples: number of URLs per host that are fetched twice; four times as many if the first look noisy.
    max_parameters: number of names above which a pattern is not learned.
    max_same: share of the pages of a host, every path counting alike, that may look like one before it has no rules.
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


@dataclass
class Learned:
    """rules: what was found.
    renders: number of calls of the fingerprint.
    urls: number of distinct URLs, as they are spelled.  not_urls: number of texts that are none.
    noise: share of the URLs of a host whose page differed from itself, by host.
    unstable: hosts whose noise the threshold does not stand above; they have no rules, so that everything is kept.
    alike: hosts without rules, as more than `max_same` of their pages look like one.
    untested: number of parameters that are kept because they were tested too little.
    """

    rules: Rules
    renders: int = 0
    urls: int = 0
    not_urls: int = 0
    noise: dict[str, float] = field(default_factory=dict)
    unstable: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    untested: int = 0


def learn(
    urls: Iterable[str],
    fingerprint: Fingerprint,
    config: LearnConfig | None = None,
    *,
    layers: Rules | None = None,
) -> Learned:
    """Rules of the hosts of these URLs, and what finding them took.

    The same for the same URLs in any order, if the fingerprint is. layers: rules whose allowlists and regular
    expressions the new ones have, too.
    Raises ValueError if the fingerprint knows no page at all, changes by itself on so many pages of all hosts together
    that the threshold does not stand above it, takes most of the log for a few pages, or says what has no hash.
    """
    config = config or LearnConfig()
    return _Learner(fingerprint, config).run(urls, layers or Rules())


def kept_by_noise(noise: float, samples: int, threshold: float) -> float:
    """Probability that a parameter that changes nothing is kept, if equal pages differ at the rate `noise`."""
    needed = _needed(threshold, samples)
    return sum(
        math.comb(samples, count) * noise**count * (1 - noise) ** (samples - count)
        for count in range(needed, samples + 1)
    )


class Series:
    """The tests of a parameter, or of several at once, of which `planned` are wanted: whether the answer is known, and
    what it is."""

    def __init__(self, planned: int, config: LearnConfig) -> None:
        self.planned = self.left = planned
        self.done = self.changed = 0
        self._config = config

    def add(self, changed: bool | None) -> None:
        """Note a test; None: it could not be made."""
        self.left -= 1
        if changed is not None:
            self.done += 1
            self.changed += changed

    @property
    def is_decided(self) -> bool:
        """Whether no outcome of the tests that are left can change the answer."""
        most, least = self.done + self.left, self._config.min_samples
        if most < least:
            return self.planned < least or self.changed > 0
        if self.changed >= _needed(self._config.threshold, most):
            return True
        return self.done >= least and self.changed + self.left < _needed(self._config.threshold, most)

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
        return self.is_too_short or self.changed >= _needed(self._config.threshold, self.done + self.left)


def _needed(threshold: float, tests: int) -> int:
    """Number of changed pages from which on a parameter matters; 0.3 of 10 are 3, whatever floats make of it."""
    return max(1, math.ceil(threshold * tests - 1e-9))


class _Learner:
    def __init__(self, fingerprint: Fingerprint, config: LearnConfig) -> None:
        self._fingerprint, self._config = fingerprint, config
        self._result = Learned(Rules())
        self._pages: dict[str, dict[SplitUrl, Hashable]] = defaultdict(dict)
        """Of each host: what its URLs, whole, were found to show."""

    def run(self, urls: Iterable[str], layers: Rules) -> Learned:
        hosts = self._group(urls)
        result = self._result
        pairs = {host: self._noise(host, patterns) for host, patterns in hosts.items()}
        differed, tested = (sum(counts) for counts in zip(*pairs.values())) if pairs else (0, 0)
        if tested and self._is_noisy(differed / tested):
            raise ValueError(
                f"urls: a fingerprint that stays the same for the same URL required, found that {differed:,} of "
                f"{tested:,} pages differed from themselves; with threshold {self._config.threshold:g} that would keep "
                "parameters which do not matter: choose a fingerprint of less, or a threshold well above the noise"
            )
        learned: dict[str, dict[Pattern, frozenset[str]]] = {}
        for host, patterns in hosts.items():
            differed, tested = pairs[host]
            result.noise[host] = differed / max(1, tested)
            if self._is_noisy(result.noise[host]):
                result.unstable.append(host)
                continue
            frequent = sorted(patterns, key=lambda pattern: (-len(patterns[pattern]), pattern))
            chosen = [pattern for pattern in frequent if pattern and len(pattern) <= self._config.max_parameters]
            chosen = chosen[: self._config.max_patterns]
            learned[host] = {pattern: self._kept(pattern, patterns[pattern], [(), *chosen]) for pattern in chosen}
        if result.renders and not any(self._pages.values()):
            raise ValueError(
                f"urls: a fingerprint that knows pages of these URLs required, found none of {result.renders:,} known; "
                "is it the right table, does the server answer?"
            )
        self._leave_out_alike(hosts, learned)
        result.rules = replace(layers, hosts=learned)
        return result

    def _group(self, urls: Iterable[str]) -> dict[str, dict[Pattern, list[SplitUrl]]]:
        """Distinct URLs by host and pattern, in an order that the seed alone decides."""
        distinct = set()
        for url in urls:
            split = split_url(url)
            if split is None:
                self._result.not_urls += 1
            else:
                distinct.add(split)
        self._result.urls = len(distinct)
        ordered = sorted(distinct)
        random.Random(self._config.seed).shuffle(ordered)
        hosts: dict[str, dict[Pattern, list[SplitUrl]]] = defaultdict(lambda: defaultdict(list))
        for split in ordered:
            hosts[split.host][pattern_of(split)].append(split)
        return {host: dict(hosts[host]) for host in sorted(hosts)}

    def _noise(self, host: str, patterns: dict[Pattern, list[SplitUrl]]) -> tuple[int, int]:
        """How many pages of a host differed from themselves, and how many were tested."""
        urls = [split for pattern in sorted(patterns) if pattern for split in patterns[pattern]]
        random.Random(f"{self._config.seed} {host}").shuffle(urls)
        differed = tested = 0
        for number, split in enumerate(urls[: 4 * self._config.noise_samples]):
            if number == self._config.noise_samples and not self._is_noisy(differed / max(1, tested)):
                break
            changed = self._changed(split, without=())
            if changed is not None:
                differed, tested = differed + changed, tested + 1
        return differed, tested

    def _is_noisy(self, noise: float) -> bool:
        return kept_by_noise(noise, self._config.samples, self._config.threshold) > MAX_KEPT_BY_NOISE

    def _kept(self, pattern: Pattern, urls: list[SplitUrl], patterns: Iterable[Pattern]) -> frozenset[str]:
        """The parameters of a pattern that matter, or were tested too little. patterns: those of the host."""
        names = frozenset(pattern)
        neutral: frozenset[str] = frozenset()
        too_short: set[str] = set()
        unknown: set[str] = set()
        tried: set[frozenset[str]] = set()
        for name in pattern:
            tried.add(neutral | {name})
            series = self._test(frozenset({name}), urls, neutral)
            if not series.matters:
                neutral |= {name}
            if series.is_too_short:
                too_short.add(name)
            if series.is_open:
                unknown.add(name)
        # A table may know the page without several of them and not that without one. If it is the page with them, it is
        # the page with any values of theirs.
        last = len(tried) + 2 * len(unknown)
        for left in _fewer_names(names, neutral, unknown, patterns) if unknown else ():
            group = names - neutral - left
            if not group or left & neutral or neutral | group in tried or len(tried) == last:
                continue
            tried.add(neutral | group)
            if not self._test(group, urls, neutral).matters:
                neutral |= group
        self._result.untested += len(too_short - neutral)
        return names - neutral

    def _test(self, names: frozenset[str], urls: list[SplitUrl], neutral: frozenset[str]) -> Series:
        """Whether pages change without these parameters, those found neutral left out, too."""
        chosen = _choose(names, urls, self._config.samples)
        series = Series(len(chosen), self._config)
        for split in chosen:
            if self._config.early_exit and series.is_decided:
                break
            series.add(self._changed(split, without=neutral | names))
        return series

    def _changed(self, split: SplitUrl, *, without: Collection[str]) -> bool | None:
        """Whether a URL has another page without these parameters; None if that is unknown."""
        page = self._look(write_url(split))
        if page is None:
            return None
        self._pages[split.host][split] = page
        changed = self._look(write_url(split, without=without))
        return None if changed is None else page != changed

    def _look(self, url: str) -> Hashable | None:
        self._result.renders += 1
        page = self._fingerprint(url)
        if not isinstance(page, Hashable):
            raise ValueError(
                f"urls: a fingerprint with a hash required (a text, a number, a tuple), found {type(page).__name__}"
            )
        return page

    def _leave_out_alike(
        self, hosts: Mapping[str, Mapping[Pattern, list[SplitUrl]]], learned: dict[str, dict[Pattern, frozenset[str]]]
    ) -> None:
        """Take away the rules of hosts whose pages look like one, if they leave out parameters. Raises ValueError if
        that is most of the log."""
        num_urls = num_items = 0
        for host in list(learned):
            leaves_out = any(len(kept) < len(pattern) for pattern, kept in learned[host].items())
            if not leaves_out or _share_alike(self._pages[host]) <= self._config.max_same:
                continue
            urls = sum(len(same) for same in hosts[host].values())
            items = {
                write_url(split, without=frozenset(pattern) - learned[host].get(pattern, frozenset(pattern)))
                for pattern, same in hosts[host].items()
                for split in same
            }
            num_urls, num_items = num_urls + urls, num_items + len(items)
            self._result.alike.append(host)
            del learned[host]
        if 2 * num_urls > self._result.urls:
            raise ValueError(
                f"urls: pages that look different required, at most {self._config.max_same:.0%} of a host like one, "
                f"found more at {', '.join(self._result.alike[:5])}: {num_urls:,} URLs would become {num_items:,} "
                "items. Look at what the fingerprint says of two pages (a wall to log in? a page of errors?), or, if "
                "they do lead to so few pages, allow it with a larger max_same (--max-same 1)"
            )


def _fewer_names(
    names: frozenset[str], neutral: frozenset[str], unknown: set[str], patterns: Iterable[Pattern]
) -> list[frozenset[str]]:
    """The sets of names that a pattern may be cut down to, the smallest first: those that matter, with none or one of
    the unknown ones, or with those that another pattern has."""
    least = names - neutral - unknown
    found = {least, *(least | {name} for name in unknown), *map(frozenset, patterns)}
    return sorted((left for left in found if least <= left < names), key=lambda left: (len(left), sorted(left)))


def _share_alike(pages: Mapping[SplitUrl, Hashable]) -> float:
    """Share of the pages of a host that look like the most common one, every path counting alike."""
    by_path: dict[str, list[Hashable]] = defaultdict(list)
    for split, page in pages.items():
        by_path[split.page].append(page)
    shares: dict[Hashable, float] = defaultdict(float)
    for same in by_path.values():
        for page, count in Counter(same).items():
            shares[page] += count / len(same)
    return max(shares.values(), default=0.0) / max(1, len(by_path))


def _choose(names: frozenset[str], urls: list[SplitUrl], samples: int) -> list[SplitUrl]:
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
