"""The charts of our reports: the same in notebooks, in the Dagster UI and in HTML pages.

Drawn by matplotlib (extra `plots`), which is loaded with the first chart, and without pyplot: no window, no state that
charts share, nothing to close. Bars begin at zero, so their lengths may be compared; what spans factors of ten is drawn
as points on a logarithmic axis.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reqdedup.display import format_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, BLUES, LIMIT = "#9aa5b1", ("#9cc4e4", "#4a90c2", "#1f5f8b", "#0b3954"), "#c2255c"
SHOWN_COLUMNS = 12
TABLE_PREFIX = "engagements_"


class Chart:
    """A drawn chart. Shows itself in a notebook; `png` and `svg` are what a page or a file takes."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def png(self, *, dpi: int = 96) -> bytes:
        """In 64 colours, a third of the bytes. dpi: pixels per inch of the figure."""
        from PIL import Image  # matplotlib brings it

        drawn, small = io.BytesIO(), io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=dpi)
        Image.open(drawn).convert("RGB").quantize(64).save(small, format="png", optimize=True)
        return small.getvalue()

    def svg(self) -> str:
        """The same whenever it is drawn of the same values; text stays text."""
        from matplotlib import rc_context

        image = io.BytesIO()
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "reqdedup", "font.family": "sans-serif"}):
            self.figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
        text = image.getvalue().decode()
        return text[text.index("<svg") :]

    def __repr__(self) -> str:  # no address: a notebook that is executed again stays as it was
        return "Chart"

    def _repr_png_(self) -> bytes:
        return self.png()


def bars(
    values: Mapping[str, float],
    *,
    title: str,
    text: Mapping[str, str] | None = None,
    limits: Mapping[str, float] | None = None,
    limit_name: str = "store-once limit",
    intervals: Mapping[str, tuple[float, float]] | None = None,
    format_value: Callable[[float], str] = format_bytes,
    first_is_control: bool = True,
) -> Chart:
    """One bar per name, from zero.

    text: what stands behind a bar, by default its value.  limits: a line across the bar.  intervals: low and high end.
    first_is_control: the first bar is grey, what the others are compared with.
    """
    figure, (axes,) = _axes(1, width=8.2, height=0.46 * len(values) + 1.25)
    names = list(values)
    colors = _colors(len(names), first_is_control)
    axes.barh(names, [values[name] for name in names], height=0.64, color=colors)
    longest = max([*values.values(), *(high for _, high in (intervals or {}).values()), 1e-12])
    for y, name in enumerate(names):
        end = max(values[name], (limits or {}).get(name, 0.0), (intervals or {}).get(name, (0.0, 0.0))[1])
        shown = (text or {}).get(name) or format_value(values[name])
        axes.annotate(shown, (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
    for name, (low, high) in (intervals or {}).items():
        axes.hlines(names.index(name), low, high, color="black", linewidth=1)
    if limits:
        middles = [names.index(name) for name in limits]
        edges = [y - 0.42 for y in middles], [y + 0.42 for y in middles]
        axes.vlines(list(limits.values()), *edges, color=LIMIT, linewidth=2, label=limit_name)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_xlim(0, longest * 1.45)
    axes.xaxis.set_major_formatter(_ticks(format_value))
    axes.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return Chart(figure)


def points(
    values: Mapping[str, Mapping[str, float | None]],
    *,
    title: str,
    limits: Mapping[str, float | None] | None = None,
    limit_name: str = "store-once limit",
    format_value: Callable[[float], str] = format_bytes,
) -> Chart:
    """values: row -> series -> value, one point each, a line from the least to the most of a row.

    The axis begins at zero, or is logarithmic if the values span a factor of ten.  limits: a mark in the row.
    """
    rows, series = list(values), list(dict.fromkeys(name for row in values.values() for name in row))
    figure, (axes,) = _axes(1, width=8.2, height=0.34 * len(rows) + 1.5)
    for y, row in enumerate(rows):
        found = [value for value in values[row].values() if value]
        if found:
            axes.hlines(y, min(found), max(found), color="#d0d7de", linewidth=2, zorder=1)
    for name, color in zip(series, _colors(len(series), True)):
        found_at = [(value, y) for y, row in enumerate(rows) if (value := values[row].get(name))]
        axes.scatter([x for x, _ in found_at], [y for _, y in found_at], s=46, color=color, label=name, zorder=2)
    if limits:
        marks = [(value, rows.index(row)) for row, value in limits.items() if value]
        axes.scatter(
            [x for x, _ in marks], [y for _, y in marks], marker="|", s=190, color=LIMIT, label=limit_name, zorder=3
        )
    axes.set(yticks=range(len(rows)), yticklabels=rows)
    every = [value for row in values.values() for value in row.values() if value]
    if every and max(every) > 10 * min(every):
        axes.set(xscale="log", xlabel="one step of the axis is a factor of ten")
    else:
        axes.set_xlim(0, 1.1 * max(every, default=1.0))
    axes.xaxis.set_major_formatter(_ticks(format_value))
    axes.xaxis.set_minor_formatter(_ticks(lambda value: ""))  # else powers of ten stand between them
    axes.invert_yaxis()
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=min(len(series) + 1, 5), frameon=False, fontsize=9)
    return Chart(figure)


def curve(
    x: Sequence[float], y: Sequence[float], *, names: Sequence[str], title: str, x_name: str, y_name: str
) -> Chart:
    """One line through named points, in the order of x; a name is left out if it would cover the one before."""
    figure, (axes,) = _axes(1, width=6.4, height=3.6)
    order = np.argsort(x, kind="stable")
    axes.plot(np.asarray(x)[order], np.asarray(y)[order], marker="o", color=BLUES[2])
    letter, line = 0.02 * (max(x) - min(x)), 0.08 * (max(y) - min(y))  # the size of text, in units of the axes
    end, height = -np.inf, -np.inf
    for i in order:
        if x[i] >= end or abs(y[i] - height) > line:
            axes.annotate(names[i], (x[i], y[i]), xytext=(6, 5), textcoords="offset points", fontsize=9)
            end, height = x[i] + letter * (len(names[i]) + 2), y[i]
    axes.margins(x=0.18, y=0.12)
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.grid(alpha=0.3)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return Chart(figure)


def steps(
    runs: Mapping[str, Mapping[str, Sequence[float] | np.ndarray]], panels: Sequence[tuple[str, str, float]]
) -> Chart:
    """A row of panels per run: the value of every step, light, and its running mean over a twentieth of them, dark.

    runs: name -> columns of its metrics.csv.  panels: column, title with the unit, factor to that unit.
    """
    figure, every = _axes(len(runs), len(panels), width=3.5 * len(panels), height=2.2 * len(runs) + 0.3)
    cells = [(name, columns, panel) for name, columns in runs.items() for panel in panels]
    for axes, (name, columns, (column, title, factor)) in zip(every, cells, strict=True):
        values = np.asarray(columns[column], np.float64) * factor
        axes.plot(columns["step"], values, color=BLUES[1], alpha=0.35, linewidth=1)
        axes.plot(columns["step"], running_mean(values, max(1, len(values) // 20)), color=BLUES[2])
        axes.set_title(f"{name}: {title}" if name else title, loc="left", fontsize=9)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    return Chart(figure)


def calibration(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = "") -> Chart:
    """Predicted against observed share of positive rows, a point for each tenth of the rows by prediction.

    groups: name -> mean prediction of each tenth, share of positives in it. On the dashed line a prediction is what
    happens; above it the model promises too little, below it too much. Both axes are the same, logarithmic if the
    shares span a factor of ten and none is zero. A tenth without rows (NaN) is left out.
    """
    figure, (axes,) = _axes(1, width=4.6, height=4.4)
    every = np.concatenate([np.asarray(values, float) for pair in groups.values() for values in pair] or [np.zeros(0)])
    every = every[np.isfinite(every)]
    is_wide = len(every) > 0 and 0 < 10 * every.min() < every.max()
    low, high = (every.min() / 1.5, every.max() * 1.5) if is_wide else (0.0, 1.1 * max(every, default=1.0))
    axes.plot([low, high], [low, high], color=GREY, linewidth=1, linestyle="--", label="what happens")
    for (name, (predicted, observed)), color in zip(groups.items(), _colors(len(groups), False)):
        axes.plot(predicted, observed, marker="o", markersize=4, linewidth=1, color=color, label=name)
    scale = {"xscale": "log", "yscale": "log"} if is_wide else {}
    axes.set(**scale, xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="predicted", ylabel="observed")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_ticks(lambda share: f"{share:.3g}"))
        axis.set_minor_formatter(_ticks(lambda share: ""))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.suptitle(title or "predicted against observed, tenths of the rows", x=0.01, ha="left", fontsize=10)
    return Chart(figure)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the window - 1 before it, of fewer at the start; [len(values)]."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)


def layouts(report: pa.Table, *, columns: Collection[str] | None = None, title: str = "") -> Chart:
    """A compression report: stored bytes of each layout with its store-once limit.

    report: of `storage.compression_report`.  columns: those that are added up, None: all.
    """
    from reqdedup.storage.measure.compression import layout_totals

    totals = {layout_name(row["table"]): row for row in layout_totals(report, columns)}
    text = {
        name: f"{format_bytes(row['bytes'])}"
        + (f", {row['ratio']:.1f}x smaller" if (row["ratio"] or 0) > 1.005 else "")
        + f", {row['fraction_of_limit'] or 0:.0%} of the limit"
        for name, row in totals.items()
    }
    return bars(
        {name: row["bytes"] for name, row in totals.items()},
        title=title or "the same rows, stored bytes of all columns",
        text=text,
        limits={name: row["store_once_bytes"] for name, row in totals.items()},
    )


def columns(report: pa.Table, *, most: int = SHOWN_COLUMNS) -> Chart:
    """The same by column, the `most` largest of the first layout; the limit is that of the last one."""
    rows = report.to_pylist()
    tables = list(dict.fromkeys(row["table"] for row in rows))
    stored = {(row["table"], row["column"]): row for row in rows}
    first = sorted((row for row in rows if row["table"] == tables[0]), key=lambda row: -row["compressed_bytes"])
    names = [row["column"] for row in first[:most]]
    return points(
        {name: {layout_name(table): stored[table, name]["compressed_bytes"] for table in tables} for name in names},
        limits={name: stored[tables[-1], name]["store_once_bytes"] for name in names},
        title=f"the {len(names)} largest columns, stored bytes",
    )


def relevance_and_variety(report: pa.Table) -> Chart:
    """The curve of a re-ranking: what variety costs. report: point, figure and value (`rerank.scored.curve_table`)."""
    found: dict[str, dict[str, float]] = {}
    for row in report.to_pylist():
        found.setdefault(row["point"], {})[row["figure"]] = row["value"]
    return curve(
        [figures["mean_distance"] for figures in found.values()],
        [100 * figures["dcg_ratio"] for figures in found.values()],
        names=list(found),
        title="each point is a weight of the term for variety",
        x_name="variety: mean distance of picks within a window, 1 - cosine",
        y_name="relevance kept: % of the best gain",
    )


def sequence_figures(report: pa.Table) -> Chart:
    """Sequences by day of arrival: events, lag, what has no value. report: of `sequences.quality.sequence_quality`."""
    counts: dict[tuple[str, str], dict[Any, list[tuple[float, float]]]] = {}
    rows = report.to_pylist()
    kept = {(row["day"], row["event_type"]): row["value"] for row in rows if row["figure"] == "kept"}
    for row in rows:
        weight = kept.get((row["day"], row["event_type"]), 0.0)
        counts.setdefault((row["figure"], row["of"]), {}).setdefault(row["day"], []).append((row["value"], weight))
    figure, (events, lag, nulls) = _axes(1, 3, width=11, height=3.0)
    for (name, of), by_day in counts.items():
        days = sorted(by_day)
        if name in ("delivered", "kept", "duplicate", "late", "rejected"):
            label = name if name != "rejected" else f"rejected: {of}"
            events.plot(days, [sum(value for value, _ in by_day[day]) for day in days], marker=".", label=label)
        elif name.startswith("lag_"):
            lag.plot(days, [max(value for value, _ in by_day[day]) for day in days], marker=".", label=name[4:-2])
        elif name == "null_share":
            means = [100 * _weighted(by_day[day]) for day in days]
            nulls.plot(days, means, marker=".", label=of)
    for axes, title in (
        (events, "events a day of arrival"),
        (lag, "lag, the slowest event type [s]"),
        (nulls, "events of the timeline without a value [%]"),
    ):
        axes.set_title(title, loc="left", fontsize=9)
        axes.tick_params(axis="x", labelsize=7, rotation=45)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(frameon=False, fontsize=7)
    events.set_yscale("symlog", linthresh=1)
    lag.set_yscale("symlog", linthresh=1)
    return Chart(figure)


def user_timeline(events: Mapping[str, Sequence[Any]], *, request_at: Any, end: int, start: int, title: str) -> Chart:
    """One user's events at the time of their arrival, a line of each back to when it happened; what a request sees.

    events: event_ts, arrival_ts (times) and event_type (texts), in the order of the timeline.  request_at: when it was.
    end, start: the request's history_end, and the first event of its window.
    """
    figure, (axes,) = _axes(1, width=9.5, height=2.6)
    kinds = sorted(set(events["event_type"]))
    rows = [kinds.index(kind) for kind in events["event_type"]]
    seen = [start <= number < end for number in range(len(rows))]
    axes.hlines(rows, events["event_ts"], events["arrival_ts"], color=LIMIT, linewidth=1.5, zorder=1)
    for is_seen, color, label in ((False, GREY, "not in the window"), (True, BLUES[2], "what the request sees")):
        chosen = [place for place, found in enumerate(seen) if found == is_seen]
        at = [events["arrival_ts"][place] for place in chosen]
        axes.scatter(at, [rows[place] for place in chosen], s=22, color=color, label=label, zorder=2)
    axes.axvline(request_at, color="black", linewidth=1, linestyle="--")
    axes.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(-0.6, len(kinds) - 0.4))
    axes.tick_params(axis="x", labelsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return Chart(figure)


def _weighted(values: Sequence[tuple[float, float]]) -> float:
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else 0.0


def before_and_after(report: pa.Table) -> Chart:
    """A sample of users: rows of each stratum before and after it. report: of `UserSample.report`."""
    values = {}
    for row in report.to_pylist():
        values[f"{row['stratum']}, before"] = row["rows_before"]
        values[f"{row['stratum']}, after"] = row["rows_after"]
    chart = bars(
        values,
        title="rows of each stratum of users, by requests per user",
        format_value=lambda value: f"{value:,.0f}",
        first_is_control=False,
    )
    for bar, name in zip(chart.figure.axes[0].patches, values, strict=True):
        bar.set_facecolor(GREY if name.endswith("before") else BLUES[2])
    return chart


def layout_name(table: str) -> str:
    """'laptop.engagements_by_request' -> 'by_request'."""
    return table.rpartition(".")[2].removeprefix(TABLE_PREFIX)


def _axes(num_rows: int, num_columns: int = 1, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("charts need matplotlib: pip install 'reqdedup[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    found = figure.subplots(num_rows, num_columns, squeeze=False)
    every: list[Any] = list(found.flat)
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def _colors(count: int, first_is_control: bool) -> list[str]:
    """Grey for the control, then blue, the darker the better."""
    control = [GREY] if first_is_control else []
    blues = BLUES[-(count - len(control)) :] if count > len(control) else ()
    return [*control, *blues, *[BLUES[-1]] * (count - len(control) - len(blues))]


def _ticks(format_value: Callable[[float], str]) -> Callable[[float, float], str]:
    return lambda value, _position: format_value(value)
