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
- few tests are not taken for sure: a parameter that changed some pages, or matters in another pattern of the host, is
  tested further until it surely changes less than the threshold, and kept if that stays open (0090);
- a page that most URLs of a pattern show says nothing of the others: they are tested, too, so that a wall to log in
  before one path hides nothing of the other paths (0091);
- the noise is measured: a page that changes by itself, twice the same URL, would keep everything;
- pages that look alike are, too, of a host and of a pattern: one page for all, a login wall, would make one item of
  everything.

Memory is that of all distinct URLs in parts, 1 to 1.5 kB each at ten parameters.

Source: Pinterest Engineering, Smarter URL Normalization at Scale, 2026-04.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from reqdedup.logs.urls.alike import matters_beside_one_page, paths_of_one_page, share_alike
from reqdedup.logs.urls.parsing import SplitUrl, pattern_of, split_url, write_url
from reqdedup.logs.urls.rules import Pattern, Rules
from reqdedup.logs.urls.series import (
    MAX_KEPT_BY_NOISE,
    LearnConfig,
    Series,
    choose,
    fewer_names,
    is_rare,
    kept_by_noise,
)

Fingerprint = Callable[[str], Hashable | None]
"""What a URL's page is known by, equal for pages that are the same; None if it is unknown. If it has a text `answers`,
which says what it met, messages have it."""

Progress = Callable[[int, int], None]
"""Called at every look at a page, with the number of looks, and how many they are at most if none leaves a doubt."""

_MOST_SAMPLES = 5
"""Number of tests at most, in multiples of `samples`, if fewer leave a doubt."""


@dataclass
class Learned:
    """rules: what was found.
    renders: number of calls of the fingerprint.
    urls: number of distinct URLs, as they are spelled.  not_urls: number of texts that are none.
    noise: share of the URLs of a host whose page differed from itself, by host.
    unstable: hosts whose noise the threshold does not stand above; they have no rules, so that everything is kept.
    alike: hosts without rules, as more than `max_same` of their pages look like one.
    alike_patterns: host and pattern of those that keep, for the same reason, what other patterns do not leave out.
    walled: host and pattern of those that keep what changes only pages beside the one that most of their URLs show.
    absent: hosts of which no URL is there; they have the rules of `layers`.
    untested: number of parameters that are kept because they were tested too little.
    """

    rules: Rules
    renders: int = 0
    urls: int = 0
    not_urls: int = 0
    noise: dict[str, float] = field(default_factory=dict)
    unstable: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    alike_patterns: list[tuple[str, Pattern]] = field(default_factory=list)
    walled: list[tuple[str, Pattern]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    untested: int = 0


def learn(
    urls: Iterable[str],
    fingerprint: Fingerprint,
    config: LearnConfig | None = None,
    *,
    layers: Rules | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Rules of the hosts of these URLs, and what finding them took.

    The same for the same URLs in any order, if the fingerprint is. layers: rules whose allowlists and regular
    expressions the new ones have, too, and what they say of hosts that these URLs do not have. progress: for terminals.
    Raises ValueError if the fingerprint knows no page at all, changes by itself on so many pages of all hosts together
    that the threshold does not stand above it, takes most of the log for a few pages, or says what has no hash.
    """
    if isinstance(urls, str):
        raise ValueError(f"urls: a list of URLs required, found a text: {urls!r:.80}")
    config = config or LearnConfig()
    return _Learner(fingerprint, config, progress).run(urls, layers or Rules())


@dataclass
class _Test:
    """names: parameters that were left out.  without: those and the ones found neutral before.
    urls: of the pattern.  series: outcomes.  is_neutral: whether they are left out, as far as the pattern says.
    is_all: whether there are no further URLs to test.  is_sure: whether there were enough to say that it matters.
    seen: of each outcome the path, the page of the whole URL, and whether it changed."""

    names: frozenset[str]
    without: frozenset[str]
    urls: list[SplitUrl]
    series: Series
    is_neutral: bool = False
    is_all: bool = False
    is_sure: bool = False
    seen: list[tuple[str, Hashable, bool]] = field(default_factory=list)


class _Learner:
    def __init__(self, fingerprint: Fingerprint, config: LearnConfig, progress: Progress | None) -> None:
        self._fingerprint, self._config, self._progress = fingerprint, config, progress
        self._most_renders = 0
        self._result = Learned(Rules())
        self._pages: dict[str, dict[SplitUrl, Hashable]] = defaultdict(dict)
        """Of each host: what its URLs, whole, were found to show."""

    def run(self, urls: Iterable[str], layers: Rules) -> Learned:
        hosts = self._group(urls)
        result = self._result
        self._most_renders = sum(map(self._planned, hosts.values()))
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
            chosen = self._chosen(patterns)
            tests = {pattern: self._tested(pattern, patterns[pattern], [(), *chosen]) for pattern in chosen}
            learned[host] = self._kept(tests)
        if result.renders and not any(self._pages.values()):
            answers = getattr(self._fingerprint, "answers", "")
            raise ValueError(
                f"urls: a fingerprint that knows pages of these URLs required, found none of {result.renders:,} known"
                f"{answers and f' ({answers})'}; is it the right table, does the server have these pages?"
            )
        self._leave_out_alike(hosts, learned)
        for host, kept in learned.items():
            self._keep_alike(host, kept)
        result.absent = sorted(layers.hosts.keys() - hosts.keys())
        result.rules = replace(layers, hosts={**{host: layers.hosts[host] for host in result.absent}, **learned})
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

    def _chosen(self, patterns: Mapping[Pattern, list[SplitUrl]]) -> list[Pattern]:
        """The patterns of a host that are learned, the most frequent first."""
        frequent = sorted(patterns, key=lambda pattern: (-len(patterns[pattern]), pattern))
        chosen = [pattern for pattern in frequent if pattern and len(pattern) <= self._config.max_parameters]
        return chosen[: self._config.max_patterns]

    def _planned(self, patterns: Mapping[Pattern, list[SplitUrl]]) -> int:
        """Number of looks at the pages of a host, at most, if none leaves a doubt."""
        num_urls = sum(len(same) for pattern, same in patterns.items() if pattern)
        tests = sum(len(one) * min(self._config.samples, len(patterns[one])) for one in self._chosen(patterns))
        return 2 * (min(self._config.noise_samples, num_urls) + tests)

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

    def _tested(self, pattern: Pattern, urls: list[SplitUrl], patterns: Iterable[Pattern]) -> list[_Test]:
        """The tests of a pattern, what they leave out being left out in the next. patterns: those of the host."""
        names = frozenset(pattern)
        neutral: frozenset[str] = frozenset()
        too_short: set[str] = set()
        unknown: set[str] = set()
        tests: list[_Test] = []
        for name in pattern:
            test = self._test(frozenset({name}), urls, neutral)
            tests.append(test)
            if test.is_neutral:
                neutral |= {name}
            if test.series.is_too_short:
                too_short.add(name)
            if test.series.is_open:
                unknown.add(name)
        # A table may know the page without several of them and not that without one. If it is the page with them, it is
        # the page with any values of theirs.
        tried = {test.without for test in tests}
        last = len(tried) + 2 * len(unknown)
        for left in fewer_names(names, neutral, unknown, patterns) if unknown else ():
            group = names - neutral - left
            if not group or left & neutral or neutral | group in tried or len(tried) == last:
                continue
            tried.add(neutral | group)
            test = self._test(group, urls, neutral)
            if test.is_neutral:
                tests.append(test)
                neutral |= group
        self._result.untested += len(too_short - neutral)
        return tests

    def _test(
        self, names: frozenset[str], urls: list[SplitUrl], neutral: frozenset[str], *, is_rest: bool = False
    ) -> _Test:
        """Whether pages change without these parameters, those found neutral left out, too; tested further if in
        doubt, and on other paths if most of the tests saw one page. is_rest: whether these are those of other paths."""
        chosen = choose(names, urls, self._config.samples)
        series = Series(len(chosen), self._config)
        test = _Test(names, neutral | names, urls, series)
        for split in chosen:
            if self._config.early_exit and series.is_decided:
                break
            self._note(test, split)
        test.is_sure = len(chosen) == self._config.samples
        test.is_all = not test.is_sure
        test.is_neutral = not series.matters
        if test.is_neutral and series.changed:
            self._go_on(test)
        walled = paths_of_one_page(test.seen, self._config.max_same) if test.is_neutral and not is_rest else ()
        rest = [split for split in urls if split.page not in walled] if walled else []
        if len(rest) >= self._config.min_samples and not self._test(names, rest, neutral, is_rest=True).is_neutral:
            self._keep_walled(test)
        return test

    def _note(self, test: _Test, split: SplitUrl, *, is_further: bool = False) -> None:
        changed = self._changed(split, without=test.without)
        if changed is not None and (is_further or not test.series.is_decided):
            test.seen.append((split.page, self._pages[split.host][split], changed))
        (test.series.add_further if is_further else test.series.add)(changed)

    def _go_on(self, test: _Test) -> None:
        """Test parameters that seem neutral further, until they surely are, or are not, which they are neither if they
        change enough of the pages beside the one that most of the tests saw."""
        noise = self._result.noise[test.urls[0].host]
        if not matters_beside_one_page(test.seen, noise, self._config):
            self._test_further(test)
        if test.is_neutral and matters_beside_one_page(test.seen, noise, self._config):
            self._keep_walled(test)

    def _keep_walled(self, test: _Test) -> None:
        test.is_neutral = False
        walled = (test.urls[0].host, pattern_of(test.urls[0]))
        if walled not in self._result.walled:
            self._result.walled.append(walled)

    def _test_further(self, test: _Test) -> None:
        samples, series, threshold = self._config.samples, test.series, self._config.threshold
        if series.is_rare or test.is_all:
            return
        further = choose(test.names, test.urls, _MOST_SAMPLES * samples)[samples:]
        for split in further:
            self._note(test, split, is_further=True)
            if series.is_rare:
                return
            if not is_rare(series.changed, _MOST_SAMPLES * samples, threshold):
                break
        else:
            test.is_all = len(further) < (_MOST_SAMPLES - 1) * samples
        test.is_neutral = test.is_all and not series.matters

    def _kept(self, tests: Mapping[Pattern, list[_Test]]) -> dict[Pattern, frozenset[str]]:
        """The parameters of a host's patterns that matter, were tested too little, or may matter by what other patterns
        say of them."""
        every = [(pattern, test) for pattern, same in tests.items() for test in same if not test.series.is_too_short]
        matter = {name for _, test in every if test.is_sure and not test.is_neutral for name in test.names}
        evidence: dict[str, dict[Pattern, bool]] = defaultdict(dict)
        """Of each name: patterns whose tests are enough, and whether it is rare there."""
        for pattern, test in every:
            if test.is_neutral and test.names & matter:
                self._go_on(test)
            for name in test.names:
                if test.series.is_rare or (test.is_sure and not test.is_neutral):
                    evidence[name][pattern] = test.is_neutral
        kept = {pattern: frozenset(pattern) for pattern in tests}
        for pattern, test in every:
            if test.is_neutral and (
                test.series.is_rare
                or not (test.series.changed or test.names & matter)
                or all(_is_rare_in_similar(pattern, evidence[name]) for name in test.names)
            ):
                kept[pattern] -= test.names
        return kept

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
        if self._progress is not None:
            self._progress(self._result.renders, max(self._most_renders, self._result.renders))
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
            if not leaves_out or share_alike(self._pages[host]) <= self._config.max_same:
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

    def _keep_alike(self, host: str, kept: dict[Pattern, frozenset[str]]) -> None:
        """Keep what patterns whose pages look like one would leave out, but for the names that the others do.

        A wall to log in before one path of a host is a pattern of one page, as is a page with nothing but trackers;
        trackers are found on other pages, too.
        """
        pages: dict[Pattern, dict[SplitUrl, Hashable]] = defaultdict(dict)
        for split, page in self._pages[host].items():
            pages[pattern_of(split)][split] = page
        alike = {pattern for pattern in kept if share_alike(pages[pattern]) > self._config.max_same}
        others = kept.keys() - alike
        neutral = {name for pattern in others for name in pattern} - {name for one in others for name in kept[one]}
        for pattern in sorted(alike):
            more = frozenset(pattern) - kept[pattern] - neutral
            if more:
                kept[pattern] |= more
                self._result.alike_patterns.append((host, pattern))


def _is_rare_in_similar(pattern: Pattern, evidence: Mapping[Pattern, bool]) -> bool:
    """Whether the patterns that are most like this one say that a parameter of theirs does not matter: those that lack
    the fewest of its names, which name the page, and of these the ones with the fewest others."""
    names = set(pattern)
    differences = {other: (len(names.difference(other)), len(other)) for other in evidence}
    least = min(differences.values(), default=(0, 0))
    return bool(evidence) and all(evidence[other] for other, count in differences.items() if count == least)
