"""URLs that lead to one page as one text.

The parameters that no layer keeps are left out, the others are ordered by name. A pattern without rules keeps
everything; what is no URL stays as it is and is counted. Normalising twice changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reqdedup.logs.urls.parsing import canonical, decoded, host_of, join_url, split_url
from reqdedup.logs.urls.rules import Rules, load_rules

_MAX_REMEMBERED = 100_000
_MAX_REMEMBERED_NAMES = 64


@dataclass
class UrlCounts:
    """urls: number of texts seen.  not_urls: those that are none of http or https, kept as they are."""

    urls: int = 0
    not_urls: int = 0


class Normaliser:
    """Applies rules to URLs; `load` takes them from their file."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.counts = UrlCounts()
        self._keep = [re.compile(pattern) for pattern in rules.keep]
        self._allowed = [
            (host if host == "*" else host_of(host), frozenset(map(canonical, names)))
            for host, names in rules.allowlists.items()
        ]
        self._closed: dict[str, dict[tuple[str, ...], frozenset[str]]] = {}
        self._choices: dict[tuple[str, tuple[str, ...]], list[tuple[int, str]]] = {}

    @classmethod
    def load(cls, source: Rules | Mapping[str, Any] | str | Path) -> Normaliser:
        """That of a rules file, or of its parsed JSON. Raises ValueError for what is none."""
        return cls(load_rules(source))

    def __call__(self, text: str) -> str:
        """The normal form of a URL; what is no URL as it is."""
        self.counts.urls += 1
        form = self.form(text)
        if form is None:
            self.counts.not_urls += 1
            return text
        return form

    def form(self, text: str) -> str | None:
        """The normal form of a URL, None of what is none; counts nothing."""
        split = split_url(text)
        if split is None:
            return None
        if not split.names:
            return split.page + split.fragment
        chosen = self._choices.get((split.host, split.names))
        if chosen is None:
            chosen = self._choose(split.host, split.names)
        values = split.values
        return join_url(split, [f"{name}={canonical(values[at])}" for at, name in chosen])

    def all(self, texts: Iterable[str]) -> list[str]:
        """The normal forms of N texts, in their order."""
        return [self(text) for text in texts]

    def kept(self, host: str, pattern: tuple[str, ...]) -> frozenset[str]:
        """Names of a pattern, sorted and canonical, that are kept on this host."""
        if host not in self.rules.hosts:
            return frozenset(pattern)
        if host not in self._closed:
            self._closed[host] = self._close(host)
        return self._closed[host].get(pattern, frozenset(pattern))

    def _close(self, host: str) -> dict[tuple[str, ...], frozenset[str]]:
        """What all layers keep of each pattern of a host; all of one that would be cut down to a pattern of which less
        is kept: normalising twice changes nothing, whatever the rules are."""
        closed: dict[tuple[str, ...], frozenset[str]] = {}
        patterns = self.rules.hosts[host]
        for pattern in sorted(patterns, key=len):
            kept = self._kept_by_layers(host, pattern, patterns[pattern])
            is_last = closed.get(tuple(sorted(kept)), kept) == kept
            closed[pattern] = kept if is_last else frozenset(pattern)
        return closed

    def _kept_by_layers(self, host: str, pattern: tuple[str, ...], learned: frozenset[str]) -> frozenset[str]:
        kept = set(learned)
        hostname = re.sub(r":[0-9]+$", "", host)
        for known, names in self._allowed:
            if known in ("*", host, hostname) or hostname.endswith("." + known):
                kept.update(names)
        kept.update(
            name for name in pattern if any(rule.search(decoded(name)) or rule.search(name) for rule in self._keep)
        )
        return frozenset(kept.intersection(pattern))

    def _choose(self, host: str, names: tuple[str, ...]) -> list[tuple[int, str]]:
        """Places of the parameters that are kept, and their names, in the order of the names."""
        own = [canonical(name) for name in names]
        kept = self.kept(host, tuple(sorted(set(own))))
        chosen = [(at, name) for at, name in enumerate(own) if name in kept]
        chosen.sort(key=lambda pair: pair[1])
        if len(names) <= _MAX_REMEMBERED_NAMES:
            if len(self._choices) >= _MAX_REMEMBERED:
                self._choices.clear()
            self._choices[host, names] = chosen
        return chosen
