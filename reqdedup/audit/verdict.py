"""The three lines that a hurried engineer reads: how much, the cheapest step, and why."""

from __future__ import annotations

from reqdedup.audit.report import BY_REQUEST, Cause, LayoutAudit, RequestAudit, Step, TableAudit
from reqdedup.display import format_bytes


def verdict(
    table: TableAudit,
    requests: RequestAudit,
    layouts: list[LayoutAudit],
    causes: list[Cause],
    step: Step,
    user_overlap: float | None,
) -> list[str]:
    """Three lines: today against BY_REQUEST, the cheapest step, the largest causes."""
    best = next(layout for layout in layouts if layout.layout == BY_REQUEST)
    today = table.compressed_bytes
    if best.ratio < 1.1 and not step.is_worth_it:
        first = (
            f"{format_bytes(today)} today; no layout makes it much smaller: {format_bytes(best.bytes)} as BY_REQUEST "
            f"({format_ratio(best)})."
        )
    else:
        first = f"{format_bytes(today)} today, {format_bytes(best.bytes)} as BY_REQUEST ({format_ratio(best)})."
    if step.is_worth_it:
        best_bytes = min(step.bytes, step.one_limit_bytes)
        how = "" if best_bytes == step.bytes else " with the dictionary limit below"
        second = (
            f"Cheapest step: {' + '.join(step.changes)} -> {format_bytes(best_bytes)} "
            f"({today / max(best_bytes, 1):.3g}x){how}, readable by any engine."
        )
    else:
        second = f"Plain columns cannot do much better: {format_bytes(step.bytes)} sorted, with large pages and zstd."
    why = [
        f"{_SHORT[cause.kind]} {format_bytes(cause.bytes)}" for cause in causes[:3] if cause.bytes > 0.05 * step.bytes
    ]
    fan_out = f"{requests.rows_per_request.mean:.3g} rows per request"
    if user_overlap is not None:
        fan_out += f", and {user_overlap:.0%} of their elements repeat an earlier request of the user"
    third = f"Why: {', '.join(why) if why else 'no setting stands out'}; {fan_out}."
    return [first, second, third]


_SHORT = {
    "order": "scattered rows cost",
    "codec": "the codec costs",
    "page_size": "small pages cost",
    "dictionary": "dictionaries of elements cost",
    "row_groups": "small row groups cost",
}


def format_count(count: float) -> str:
    """Three digits, without an exponent."""
    return f"{count:,.0f}" if count >= 99.5 else f"{count:.3g}"


def counted_mean(mean: float, one: str) -> str:
    """'1 file', '3.5 files'."""
    shown = format_count(mean)
    return f"{shown} {one if shown == '1' else one + 's'}"


def format_times(ratio: float) -> str:
    """'29x' or, below one, '19x more'."""
    return f"{ratio:.3g}x" if ratio >= 0.995 else f"{1 / max(ratio, 1e-9):.3g}x more"


def format_ratio(layout: LayoutAudit) -> str:
    """'29x, 95% interval 27-31'."""
    return f"{layout.ratio:.3g}x, 95% interval {layout.ratio_low:.3g}-{layout.ratio_high:.3g}"
