"""Charts in the Dagster UI: small ones that stand in its pages, and the larger ones of `reqdedup.plots` behind a click.

Dagster 1.13 shows Markdown of less than 1,000 characters as it is, and longer Markdown behind "Show Markdown". What
matplotlib draws is longer by far; so the small ones are a few shapes of an SVG in a `data:` address, drawn here. Grey
text can be read on its light and on its dark pages.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice

import dagster as dg
import numpy as np

from reqdedup.plots import Chart

SHOWN_AS_IT_IS = 1000
"""Characters of Markdown from which on Dagster hides it behind a click."""
WIDTH = 350
"""A value's cell in a window of 1,500 pixels; what is wider is cut."""
NAMES, LENGTH, STEP, HEIGHT = 80, 110, 20, 70
LETTER, LONGEST_NAMES = 7, 130
"""Pixels of a letter of a name, and what names may take of a bar's length."""
POINTS = 40
COLORS = ("steelblue", "darkorange", "seagreen")


def bars(
    values: Mapping[str, float],
    texts: Mapping[str, str],
    *,
    limits: Sequence[float] = (),
    first_is_control: bool = False,
) -> dg.MarkdownMetadataValue:
    """A bar per name with its text behind it; of many the first, as many as are shown without a click.

    limits: a line across each bar, or none.  first_is_control: the first bar is grey.
    """
    if not values:
        raise ValueError("bars: a value at least required, found none")
    for count in range(len(values), 0, -1):
        first = dict(islice(values.items(), count))
        picture = _svg(_bars(first, texts, limits[:count], first_is_control), STEP * count)
        if len(picture.value) < SHOWN_AS_IT_IS:
            break
    return picture


def _bars(
    values: Mapping[str, float], texts: Mapping[str, str], limits: Sequence[float], first_is_control: bool
) -> str:
    left = min(max(NAMES, LETTER * max(map(len, values)) + 5), LONGEST_NAMES)
    scale = (NAMES + LENGTH - left) / max([*values.values(), *limits, 1e-12])
    words, control, others = [], "", ""
    for i, (name, value) in enumerate(values.items()):
        y, size = STEP * i, round(scale * value)
        end = left + max(size, round(scale * limits[i]) if limits else 0)
        words.append(f"<text y='{y + 14}'>{escape(name)}</text>")
        words.append(f"<text x='{end + 6}' y='{y + 14}'>{escape(texts[name])}</text>")
        drawn = f"M{left} {y + 3}h{size}v14h-{size}"
        if first_is_control and i == 0:
            control = drawn
        else:
            others += drawn
    marks = "".join(f"M{left + round(scale * limit)} {STEP * i}v20" for i, limit in enumerate(limits))
    shapes = (("fill", "silver", control), ("fill", COLORS[0], others), ("stroke", "crimson", marks))
    return "".join([*words, *(f"<path {how}='{color}' d='{path}'/>" for how, color, path in shapes if path)])


def line(y: Sequence[float] | np.ndarray, *, first: str, last: str) -> dg.MarkdownMetadataValue:
    """A falling or rising line of at most `POINTS` means, with what it begins and ends at."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(y, float), min(len(y), POINTS))])
    low, high = float(means.min()), float(means.max())
    x = np.linspace(NAMES, NAMES + LENGTH, len(means)).round().astype(int)
    down = (4 + (HEIGHT - 8) * (high - means) / max(high - low, 1e-12)).round().astype(int)
    return _svg(
        f"{_polyline(x, down, COLORS[0])}<text y='{_inside(down[0] + 10)}'>{escape(first)}</text>"
        f"<text x='{NAMES + LENGTH + 6}' y='{_inside(down[-1] + 4)}'>{escape(last)}</text>",
        HEIGHT,
    )


def _inside(y: int) -> int:
    """Where a line of text stands whole."""
    return min(max(y, 12), HEIGHT - 4)


def calibration(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dg.MarkdownMetadataValue:
    """Observed against predicted shares, on the grey line if a prediction is what happens; the first `COLORS` groups.

    groups: name -> mean prediction of each tenth of the rows, share of positives in it; a tenth without rows is NaN.
    """
    shown = {name: np.asarray(groups[name], float) for name in list(groups)[: len(COLORS)]}
    shown = {name: pair[:, np.isfinite(pair).all(axis=0)] for name, pair in shown.items()}
    most = max([float(pair.max()) for pair in shown.values() if pair.size] + [1e-12])
    left, side = NAMES, HEIGHT
    shapes = [f"<path stroke='silver' d='M{left} {side}L{left + side} 0'/><text y='14'>observed</text>"]
    for i, ((name, pair), color) in enumerate(zip(shown.items(), COLORS)):
        across, up = (side * pair / most).round().astype(int)
        shapes.append(_polyline(left + across, side - up, color))
        shapes.append(f"<text fill='{color}' x='{left + side + 8}' y='{14 + STEP * i}'>{escape(name)}</text>")
    shapes.append(f"<text x='{left + side + 8}' y='{side - 4}'>predicted, to {most:.2g}</text>")
    return _svg("".join(shapes), HEIGHT)


def _polyline(x: np.ndarray, y: np.ndarray, color: str) -> str:
    points = " ".join(f"{a},{b}" for a, b in zip(x, y))
    return f"<polyline fill='none' stroke='{color}' stroke-width='2' points='{points}'/>"


def chart(drawn: Chart) -> dg.MarkdownMetadataValue:
    """A chart behind a click, some 20 kB of the event log."""
    return dg.MetadataValue.md(f"![chart](data:image/png;base64,{base64.b64encode(drawn.png(dpi=80)).decode()})")


def table(rows: Sequence[Mapping[str, str]]) -> dg.MetadataValue:
    """A small table of texts, shown in the page."""
    unbroken = [{name: text.replace(" ", "\N{NO-BREAK SPACE}") for name, text in row.items()} for row in rows]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in unbroken])


def facts(**texts: str) -> dg.MetadataValue:
    """One line of a small table: what it is of, and a text each."""
    return table([{name.replace("_", " "): text for name, text in texts.items()}])


def _svg(shapes: str, height: int) -> dg.MarkdownMetadataValue:
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' font-family='sans-serif' font-size='12' "
        f"fill='gray'>{shapes}</svg>"
    )
    for plain, written in (("%", "%25"), ("<", "%3C"), (">", "%3E"), ("#", "%23")):
        svg = svg.replace(plain, written)
    return dg.MetadataValue.md(f"![chart](<data:image/svg+xml,{svg}>)")
