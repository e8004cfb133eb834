"""Pages that look alike though their URLs differ: a wall to log in, a page of errors, one page with many trackers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence

from reqdedup.logs.urls.parsing import SplitUrl
from reqdedup.logs.urls.series import MAX_KEPT_BY_NOISE, LearnConfig, by_chance, needed


def share_alike(pages: Mapping[SplitUrl, Hashable]) -> float:
    """Share of the pages of a host that look like the most common one, every path counting alike."""
    by_path: dict[str, list[Hashable]] = defaultdict(list)
    for split, page in pages.items():
        by_path[split.page].append(page)
    shares: dict[Hashable, float] = defaultdict(float)
    for same in by_path.values():
        for page, count in Counter(same).items():
            shares[page] += count / len(same)
    return max(shares.values(), default=0.0) / max(1, len(by_path))


def paths_of_one_page(seen: Sequence[tuple[str, Hashable, bool]], max_same: float) -> set[str]:
    """The paths of the page that more than `max_same` of the tests saw; none if there is no such page."""
    common, count = _most_common(seen)
    return {path for path, page, _ in seen if page == common} if count > max_same * len(seen) else set()


def matters_beside_one_page(seen: Sequence[tuple[str, Hashable, bool]], noise: float, config: LearnConfig) -> bool:
    """Whether parameters change enough of the pages that are left without the one that more than `max_same` of the
    tests saw; not by one change alone, nor by as many as noise makes. False if there is no such page.

    seen: path and page of the whole URL of each test, and whether it changed.
    """
    common, count = _most_common(seen)
    changes = [changed for _, page, changed in seen if page != common]
    return (
        count > config.max_same * len(seen)
        and sum(changes) >= max(2, needed(config.threshold, len(changes)))
        and by_chance(noise, len(seen), sum(changes)) <= MAX_KEPT_BY_NOISE
    )


def _most_common(seen: Sequence[tuple[str, Hashable, bool]]) -> tuple[Hashable, int]:
    return Counter(page for _, page, _ in seen).most_common(1)[0] if seen else (None, 0)
