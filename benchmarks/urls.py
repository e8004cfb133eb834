"""Item identity by URLs: how many items of 30 sites are left, how many pages must be looked at, how fast a look-up is.

    python -m benchmarks.urls [--rounds 9] [--domains 30]

A site has pages that one parameter names, often with a variant, and trackers; one of the trackers names the pages of
another path. 3,000 URLs of each. First no two pages of any site may have become one item, with a fingerprint that is
stable and with one that is another at 5% of the calls; and the answer with early exit must be the one without. w3lib
and taking off utm_ parameters stand beside it. One thread, interleaved, CPU time. Replaces
`benchmarks/results/urls.jsonl`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from benchmarks.interleaved import interleaved, line
from benchmarks.record import write_results
from reqdedup.logs.urls import LearnConfig, Learned, Normaliser, learn

Row = dict[str, Any]
DOMAINS, URLS, UNSTABLE = 30, 3_000, 0.05
STABLE_CONFIG = LearnConfig(threshold=0.2)
UNSTABLE_CONFIG = LearnConfig(threshold=0.4)
TRACKERS = (
    *("utm_source", "utm_medium", "ref", "session", "click_id"),
    *("gclid", "src", "tracking", "fbclid", "aff"),
)


@dataclass(frozen=True)
class Site:
    """host: its name.  key, variant: parameters that name a page; variant may be None.  both: a tracker that names the
    pages of /compare.  urls: a log of it."""

    host: str
    key: str
    variant: str | None
    both: str
    urls: tuple[str, ...]

    def page(self, url: str) -> Hashable:
        """What the URL shows: equal for one page."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.path == "/compare":
            return ("compare", query.get(self.both))
        return ("product", query.get(self.key), query.get(self.variant) if self.variant else None)


def make_site(number: int, num_urls: int = URLS) -> Site:
    """The same site for the same number."""
    rng = random.Random(number)
    key, variant = rng.choice(["id", "pid", "sku", "p"]), rng.choice(["color", "v", None])
    trackers = rng.sample(TRACKERS, 5)
    both, host = rng.choice(trackers), f"shop{number}.example"

    def url() -> str:
        if rng.random() < 0.1:
            return f"https://{host}/compare?{urlencode({both: rng.randrange(50)})}"
        query: dict[str, object] = {key: rng.randrange(300)}
        if variant and rng.random() < 0.9:
            query[variant] = rng.choice(["red", "blue", "green"])
        for name in rng.sample(trackers, rng.randrange(4)):
            query[name] = rng.choice(["facebook", "google", "x"]) if name.startswith("utm") else rng.randrange(10**9)
        pairs = list(query.items())
        rng.shuffle(pairs)
        return f"https://{host}/shoes?{urlencode(pairs)}"

    return Site(host, key, variant, both, tuple(url() for _ in range(num_urls)))


class Sites:
    """All of them; `page` and `unstable` are fingerprints."""

    def __init__(self, domains: int, num_urls: int = URLS) -> None:
        self._sites = {site.host: site for site in (make_site(number, num_urls) for number in range(domains))}
        self.urls = [url for site in self._sites.values() for url in site.urls]
        self.pages = {url: (urlsplit(url).hostname, self.page(url)) for url in self.urls}

    def page(self, url: str) -> Hashable:
        return self._sites[str(urlsplit(url).hostname)].page(url)

    def unstable(self, seed: int = 5) -> Callable[[str], Hashable]:
        """A fingerprint that is another at 5% of the calls."""
        rng = random.Random(seed)
        return lambda url: rng.random() if rng.random() < UNSTABLE else self.page(url)

    def figures(self, normalise: Callable[[str], str]) -> tuple[float, int]:
        """Items per true page, and items that hold several pages."""
        pages_of: dict[str, set[Hashable]] = {}
        for url in self.urls:
            pages_of.setdefault(normalise(url), set()).add(self.pages[url])
        return len(pages_of) / len(set(self.pages.values())), sum(len(pages) > 1 for pages in pages_of.values())


def without_utm(url: str) -> str:
    """A rule that many logs live with."""
    from w3lib.url import canonicalize_url

    parts = urlsplit(url)
    pairs = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not pair[0].startswith("utm_")]
    return str(canonicalize_url(parts._replace(query=urlencode(pairs)).geturl()))


def learned_rows(sites: Sites, sizes: dict[str, Any]) -> tuple[Learned, list[Row]]:
    """The gate, then items per page and pages looked at. Raises AssertionError for a false merge."""
    rows: list[Row] = []
    result: Learned | None = None
    for name, config in (("stable", STABLE_CONFIG), ("5% unstable", UNSTABLE_CONFIG)):
        fingerprint = sites.page if name == "stable" else sites.unstable()
        found = learn(sites.urls, fingerprint, config)
        ratio, merges = sites.figures(Normaliser(found.rules))
        if merges:
            raise AssertionError(f"{name} fingerprints: {merges} items hold several pages")
        whole = learn(
            sites.urls,
            sites.page if name == "stable" else sites.unstable(),
            replace(config, early_exit=False),
        )
        if name == "stable" and whole.rules != found.rules:
            raise AssertionError("early exit: other rules than without")
        result = result or found
        told = {"sizes": sizes, "threshold": config.threshold, "false_merges": merges}
        rows.append(
            {"claim": f"items per page, {name} fingerprints", "variant": "reqdedup", "value": ratio,
             "unit": "normalised URLs per true page (at most 1.02)", "target": None, **told}
        )  # fmt: skip
        rows.append(
            {"claim": f"renders, {name} fingerprints", "variant": "reqdedup", "value": found.renders / whole.renders,
             "unit": "x the renders without early exit (at most 0.65)", "target": None, "renders": found.renders, **told}
        )  # fmt: skip
    assert result is not None
    return result, rows


def other_rows(sites: Sites, sizes: dict[str, Any]) -> Iterator[Row]:
    from w3lib.url import canonicalize_url

    for name, normalise in (("w3lib", canonicalize_url), ("w3lib without utm_", without_utm), ("raw", str)):
        ratio, merges = sites.figures(normalise)
        yield {
            "claim": "items per page, others", "variant": name, "value": ratio,
            "unit": f"normalised URLs per true page, {name}", "target": None, "false_merges": merges, "sizes": sizes,
        }  # fmt: skip


def speed_row(sites: Sites, learned: Learned, rounds: int, sizes: dict[str, Any]) -> Row:
    from w3lib.url import canonicalize_url

    normaliser = Normaliser(learned.rules)

    def each(function: Callable[[str], str], urls: list[str]) -> None:
        for url in urls:
            function(url)

    few = sites.urls[: max(1, len(sites.urls) // 10)]
    spelled = [url.replace("=", "=%20%c3%a9/", 1) for url in few]  # to be encoded again
    timings = interleaved(
        {
            "reqdedup": partial(each, normaliser, sites.urls),
            "encoded again": partial(each, normaliser, spelled),
            "w3lib": partial(each, canonicalize_url, few),
        },
        rounds=rounds,
        units={"reqdedup": len(sites.urls), "encoded again": len(few), "w3lib": len(few)},
    )
    speeds = [1 / seconds for seconds in timings.seconds["reqdedup"]]
    return {
        "claim": "look-ups", "variant": "reqdedup", "value": 1 / timings.median("reqdedup"), "unit": "URLs/s a core",
        "target": 100_000, "spread": [min(speeds), max(speeds)], "runs": rounds, "sizes": sizes,
        "encoded_again": 1 / timings.median("encoded again"), "w3lib": 1 / timings.median("w3lib"),
    }  # fmt: skip


def measure(domains: int, num_urls: int, rounds: int) -> Iterator[Row]:
    """All rows, one after the other."""
    sites = Sites(domains, num_urls)
    sizes = {"domains": domains, "urls": len(sites.urls), "pages": len(set(sites.pages.values())), "threads": 1}
    learned, rows = learned_rows(sites, sizes)
    yield from rows
    yield from other_rows(sites, sizes)
    yield speed_row(sites, learned, rounds, sizes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.urls")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--domains", type=int, default=DOMAINS)
    parser.add_argument("--urls", type=int, default=URLS, help="per domain")
    args = parser.parse_args(argv)
    rows = []
    for row in measure(args.domains, args.urls, args.rounds):
        rows.append(row)
        print(line(row), flush=True)
    if (args.domains, args.urls) == (DOMAINS, URLS):
        print(write_results("urls", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
