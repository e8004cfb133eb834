"""The guard of publishing: rules that suddenly drop parameters are more often a broken crawl than a changed web.

A pattern is flagged if a parameter that mattered does not any more. Parameters that matter now and did not, and
patterns that have gone, do not flag: they merge nothing. But one that has gone is compared with those that came in its
place: a new tracker on every URL gives all patterns another name. Above a share of flagged patterns the old rules stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from reqdedup.logs.urls.normalise import Normaliser
from reqdedup.logs.urls.rules import Pattern, Rules, load_rules

MAX_FLAGGED = 0.05
_MAX_EXAMPLES = 20


class RulesRefused(ValueError):  # noqa: N818 - what happened to them
    """The new rules drop parameters of too many patterns; the old ones stay."""


@dataclass(frozen=True)
class RulesChange:
    """compared: number of patterns of the old rules that the new have, too, or have others in place of.
    flagged: of those, the ones that lost a parameter: host, pattern, names lost.
    added, vanished: number of patterns that only the new, or only the old rules have.
    """

    compared: int
    flagged: tuple[tuple[str, Pattern, tuple[str, ...]], ...]
    added: int
    vanished: int

    @property
    def flagged_ratio(self) -> float:
        return len(self.flagged) / self.compared if self.compared else 0.0


@dataclass
class UrlDifference:
    """What other rules make of a sample of URLs.

    urls: number of distinct ones.  changed: those whose normal form is another.
    old_items, new_items: number of normal forms.
    merged: number of new items that were several.  split: number of old items that are several now.
    examples: URL, its old and its new normal form, of some that changed.
    """

    urls: int = 0
    changed: int = 0
    old_items: int = 0
    new_items: int = 0
    merged: int = 0
    split: int = 0
    examples: list[tuple[str, str, str]] = field(default_factory=list)


def compare_rules(old: Rules, new: Rules, *, absent: Collection[str] = ()) -> RulesChange:
    """What became of the patterns, all layers of both rules applied.

    absent: hosts that were not learned again: their patterns have not changed, and are not compared.
    """
    before, after = Normaliser(old), Normaliser(new)
    own, others = (
        {(host, pattern) for host, patterns in rules.hosts.items() if host not in absent for pattern in patterns}
        for rules in (old, new)
    )
    added: dict[str, list[Pattern]] = defaultdict(list)
    for host, pattern in sorted(others - own):
        added[host].append(pattern)
    flagged, compared = [], 0
    for host, pattern in sorted(own):
        successors = [pattern] if (host, pattern) in others else _successors(pattern, added[host])
        compared += bool(successors)
        kept = before.kept(host, pattern)
        lost = {name for other in successors for name in kept.intersection(other) - after.kept(host, other)}
        if lost:
            flagged.append((host, pattern, tuple(sorted(lost))))
    return RulesChange(compared, tuple(flagged), len(others - own), len(own - others))


def _successors(pattern: Pattern, added: list[Pattern]) -> list[Pattern]:
    """Those that came in place of a pattern that has gone: of the ones that share a parameter, the most similar."""
    names = set(pattern)
    differences = {other: len(names.symmetric_difference(other)) for other in added if names.intersection(other)}
    least = min(differences.values(), default=0)
    return [other for other, count in differences.items() if count == least]


def publish(
    new: Rules, path: str | Path, *, max_flagged: float = MAX_FLAGGED, absent: Collection[str] = ()
) -> RulesChange | None:
    """Make the file at `path` hold the new rules; the change from those it had, None if there were none.

    absent: hosts that were not learned again (`Learned.absent`): many of them hide nothing of what the others lost.
    Raises RulesRefused, with the file as it was, if more than `max_flagged` of the patterns that are compared lost a
    parameter, or the new rules have no pattern and the old ones do; ValueError if the file there holds no rules.
    """
    if not 0 <= max_flagged <= 1:
        raise ValueError(f"urls: a max_flagged from 0 to 1 required, found {max_flagged:g}")
    change = compare_rules(load_rules(path), new, absent=absent) if Path(path).exists() else None
    if change is not None and change.flagged_ratio > max_flagged:
        shown = "; ".join(
            f"{host} ({', '.join(pattern)}): {', '.join(lost)}" for host, pattern, lost in change.flagged[:5]
        )
        raise RulesRefused(
            f"{path}: at most {max_flagged:.1%} of the patterns may lose a parameter, found {len(change.flagged):,} of "
            f"{change.compared:,} ({change.flagged_ratio:.1%}), the first: {shown}; the old rules stay. Look at the "
            "fingerprints of those pages, or allow more with a larger max_flagged (--max-flagged)"
        )
    if change is not None and change.vanished and not new.num_patterns:
        raise RulesRefused(
            f"{path}: rules with patterns required to replace {change.vanished:,}, found none; the old rules stay. "
            "Look whether the list has whole URLs, with https:// and parameters"
        )
    new.save(path)
    return change


def diff_urls(old: Rules, new: Rules, urls: Iterable[str]) -> UrlDifference:
    """What changes for these URLs from old rules to new ones."""
    before, after = Normaliser(old), Normaliser(new)
    result = UrlDifference()
    new_of_old, old_of_new = defaultdict(set), defaultdict(set)
    for url in dict.fromkeys(urls):
        one, other = before(url), after(url)
        new_of_old[one].add(other)
        old_of_new[other].add(one)
        result.urls += 1
        if one != other:
            result.changed += 1
            if len(result.examples) < _MAX_EXAMPLES:
                result.examples.append((url, one, other))
    result.old_items, result.new_items = len(new_of_old), len(old_of_new)
    result.merged = sum(len(items) > 1 for items in old_of_new.values())
    result.split = sum(len(items) > 1 for items in new_of_old.values())
    return result
