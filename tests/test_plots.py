"""Charts show the values that they are given: read back from what was drawn, and from the text of the SVG."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from reqdedup import plots
from reqdedup.storage.measure.compression import REPORT_SCHEMA, layout_totals

DAGSTER_PNG_BYTES = 60_000


def texts(chart: plots.Chart) -> str:
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg()))


def report() -> pa.Table:
    """Two layouts of three columns, sizes by hand; the order of the columns is not that of their sizes."""
    rows = []
    for table, stored in (
        ("a.engagements_shuffled", (50, 6_000_000, 1_000)),
        ("a.engagements_by_request", (60, 250_000, 900)),
    ):
        for name, size, control, once in zip(
            ("click", "history", "item_id"), stored, (50, 6_000_000, 1_000), (40, 240_000, 800), strict=True
        ):
            facts = {"level": "request", "rows": 9, "requests": 3, "fan_out": 3.0, "uncompressed_bytes": size}
            sizes = {"compressed_bytes": size, "store_once_bytes": once, "fraction_of_limit": once / size}
            rows.append({"table": table, "column": name, **facts, **sizes, "ratio_to_control": control / size})
    return pa.Table.from_pylist(rows, schema=REPORT_SCHEMA)


@pytest.mark.slow
def test_a_bar_is_as_long_as_its_value_and_begins_at_zero():
    chart = plots.bars({"one": 10.0, "two": 2.5}, title="", limits={"one": 2.0, "two": 2.0})
    (axes,) = chart.figure.axes
    assert [bar.get_width() for bar in axes.patches] == [10.0, 2.5]
    assert {bar.get_x() for bar in axes.patches} == {0}
    assert axes.get_xlim()[0] == 0
    (limits,) = axes.collections
    assert {tuple(segment[:, 0]) for segment in limits.get_segments()} == {(2.0, 2.0)}


def test_layouts_are_added_up_over_all_columns_or_over_those_named():
    every, history = layout_totals(report()), layout_totals(report(), ["history"])
    assert [row["bytes"] for row in every] == [6_001_050, 250_960]
    assert every[1]["ratio"] == pytest.approx(6_001_050 / 250_960)
    assert every[1]["fraction_of_limit"] == pytest.approx(240_840 / 250_960)
    assert [(row["ratio"], row["store_once_bytes"]) for row in history] == [(1, 240_000), (24, 240_000)]
    shown = texts(plots.layouts(report(), columns=["history"]))
    assert "250 kB, 24.0x smaller, 96% of the limit" in shown
    assert "6 MB, 4% of the limit" in shown
    assert "by_request" in shown


def test_columns_are_drawn_by_size_with_a_point_for_each_layout():
    chart = plots.columns(report(), most=2)
    (axes,) = chart.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["history", "item_id"]
    *_, shuffled, by_request, limits = axes.collections
    assert shuffled.get_offsets().tolist() == [[6_000_000, 0], [1_000, 1]]
    assert by_request.get_offsets().tolist() == [[250_000, 0], [900, 1]]
    assert limits.get_offsets().tolist() == [[240_000, 0], [800, 1]]


@pytest.mark.slow
def test_a_table_without_a_control_and_without_bytes_is_drawn_too():
    empty = report().set_column(8, "ratio_to_control", pa.nulls(6, pa.float64()))
    empty = empty.set_column(7, "compressed_bytes", pa.array([0] * 6, pa.int64()))
    assert "0 B" in texts(plots.layouts(empty))
    assert plots.columns(empty).png()


@pytest.mark.parametrize(("length", "window"), [(1, 1), (5, 2), (7, 20)])
def test_the_running_mean_is_that_of_the_values_up_to_it(length, window):
    values = np.random.default_rng(0).normal(size=length)
    wanted = [values[max(0, i - window + 1) : i + 1].mean() for i in range(length)]
    assert plots.running_mean(values, window) == pytest.approx(wanted)


@pytest.mark.slow
def test_the_chart_of_a_run_is_small_enough_for_an_event_log():
    rng = np.random.default_rng(0)
    run = {"step": np.arange(300), "loss": rng.normal(size=300)}
    assert len(plots.steps({"": run}, [("loss", "loss [nats]", 1)] * 4).png(dpi=80)) < DAGSTER_PNG_BYTES


def test_names_that_would_cover_one_another_are_left_out():
    chart = plots.curve([0.0, 0.001, 1.0], [1.0, 1.0, 0.5], names=["a", "b", "c"], title="", x_name="", y_name="")
    assert [text.get_text() for text in chart.figure.axes[0].texts] == ["a", "c"]
    long = plots.curve(
        [0.0, 0.1, 0.2, 1.0], [1.0, 0.99, 0.8, 0.5], names=["scores", "b", "c", "d"], title="", x_name="", y_name=""
    )
    assert [text.get_text() for text in long.figure.axes[0].texts] == ["scores", "c", "d"]


def test_a_sample_is_shown_before_and_after():
    rows = [
        {"stratum": "few", "rows_before": 700, "rows_after": 500},
        {"stratum": "total", "rows_before": 1_900, "rows_after": 1_200},
    ]
    shown = texts(plots.before_and_after(pa.Table.from_pylist(rows)))
    assert all(part in shown for part in ("few, before", "few, after", "700", "1,200"))


def test_calibration_is_drawn_against_the_line_of_what_happens():
    shares = [0.02, 0.1, float("nan"), 0.5]
    (axes,) = plots.calibration({"click": (shares, [0.01, 0.1, float("nan"), 0.6])}).figure.axes
    line, click = axes.get_lines()
    assert np.array_equal(line.get_xdata(), line.get_ydata())
    assert np.array_equal(click.get_xdata(), shares, equal_nan=True)
    assert click.get_ydata()[-1] == 0.6
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    (axes,) = plots.calibration({"all": ([0.0, 0.4], [0.1, 0.3]), "none": ([], [])}).figure.axes
    assert axes.get_xscale() == "linear"


@pytest.mark.slow
def test_an_svg_is_the_same_every_time():
    assert plots.layouts(report()).svg() == plots.layouts(report()).svg()


@pytest.mark.slow
def test_charts_need_no_pyplot_and_importing_them_no_matplotlib():
    """pyplot keeps every figure and opens windows; a server that draws must not load it."""
    code = (
        "import sys; from reqdedup import plots; assert 'matplotlib' not in sys.modules;"
        "plots.bars({'a': 1.0}, title='').png(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_sequences_are_drawn_by_day_and_a_user_with_what_a_request_sees():
    days = [date(2026, 1, 1), date(2026, 1, 2)]
    rows = [
        {"day": day, "event_type": kind, "figure": figure, "of": of, "value": value}
        for day, kind, figure, of, value in [
            (days[0], "view", "delivered", "", 10.0),
            (days[0], "click", "delivered", "", 4.0),
            (days[1], "view", "delivered", "", 9.0),
            (days[1], "view", "lag_p50_s", "", 2.0),
            (days[1], "click", "lag_p50_s", "", 3.0),
            (days[1], "view", "kept", "", 6.0),
            (days[1], "click", "kept", "", 2.0),
            (days[1], "view", "null_share", "price", 0.5),
            (days[1], "click", "null_share", "price", 0.1),
            (days[1], "", "rejected", "event_type is unknown", 3.0),
        ]
    ]
    chart = plots.sequence_figures(pa.Table.from_pylist(rows))
    events, lag, nulls = chart.figure.axes
    drawn = {line.get_label(): line.get_ydata().tolist() for axes in (events, lag, nulls) for line in axes.get_lines()}
    assert drawn["delivered"] == [14.0, 9.0]
    assert drawn["p50"] == [3.0]
    assert drawn["price"] == pytest.approx([40.0])
    assert drawn["rejected: event_type is unknown"] == [3.0]

    at = [datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(5)]
    columns = {"event_ts": at, "arrival_ts": at, "event_type": ["view", "click", "view", "view", "click"]}
    drawn_user = plots.user_timeline(columns, request_at=at[3], end=3, start=1, title="user 7")
    others, seen = drawn_user.figure.axes[0].collections[1:]
    assert [len(points.get_offsets()) for points in (others, seen)] == [3, 2]
    assert seen.get_offsets()[:, 1].tolist() == [0.0, 1.0]
