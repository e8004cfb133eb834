"""An audit as text for a terminal: the verdict first, then the figures behind it, at most WIDTH columns wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from reqdedup.audit.report import (
    BY_REQUEST,
    CHECK_TOLERANCE,
    SHUFFLED,
    SORTED,
    SORTED_LARGE_PAGES,
    STORE_ONCE,
    AuditReport,
    ColumnAudit,
    Spread,
)
from reqdedup.audit.verdict import counted_mean, format_count, format_times
from reqdedup.display import counted, fit, format_bytes

WIDTH = 110
NAME_WIDTH = 28
LEVELS = {"nearly_request": "nearly", "request": "request", "item": "item", "key": "key", "unknown": "?"}
SMALL_SHARE = 0.002


def render(report: AuditReport, *, width: int = WIDTH) -> str:
    """The whole report as plain text, lines of at most `width` columns.

    Tables that are wider continue below; settings, which are meant to be copied, are broken between their arguments.
    """
    parts = [
        _wrapped(report.verdict, width),
        table_lines(report, width),
        _aligned(layout_rows(report), "<>>><", width),
        _columns(report, width),
        cause_lines(report, width),
        setting_lines(report, width),
        _notes(report, width),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _wrapped(lines: Iterable[str], width: int, indent: str = "", then: str = "  ") -> list[str]:
    return [
        piece
        for line in lines
        for piece in textwrap.wrap(
            line,
            width,
            initial_indent=indent,
            subsequent_indent=indent + then,
            break_on_hyphens=False,
            break_long_words=False,
        )
    ]


def table_lines(report: AuditReport, width: int) -> list[str]:
    table, requests, sample = report.table, report.requests, report.sample
    about = "" if requests.is_exact else "about "
    lines = [
        f"{table.name}: {table.rows:,} rows in {counted(table.files, 'file')} and "
        f"{counted(table.row_groups, 'row group')} "
        f"({table.median_row_group_rows:,} rows, {format_bytes(table.median_row_group_bytes)} in the median), "
        f"{format_bytes(table.file_bytes)} on disk, {format_bytes(table.uncompressed_bytes)} before compression",
        f"requests: {about}{requests.requests:,} by {', '.join(requests.request_key)}"
        + (
            f", of {about}{requests.users:,} users by {', '.join(requests.user_key)} ({requests.requests_per_user:.3g} "
            "each)"
            if requests.users is not None
            else " (no user key given: user overlap is not reported)"
        ),
        f"rows per request: {_spread(requests.rows_per_request)}; {requests.single_row_requests:.1%} have one row",
        f"order: {requests.order}; a request lies in {_spread(requests.runs_per_request)} runs of neighbouring rows, "
        f"{counted_mean(requests.row_groups_per_request.mean, 'row group')}, "
        f"{counted_mean(requests.files_per_request.mean, 'file')}",
        "sample: "
        + ("the whole table, " if sample.is_whole_table else "")
        + f"{sample.users:,} {'users' if requests.user_key else 'requests'}, {sample.requests:,} requests, "
        f"{sample.rows:,} rows, {format_bytes(sample.fat_bytes)} with every value laid down"
        + (f"; written as today it gives {report.model_check:.1%} of the real bytes" if is_near(report) else ""),
    ]
    return _wrapped(lines, width)


def is_near(report: AuditReport) -> bool:
    """Whether today's form of the heavy columns was imitated; if not, a note says so, and no figure."""
    return report.model_check is not None and abs(report.model_check - 1) <= CHECK_TOLERANCE


def _spread(spread: Spread) -> str:
    return (
        f"mean {format_count(spread.mean)}, p50 {format_count(spread.p50)}, p90 {format_count(spread.p90)}, "
        f"p99 {format_count(spread.p99)}, max {format_count(spread.max)}"
    )


def layout_rows(report: AuditReport) -> list[list[str]]:
    """Today and every layout as cells, a head first."""
    remarks = {
        SHUFFLED: "random order, lists, pyiceberg's defaults: the control",
        SORTED: "by user and request, lists, pyiceberg's defaults",
        SORTED_LARGE_PAGES: "the same, 128 MB pages, zstd: any engine reads it",
        BY_REQUEST: "each sequence once per row group, as a blob",
        STORE_ONCE: "the limit: every distinct value once",
    }
    rows = [["layout", "bytes", "95% interval", "smaller by", ""]]
    rows.append(
        ["today", format_bytes(report.table.compressed_bytes), "exact", "1x", "column chunks, from the footers"]
    )
    for layout in report.layouts:
        rows.append(
            [
                layout.layout,
                format_bytes(layout.bytes),
                f"{format_bytes(layout.low)} to {format_bytes(layout.high)}",
                format_times(layout.ratio),
                remarks[layout.layout],
            ]
        )
    return rows


def column_rows(columns: Iterable[ColumnAudit], *, name_width: int) -> list[list[str]]:
    """These columns as cells, a head first; longer names are cut."""
    rows = [
        [
            "column",
            "level",
            "repeats",
            "overlap",
            "today",
            "codec",
            "page",
            "rows/page",
            "sorted",
            "large p.",
            "by req.",
            "once",
        ]
    ]
    for column in columns:
        rows.append(
            [
                column.name if len(column.name) <= name_width else column.name[: name_width - 1] + "~",
                LEVELS[column.level],
                _percent(column.repeat_ratio),
                _percent(column.user_overlap),
                format_bytes(column.compressed_bytes),
                column.codec,
                format_bytes(column.page_bytes),
                "-" if column.rows_per_page is None else format_count(column.rows_per_page),
                *[_estimate(column, name) for name in (SORTED, SORTED_LARGE_PAGES, BY_REQUEST, STORE_ONCE)],
            ]
        )
    return rows


def columns_by_size(report: AuditReport) -> tuple[list[ColumnAudit], list[ColumnAudit]]:
    """The columns worth a line, largest first, and the small ones."""
    every = sorted(report.columns, key=lambda column: -column.compressed_bytes)
    small = [column for column in every if column.compressed_bytes < SMALL_SHARE * report.table.compressed_bytes]
    return [column for column in every if column not in small] or every[:5], small


def _columns(report: AuditReport, width: int) -> list[str]:
    shown, small = columns_by_size(report)
    lines = _aligned(column_rows(shown, name_width=NAME_WIDTH), "<<>>><>>>>>>", width)
    if small:
        total = sum(column.compressed_bytes for column in small)
        names = ", ".join(column.name for column in small)
        lines += _wrapped([f"{counted(len(small), 'small column')}, {format_bytes(total)} together: {names}"], width)
    broken = [column for column in report.columns if column.example]
    lines += _wrapped(
        [
            f"{column.name} is not the same in {column.broken_requests:,} of {column.checked_requests:,} sampled "
            f"requests; {column.example}"
            for column in broken
        ],
        width,
    )
    return lines


def cause_lines(report: AuditReport, width: int) -> list[str]:
    if not report.causes:
        return []
    lines = _wrapped(["likely causes, each by what it would cost if it alone stayed as it is:"], width)
    for number, cause in enumerate(report.causes, start=1):
        lines += _wrapped(
            [f"{number}. {format_bytes(cause.bytes)}: {cause.text} ({', '.join(cause.columns[:4])})"],
            width,
            "  ",
            "   ",
        )
    return lines


def setting_lines(report: AuditReport, width: int = WIDTH) -> list[str]:
    if not report.step.is_worth_it:
        return []
    one_limit = (
        f"with one dictionary limit for all columns (pyiceberg, Spark) {format_bytes(report.step.one_limit_bytes)}, "
        f"with one switch per column (pyarrow, parquet-mr) {format_bytes(report.step.bytes)}"
    )
    if report.step.one_limit_bytes < report.step.bytes:
        one_limit += (
            ": here the limit is the better one, since it turns dictionaries off by their size and not column by column"
        )
    lines = _wrapped([f"what to set: {one_limit}"], width)
    for writer, texts in report.settings.items():
        lines.append(f"  {writer}")
        for text in texts:
            lines += _remark(text, width) if text.startswith(("# ", "-- ")) else _statement(text, width)
    return lines


def _remark(text: str, width: int) -> list[str]:
    sign, _, words = text.partition(" ")
    return _wrapped([words], width, f"    {sign} ", "")


def _statement(text: str, width: int) -> list[str]:
    """A statement on lines that can be pasted: broken after commas and opening brackets, never in a string.

    SQL may be broken at any space, Python only inside brackets.
    """
    ends = " |, ?" if text.endswith(";") else ", ?"
    parts = re.findall(rf"(?:'[^']*'|\"[^\"]*\"|[^'\"])*?(?:{ends}|[({{\[](?![)}}\]])|$)", text)
    lines = ["    "]
    for part in filter(None, parts):
        if len(lines[-1]) + len(part.rstrip()) > width and lines[-1].strip():
            lines.append("      ")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _notes(report: AuditReport, width: int) -> list[str]:
    return _wrapped([f"note: {note}" for note in report.notes], width)


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    return "100%" if value == 1 else f"{min(100 * value, 99.99):.4g}%" if value > 0.9 else f"{100 * value:.2g}%"


def _estimate(column: ColumnAudit, name: str) -> str:
    return format_bytes(column.estimates[name].bytes) if name in column.estimates else "-"


def _aligned(rows: Sequence[Sequence[str]], sides: str, width: int) -> list[str]:
    """The rows in columns, left or right by `sides`; columns that do not fit continue below, beside the first."""
    widths = [max(len(row[position]) for row in rows) for position in range(len(sides))]
    lines: list[str] = []
    first, begin = [0], 1
    while begin < len(sides):
        shown = [*first, begin]
        while shown[-1] + 1 < len(sides) and sum(widths[p] + 2 for p in [*shown, shown[-1] + 1]) - 2 <= width:
            shown.append(shown[-1] + 1)
        lines += [""] if lines else []
        for row in rows:
            line = "  ".join(f"{row[p]:{sides[p]}{widths[p]}}" for p in shown).rstrip()
            lines += fit(line, width).split("\n")
        begin = shown[-1] + 1
    return lines
