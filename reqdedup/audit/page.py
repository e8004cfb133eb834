"""An audit as one HTML page with charts that can be sent to somebody: no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from reqdedup import plots
from reqdedup.audit.render import (
    LEVELS,
    cause_lines,
    column_rows,
    columns_by_size,
    layout_rows,
    setting_lines,
    table_lines,
)
from reqdedup.audit.report import SHUFFLED, STORE_ONCE, AuditReport, ColumnAudit
from reqdedup.audit.verdict import format_times
from reqdedup.display import counted, format_bytes, html_table

TODAY = "today"
_ONE_LINE = 10**6

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin-top: 2.2rem }}
.verdict p:first-child {{ font-size: 1.25rem; font-weight: 600 }}
figure {{ margin: 1rem 0; overflow-x: auto }} svg {{ max-width: 100%; height: auto }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-size: 13px }}
th, td {{ padding: .2rem .6rem; border-bottom: 1px solid #d8dee4; white-space: nowrap; text-align: left }}
pre {{ background: #f3f5f7; padding: .8rem; overflow-x: auto; font-size: 13px }}
</style></head><body>
"""


def page(report: AuditReport) -> str:
    """The figures of `render`, with two charts. Raises ImportError if the extra `plots` is not installed."""
    shown, small = columns_by_size(report)
    parts = [
        _HEAD.format(title=escape(f"Audit of {report.table.name}")),
        f"<h1>What storing each request once would save: {escape(report.table.name)}</h1>",
        f'<div class="verdict">{_paragraphs(report.verdict)}</div>',
        "<h2>Layout by layout</h2>",
        _figure(_layouts(report)),
        _table(layout_rows(report)),
        "<p>Bytes of the layouts are estimates from a sample of whole users; "
        "the black line of a bar is the 95% interval.</p>",
        "<h2>Column by column</h2>",
        _figure(_columns(shown)) if any(column.estimates for column in shown) else "",
        _table(column_rows(shown, name_width=_ONE_LINE)),
    ]
    if small:
        total = format_bytes(sum(column.compressed_bytes for column in small))
        parts.append(f"<p>{counted(len(small), 'small column')}, {total} together: {escape(_names(small))}</p>")
    parts += [
        f"<p>{escape(column.name)} is not the same in {column.broken_requests:,} of {column.checked_requests:,} "
        f"sampled requests; {escape(column.example)}</p>"
        for column in report.columns
        if column.example
    ]
    if report.causes:
        head, *causes = cause_lines(report, _ONE_LINE)
        parts += ["<h2>Why it is larger than it need be</h2>", _paragraphs([head.capitalize(), *causes])]
    if lines := setting_lines(report):
        parts += [
            "<h2>What to set</h2>",
            _paragraphs([lines[0].removeprefix("what to set: ")]),
            _preformatted(lines[1:]),
        ]
    parts += ["<h2>What was read</h2>", _paragraphs(table_lines(report, _ONE_LINE))]
    parts += [_paragraphs(f"Note: {note}" for note in report.notes), "</body></html>\n"]
    return "\n".join(part for part in parts if part)


def _layouts(report: AuditReport) -> plots.Chart:
    layouts = [layout for layout in report.layouts if layout.layout != STORE_ONCE]
    limit = next((layout.bytes for layout in report.layouts if layout.layout == STORE_ONCE), None)
    values = {TODAY: float(report.table.compressed_bytes)} | {one.layout: one.bytes for one in layouts}
    return plots.bars(
        values,
        title="the whole table, stored bytes today and as each layout would have them",
        text={one.layout: f"{format_bytes(one.bytes)}, {_times(one.ratio)}" for one in layouts},
        limits=None if limit is None else dict.fromkeys(values, limit),
        intervals={one.layout: (one.low, one.high) for one in layouts},
    )


def _columns(columns: list[ColumnAudit]) -> plots.Chart:
    drawn = [column for column in columns if column.estimates][: plots.SHOWN_COLUMNS]
    return plots.points(
        {
            f"{column.name} ({LEVELS[column.level]})": {TODAY: column.compressed_bytes}
            | {name: one.bytes for name, one in column.estimates.items() if name not in (SHUFFLED, STORE_ONCE)}
            for column in drawn
        },
        limits={
            f"{column.name} ({LEVELS[column.level]})": column.estimates[STORE_ONCE].bytes
            for column in drawn
            if STORE_ONCE in column.estimates
        },
        title="the largest columns, stored bytes",
    )


def _times(ratio: float) -> str:
    return format_times(ratio) if ratio < 0.995 else f"{format_times(ratio)} smaller than today"


def _names(columns: list[ColumnAudit]) -> str:
    return ", ".join(column.name for column in columns)


def _figure(chart: plots.Chart) -> str:
    return f"<figure>{chart.svg()}</figure>"


def _table(rows: list[list[str]]) -> str:
    return f'<div class="wide">{html_table(rows[0], rows[1:])}</div>'


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line.strip())}</p>" for line in lines)


def _preformatted(lines: list[str]) -> str:
    text = "\n".join(lines)
    return f"<pre>{escape(text)}</pre>"
