"""Why a table is larger than it need be: each cause alone, by what it would still cost if all others were put right.

The reference are plain columns in key order with large pages, zstd, and a dictionary only if it helps. One setting at a
time is put back to what it is today, and the sample written again: the difference are the bytes that this setting
costs. Causes overlap (small pages cost nothing while the rows of a request are scattered), so they do not add up; each
says whether that one change may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from reqdedup.audit.footers import ColumnFacts, TableFacts
from reqdedup.audit.plain import AS_THEY_LIE, PlainSample
from reqdedup.audit.report import Cause, RequestAudit
from reqdedup.audit.verdict import counted_mean, format_count
from reqdedup.audit.writing import LARGE_PAGES, PYICEBERG_DEFAULTS, WriterSettings
from reqdedup.display import format_bytes
from reqdedup.storage.foreign.leaves import Shape

HEAVY_SHARE = 0.01
"""Columns below this part of today's bytes are not looked at."""

SMALL_LIMIT, LARGE_LIMIT = 4 * 2**10, 2 * 2**20
DICTIONARY_LIMITS = (SMALL_LIMIT, LARGE_LIMIT)
"""Of a dictionary page. The small one keeps dictionaries for lists of few distinct elements (actions, surfaces), where
zstd on plain ones finds short matches everywhere and misses the copy of the whole list; others fall back to plain at
once."""

SMALL_GROUP_REQUESTS = 8
MANY_USER_RUNS = 1.5
NOTABLE_SHARE = 0.001
"""Of today's bytes: a cause below this is noise, and not listed."""

NEAR = 0.05
"""Of a column's real bytes: what its sample comes to at the right level of its codec."""

WRITABLE_CODECS = ("none", "snappy", "gzip", "brotli", "lz4", "zstd")
LARGE_ENOUGH_PAGE_BYTES = 32 * 2**20
ORDER, CODEC, PAGE_SIZE, DICTIONARY, ROW_GROUPS = "order", "codec", "page_size", "dictionary", "row_groups"


@dataclass(frozen=True)
class Diagnosis:
    """plain: the reference, per column.  with_dictionary: columns that have one in it.

    one_limit: the same if one dictionary limit must do for all columns; limit_bytes is the better of two.
    heavy: what deduplication is about.
    check: what the sample, written with today's settings in today's order, says that the heavy columns take today, over
    what they really take.
    """

    plain: dict[str, float]
    with_dictionary: list[str]
    one_limit: dict[str, float]
    limit_bytes: int
    causes: list[Cause]
    check: float | None
    heavy: tuple[str, ...]

    @property
    def without_dictionary(self) -> list[str]:
        """Columns that a per-column switch should turn off."""
        return [name for name in self.heavy if name not in self.with_dictionary]


def heavy_columns(sample: PlainSample, facts: TableFacts) -> list[str]:
    """Columns that deduplication is about, largest first: stored by value, the same over a request, not negligible."""
    total = max(facts.compressed_bytes, 1)
    names = [
        name
        for name, column in sample.sample.columns.items()
        if column.is_stored
        and sample.repeats[name].is_request_level
        and not sample.repeats[name].is_constant
        and facts.columns[name].compressed_bytes >= HEAVY_SHARE * total
    ]
    return sorted(names, key=lambda name: -facts.columns[name].compressed_bytes)


def small_group_rows(facts: TableFacts, requests: RequestAudit) -> int | None:
    """Rows of today's row groups if they hold so few requests that this costs."""
    rows = facts.median_row_group_rows
    is_small = len(facts.row_groups) > 1 and rows < SMALL_GROUP_REQUESTS * requests.rows_per_request.mean
    return max(rows, 1) if is_small else None


def diagnose(
    sample: PlainSample,
    facts: TableFacts,
    requests: RequestAudit,
    *,
    run: Callable[[Callable[[str], _Column], list[str]], Iterable[_Column]] = map,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Diagnosis:
    """Find the causes. run: `map`, or that of a thread pool."""
    heavy = heavy_columns(sample, facts)
    names = list(sample.sample.columns)
    plain: dict[str, float] = {}
    with_dictionary: list[str] = []
    limits: dict[int, dict[str, float]] = {limit: {} for limit in DICTIONARY_LIMITS}
    costs: dict[str, dict[str, float]] = {kind: {} for kind in (ORDER, CODEC, PAGE_SIZE, DICTIONARY, ROW_GROUPS)}
    expected = actual = 0.0

    def examine(name: str) -> _Column:
        return _examine(sample, facts, requests, name, is_heavy=name in heavy)

    for done, (name, column) in enumerate(zip(names, run(examine, names)), start=1):
        plain[name] = column.plain
        if column.settings.dictionary:
            with_dictionary.append(name)
        for limit, total in column.limits.items():
            limits[limit][name] = total
        for kind, total in column.put_back.items():  # one setting of today costs no more than all of them do
            costs[kind][name] = max(min(total, facts.columns[name].compressed_bytes) - plain[name], 0.0)
        if column.today is not None:
            expected += column.today
            actual += facts.columns[name].compressed_bytes
        progress(done, len(names))
    limit = min(limits, key=lambda limit: sum(limits[limit].values()))
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
    """One column's bytes in the forms that the causes compare. settings: of the plain one."""

    plain: float
    settings: WriterSettings
    limits: dict[int, float]
    put_back: dict[str, float] = field(default_factory=dict)
    today: float | None = None


def _examine(
    sample: PlainSample,
    facts: TableFacts,
    requests: RequestAudit,
    name: str,
    *,
    is_heavy: bool,
) -> _Column:
    plain, best = sample.large_pages(name)
    limits = {
        limit: sample.bytes(name, replace(LARGE_PAGES, dictionary=True, dictionary_bytes=limit))
        for limit in DICTIONARY_LIMITS
    }
    if not is_heavy:
        return _Column(plain, best, limits)
    put_back = dict(_put_back(sample, facts, requests, name, best))
    if not best.dictionary and facts.columns[name].has_dictionary and not _by_dictionary(facts.columns[name]):
        put_back[DICTIONARY] = limits[LARGE_LIMIT]
    today = _today(facts.columns[name])
    if today is None:
        return _Column(plain, best, limits, put_back)
    return _Column(plain, best, limits, put_back, _as_today(sample, facts, name, today))


def _as_today(sample: PlainSample, facts: TableFacts, name: str, today: WriterSettings) -> float:
    """The column's bytes in today's order and settings, with the level that comes nearest to its real bytes.

    No footer says zstd's level, and of lists of small numbers the fast ones find next to nothing of what the third
    finds: 20 times the bytes. So that of the writer's default is tried, and the others if it is not near.
    """
    real, found = facts.columns[name].compressed_bytes, []
    for level in _levels(facts) if today.codec == "zstd" else (None,):
        settings = replace(today, level=level)
        found.append(sample.bytes(name, settings, AS_THEY_LIE, facts.median_row_group_rows))
        if abs(found[-1] - real) <= NEAR * real:
            break
    return min(found, key=lambda num_bytes: abs(num_bytes - real))


def _levels(facts: TableFacts) -> tuple[int, ...]:
    """zstd's levels in the order in which a table's writer is likely to have taken them: pyarrow's default is 1."""
    return (1, 3, 6, 9) if any("parquet-cpp-arrow" in writer for writer in facts.created_by) else (3, 1, 6, 9)


def _put_back(
    sample: PlainSample, facts: TableFacts, requests: RequestAudit, name: str, best: WriterSettings
) -> Iterator[tuple[str, float]]:
    """The column with one thing as it is today, for everything that is not as it should be."""
    column = facts.columns[name]
    if _is_out_of_order(requests):
        yield ORDER, sample.bytes(name, best, AS_THEY_LIE)
    if _today(column) is not None and column.codec != "zstd":
        yield CODEC, sample.bytes(name, replace(best, codec=column.codec, level=None))
    if column.page_bytes and column.page_bytes < LARGE_ENOUGH_PAGE_BYTES and not _by_dictionary(column):
        yield PAGE_SIZE, sample.bytes(name, replace(best, page_bytes=column.page_bytes))
    rows = small_group_rows(facts, requests)
    if rows:
        yield ROW_GROUPS, sample.bytes(name, best, group_rows=rows)


def _today(column: ColumnFacts) -> WriterSettings | None:
    """How the column is written today, as far as it shows; None if this machine cannot write it so."""
    if (
        len(column.codecs) != 1
        or column.codec not in WRITABLE_CODECS
        or not column.page_bytes
        or _by_dictionary(column)
    ):
        return None
    # A dictionary that fell back shows its writer's limit: 1 MB of pyarrow and parquet-mr, 2 MB of Iceberg. One that
    # never did was below it, however long.
    is_iceberg = column.dictionary_bytes > 1.1 * 2**20
    never_fell = column.dictionary_share == 1
    return replace(
        PYICEBERG_DEFAULTS,
        codec=column.codec,
        page_bytes=column.page_bytes,
        dictionary=column.has_dictionary,
        dictionary_bytes=2**31 - 1 if never_fell else PYICEBERG_DEFAULTS.dictionary_bytes if is_iceberg else 2**20,
        batch_values=PYICEBERG_DEFAULTS.batch_values if is_iceberg else None,
    )


def _is_out_of_order(requests: RequestAudit) -> bool:
    """Rows of a request lie apart, or requests of a user do."""
    return requests.order != "grouped" or (requests.user_runs or 1.0) > MANY_USER_RUNS


def _by_dictionary(column: ColumnFacts) -> bool:
    """Its pages hold codes, not values: whole values are stored once already, and page sizes say
    nothing about copies."""
    is_text = column.leaf.shape is Shape.SCALAR and not column.leaf.width_bytes
    return is_text and (column.dictionary_share or 0.0) > 0.5


def _cause(kind: str, costs: dict[str, float], facts: TableFacts, requests: RequestAudit) -> Cause:
    names = sorted((name for name in costs if costs[name] > 0), key=lambda name: -costs[name])
    top = facts.columns[names[0]]
    fan_out, copies = requests.rows_per_request.mean, top.rows_per_page or 1.0
    page = format_bytes(top.page_bytes or 0)
    runs, groups, files = (
        counted_mean(spread.mean, name)
        for spread, name in (
            (requests.runs_per_request, "run"),
            (requests.row_groups_per_request, "row group"),
            (requests.files_per_request, "file"),
        )
    )
    codecs = " and ".join(sorted({facts.columns[name].codec for name in names}))
    texts = {
        ORDER: f"copies do not meet in a page: a request lies in {runs} of rows, {groups} and {files} on average"
        if requests.order != "grouped"
        else f"requests of one user lie apart, in {format_count(requests.user_runs or 1)} places on average: what they "
        "share does not meet",
        CODEC: f"{codecs} finds no copy that lies more than 32 to 64 kB back; zstd does",
        PAGE_SIZE: f"a page of {page} holds {format_count(copies)} rows of {names[0]}, a request has "
        f"{format_count(fan_out)}: about 1 / (1/{format_count(fan_out)} + 1/{format_count(copies)}) = "
        f"{format_count(1 / (1 / fan_out + 1 / copies))}x is all that sorting saves there",
        DICTIONARY: "dictionaries of list elements break up the bytes that repeat; with large pages plain ones are "
        "smaller",
        ROW_GROUPS: f"row groups of {facts.median_row_group_rows:,} rows hold "
        f"{format_count(facts.median_row_group_rows / fan_out)} requests: every value starts anew in each",
    }
    return Cause(kind=kind, bytes=float(np.sum(list(costs.values()))), columns=names, text=texts[kind])
