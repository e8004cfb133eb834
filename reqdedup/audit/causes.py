"""Why a table is larger than it need be: each cause alone, by what it would still cost if all the others were put right.

The reference are plain columns in key order with large pages, zstd, and a dictionary only where it helps. One setting at
a time is put back to what it is today, and the sample written again: the difference are the bytes that this setting
costs. Causes overlap (small pages cost nothing while the rows of a request are scattered), so they do not add up; each
says whether that one change may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from reqdedup.audit.estimate import ColumnTotal
from reqdedup.audit.footers import ColumnFacts, TableFacts
from reqdedup.audit.layouts import SampleLayouts
from reqdedup.audit.report import Cause, RequestAudit
from reqdedup.audit.verdict import format_bytes, format_count
from reqdedup.audit.writing import LARGE_PAGES, PYICEBERG_DEFAULTS, WriterSettings
from reqdedup.storage.foreign.leaves import Shape

HEAVY_SHARE = 0.01
"""Columns below this part of today's bytes are not looked at."""

SMALL_LIMIT, LARGE_LIMIT = 4 * 2**10, 2 * 2**20
DICTIONARY_LIMITS = (SMALL_LIMIT, LARGE_LIMIT)
"""Of a dictionary page. The small one keeps dictionaries for lists of few distinct elements (actions, surfaces), where zstd
on plain ones finds short matches everywhere and misses the copy of the whole list; others fall back to plain at once."""

SMALL_GROUP_REQUESTS = 8
MANY_USER_RUNS = 1.5
NOTABLE_SHARE = 0.001
"""Of today's bytes: a cause below this is noise, and not listed."""

WRITABLE_CODECS = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
LARGE_ENOUGH_PAGE_BYTES = 32 * 2**20
ORDER, CODEC, PAGE_SIZE, DICTIONARY, ROW_GROUPS = "order", "codec", "page_size", "dictionary", "row_groups"


@dataclass(frozen=True)
class Diagnosis:
    """plain: the reference, per column.  with_dictionary: columns that have one in it.

    one_limit: the same where one dictionary limit must do for all columns; limit_bytes is the better of two.  heavy: what
    deduplication is about.
    check: what the sample, written with today's settings in today's order, says that the heavy columns take today, over
    what they really take.
    """

    plain: dict[str, ColumnTotal]
    with_dictionary: list[str]
    one_limit: dict[str, ColumnTotal]
    limit_bytes: int
    causes: list[Cause]
    check: float | None
    heavy: tuple[str, ...]

    @property
    def without_dictionary(self) -> list[str]:
        """Columns that a per-column switch should turn off."""
        return [name for name in self.heavy if name not in self.with_dictionary]


def heavy_columns(layouts: SampleLayouts, facts: TableFacts) -> list[str]:
    """Columns that deduplication is about, largest first: stored by value, the same over a request, not negligible."""
    total = max(facts.compressed_bytes, 1)
    names = [
        name
        for name, column in layouts.sample.columns.items()
        if column.is_stored
        and layouts.repeats[name].is_request_level
        and not layouts.repeats[name].is_constant
        and facts.columns[name].compressed_bytes >= HEAVY_SHARE * total
    ]
    return sorted(names, key=lambda name: -facts.columns[name].compressed_bytes)


def small_group_rows(facts: TableFacts, requests: RequestAudit) -> int | None:
    """Rows of today's row groups where they hold so few requests that this costs."""
    rows = facts.median_row_group_rows
    is_small = len(facts.row_groups) > 1 and rows < SMALL_GROUP_REQUESTS * requests.rows_per_request.mean
    return max(rows, 1) if is_small else None


def diagnose(
    layouts: SampleLayouts,
    facts: TableFacts,
    requests: RequestAudit,
    *,
    large_pages: dict[str, tuple[ColumnTotal, WriterSettings]],
    run: Callable[[Callable[[str], _Column], list[str]], Iterable[_Column]] = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Find the causes. large_pages: every column as SORTED_LARGE_PAGES has it, already measured, and its settings.

    run: `map`, or that of a thread pool.
    """
    heavy = heavy_columns(layouts, facts)
    plain = {name: total for name, (total, _) in large_pages.items()}
    limits: dict[int, dict[str, ColumnTotal]] = {limit: {} for limit in DICTIONARY_LIMITS}
    costs: dict[str, dict[str, float]] = {kind: {} for kind in (ORDER, CODEC, PAGE_SIZE, DICTIONARY, ROW_GROUPS)}
    expected = actual = 0.0

    def examine(name: str) -> _Column:
        return _examine(layouts, facts, requests, name, large_pages[name][1], is_heavy=name in heavy)

    for done, (name, column) in enumerate(zip(large_pages, run(examine, list(large_pages))), start=1):
        for limit, total in column.limits.items():
            limits[limit][name] = total
        for kind, total in column.put_back.items():
            costs[kind][name] = max(total.total - plain[name].total, 0.0)
        if column.today is not None:
            expected += column.today.total
            actual += facts.columns[name].compressed_bytes
        progress(done, len(large_pages))
    with_dictionary = [name for name, (_, settings) in large_pages.items() if settings.dictionary]
    limit = min(limits, key=lambda limit: sum(total.total for total in limits[limit].values()))
    found = [
        _cause(kind, by_column, facts, requests)
        for kind, by_column in costs.items()
        if sum(by_column.values()) > NOTABLE_SHARE * facts.compressed_bytes
    ]
    found.sort(key=lambda cause: -cause.bytes)
    check = expected / actual if actual else None
    return Diagnosis(plain, with_dictionary, limits[limit], limit, found, check, tuple(heavy))


@dataclass(frozen=True)
class _Column:
    """One column in the forms that the causes compare."""

    limits: dict[int, ColumnTotal]
    put_back: dict[str, ColumnTotal] = field(default_factory=dict)
    today: ColumnTotal | None = None


def _examine(
    layouts: SampleLayouts,
    facts: TableFacts,
    requests: RequestAudit,
    name: str,
    best: WriterSettings,
    *,
    is_heavy: bool,
) -> _Column:
    limits = {
        limit: layouts.sorted(name, replace(LARGE_PAGES, dictionary=True, dictionary_bytes=limit))
        for limit in DICTIONARY_LIMITS
    }
    if not is_heavy:
        return _Column(limits)
    put_back = dict(_put_back(layouts, facts, requests, name, best))
    if not best.dictionary and facts.columns[name].has_dictionary and not _by_dictionary(facts.columns[name]):
        put_back[DICTIONARY] = limits[LARGE_LIMIT]
    today = _today(facts.columns[name])
    if today is None:
        return _Column(limits, put_back)
    rows = facts.median_row_group_rows
    return _Column(limits, put_back, _in_order(layouts, name, today, requests, group_rows=rows))


def _put_back(
    layouts: SampleLayouts, facts: TableFacts, requests: RequestAudit, name: str, best: WriterSettings
) -> Iterator[tuple[str, ColumnTotal]]:
    """The column with one thing as it is today, for everything that is not as it should be."""
    column = facts.columns[name]
    if _is_out_of_order(requests):
        yield ORDER, _in_order(layouts, name, best, requests)
    if _today(column) is not None and column.codec != "zstd":
        yield CODEC, layouts.sorted(name, replace(best, codec=column.codec, level=None))
    if column.page_bytes and column.page_bytes < LARGE_ENOUGH_PAGE_BYTES and not _by_dictionary(column):
        yield PAGE_SIZE, layouts.sorted(name, replace(best, page_bytes=column.page_bytes))
    rows = small_group_rows(facts, requests)
    if rows:
        yield ROW_GROUPS, layouts.sorted(name, best, group_rows=rows)


def _today(column: ColumnFacts) -> WriterSettings | None:
    """How the column is written today, as far as it shows; None where this machine cannot write it so."""
    if (
        len(column.codecs) != 1
        or column.codec not in WRITABLE_CODECS
        or not column.page_bytes
        or _by_dictionary(column)
    ):
        return None
    # A dictionary that fell back shows its writer's limit: 1 MB of pyarrow and parquet-mr, 2 MB of Iceberg.
    is_iceberg = column.dictionary_bytes > 1.1 * 2**20
    return replace(
        PYICEBERG_DEFAULTS,
        codec=column.codec,
        page_bytes=column.page_bytes,
        dictionary=column.has_dictionary,
        dictionary_bytes=PYICEBERG_DEFAULTS.dictionary_bytes if is_iceberg else 2**20,
        batch_values=PYICEBERG_DEFAULTS.batch_values if is_iceberg else None,
    )


def _in_order(
    layouts: SampleLayouts,
    name: str,
    settings: WriterSettings,
    requests: RequestAudit,
    *,
    group_rows: int | None = None,
) -> ColumnTotal:
    """The column written in the table's own order."""
    if requests.order == "scattered":
        return layouts.shuffled(name, settings, group_rows=group_rows)
    if _is_out_of_order(requests):
        return layouts.in_runs(name, settings, group_rows=group_rows)
    return layouts.sorted(name, settings, group_rows=group_rows)


def _is_out_of_order(requests: RequestAudit) -> bool:
    """Rows of a request lie apart, or requests of a user do."""
    return requests.order != "grouped" or (requests.user_runs or 1.0) > MANY_USER_RUNS


def _by_dictionary(column: ColumnFacts) -> bool:
    """Its pages hold codes, not values: whole values are stored once already, and page sizes say nothing about copies."""
    is_text = column.leaf.shape is Shape.SCALAR and not column.leaf.width_bytes
    return is_text and (column.dictionary_share or 0.0) > 0.5


def _cause(kind: str, costs: dict[str, float], facts: TableFacts, requests: RequestAudit) -> Cause:
    names = sorted((name for name in costs if costs[name] > 0), key=lambda name: -costs[name])
    top = facts.columns[names[0]]
    fan_out, copies = requests.rows_per_request.mean, top.rows_per_page or 1.0
    page = format_bytes(top.page_bytes or 0)
    runs, groups, files = (
        format_count(spread.mean)
        for spread in (requests.runs_per_request, requests.row_groups_per_request, requests.files_per_request)
    )
    codecs = " and ".join(sorted({facts.columns[name].codec for name in names}))
    texts = {
        ORDER: f"copies do not meet in a page: a request lies in {runs} runs of rows, {groups} row groups and {files} files "
        "on average"
        if requests.order != "grouped"
        else f"requests of one user lie apart, in {format_count(requests.user_runs or 1)} places on average: what they share "
        "does not meet",
        CODEC: f"{codecs} finds no copy that lies more than 32 to 64 kB back; zstd does",
        PAGE_SIZE: f"a page of {page} holds {format_count(copies)} rows of {names[0]}, a request has {format_count(fan_out)}: "
        f"about 1 / (1/{format_count(fan_out)} + 1/{format_count(copies)}) = {format_count(1 / (1 / fan_out + 1 / copies))}x "
        "is all that sorting saves there",
        DICTIONARY: "dictionaries of list elements break up the bytes that repeat; with large pages plain ones are smaller",
        ROW_GROUPS: f"row groups of {facts.median_row_group_rows:,} rows hold "
        f"{format_count(facts.median_row_group_rows / fan_out)} requests: every value starts anew in each",
    }
    return Cause(kind=kind, bytes=float(np.sum(list(costs.values()))), columns=names, text=texts[kind])
