"""Charts in the Dagster UI: small ones that stand in its pages, and the larger ones of `reqdedup.plots` behind a click.

Dagster 1.13 shows Markdown of less than 1,000 characters as it is, and longer Markdown behind "Show Markdown". What
matplotlib draws is longer by far; so the small ones are a few shapes of an SVG in a `data:` address, drawn here. Grey
text can be read on its light and on its dark pages.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import dagster as dg
import numpy as np

from reqdedup.plots import Chart

SHOWN_AS_IT_IS = 1000
"""Characters of Markdown from which on Dagster hides it behind a click."""
WIDTH = 350
"""A value's cell in a window of 1,500 pixels; what is wider is cut."""
NAMES, LENGTH, STEP, HEIGHT = 80, 110, 20, 70
POINTS = 40


def bars(values: Mapping[str, float], texts: Mapping[str, str], *, limits: Sequence[float] = ()) -> dg.MetadataValue:
    """A bar per name with its text behind it. limits: a line across each bar, or none."""
    longest = max([*values.values(), *limits, 1e-12])
    shapes = []
    for i, (name, value) in enumerate(values.items()):
        y, size = STEP * i, round(LENGTH * value / longest)
        color = "silver" if i == 0 and len(values) > 2 else "steelblue"
        shapes.append(
            f"<text y='{y + 14}'>{escape(name)}</text><path fill='{color}' d='M{NAMES} {y + 3}h{size}v14h-{size}'/>"
            f"<text x='{NAMES + size + 6}' y='{y + 14}'>{escape(texts[name])}</text>"
        )
    marks = "".join(f"M{NAMES + round(LENGTH * limit / longest)} {STEP * i}v20" for i, limit in enumerate(limits))
    return _svg("".join(shapes) + (f"<path stroke='crimson' d='{marks}'/>" if marks else ""), STEP * len(values))


def line(y: Sequence[float] | np.ndarray, *, first: str, last: str) -> dg.MetadataValue:
    """A falling or rising line of at most `POINTS` means, with what it begins and ends at."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(y, float), min(len(y), POINTS))])
    low, high = float(means.min()), float(means.max())
    x = np.linspace(NAMES, NAMES + LENGTH, len(means)).round().astype(int)
    down = (4 + (HEIGHT - 8) * (high - means) / max(high - low, 1e-12)).round().astype(int)
    path = " ".join(f"{a},{b}" for a, b in zip(x, down))
    return _svg(
        f"<polyline fill='none' stroke='steelblue' stroke-width='2' points='{path}'/>"
        f"<text y='{min(down[0] + 10, HEIGHT)}'>{escape(first)}</text>"
        f"<text x='{NAMES + LENGTH + 6}' y='{min(down[-1] + 4, HEIGHT)}'>{escape(last)}</text>",
        HEIGHT,
    )


def chart(drawn: Chart) -> dg.MetadataValue:
    """A chart behind a click, some 20 kB of the event log."""
    return dg.MetadataValue.md(f"![chart](data:image/png;base64,{base64.b64encode(drawn.png(dpi=80)).decode()})")


def table(rows: Sequence[Mapping[str, str]]) -> dg.MetadataValue:
    """A small table of texts, shown in the page."""
    unbroken = [{name: text.replace(" ", "\N{NO-BREAK SPACE}") for name, text in row.items()} for row in rows]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in unbroken])


def facts(**texts: str) -> dg.MetadataValue:
    """One line of a small table: what it is of, and a text each."""
    return table([{name.replace("_", " "): text for name, text in texts.items()}])


def _svg(shapes: str, height: int) -> dg.MetadataValue:
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' font-family='sans-serif' font-size='12' "
        f"fill='gray'>{shapes}</svg>"
    )
    for plain, written in (("%", "%25"), ("<", "%3C"), (">", "%3E"), ("#", "%23")):
        svg = svg.replace(plain, written)
    return dg.MetadataValue.md(f"![chart](<data:image/svg+xml,{svg}>)")
