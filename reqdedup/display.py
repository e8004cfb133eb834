"""How results look: small tables as text and as HTML, bytes and counts in words.

A name says how its values are shown: `_bytes` in decimal units, `_ratio` and `ratio_` with an x, `fraction_` and
`share` as per cent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

SHOWN_ROWS = 40


class ReportTable:
    """A small Arrow table that shows itself: text in a console, HTML in a notebook.

    title: one line above it.  rows: the table itself, which `to_arrow` and `to_polars` give.
    """

    def __init__(self, title: str, rows: pa.Table) -> None:
        self.title, self.rows = title, rows

    def __len__(self) -> int:
        return self.rows.num_rows

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """Title and table in lines of this width (see `format_table`)."""
        if not len(self):
            return self.title
        return f"{self.title}\n{format_table(self.rows.column_names, self._cells(), width=width)}{self._rest()}"

    def _repr_html_(self) -> str:
        return f"<b>{escape(self.title)}</b>{html_table(self.rows.column_names, self._cells())}{self._rest()}"

    def _cells(self) -> list[list[str]]:
        shown = self.rows.slice(0, SHOWN_ROWS).to_pylist()
        return [[format_named(name, value) for name, value in row.items()] for row in shown]

    def _rest(self) -> str:
        rest = len(self) - SHOWN_ROWS
        return f"\n  ... {counted(rest, 'more row')}; .to_arrow() has all" if rest > 0 else ""

    def to_arrow(self) -> pa.Table:
        return self.rows

    def to_polars(self) -> pl.DataFrame:
        import polars as pl

        return pl.DataFrame(pl.from_arrow(self.rows))


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "  ", width: int | None = None
) -> str:
    """Columns as wide as their widest cell; words to the left, what begins with a digit to the right.

    width: of a line; further columns go into further blocks, each begun by the first column. None means no limit.
    """
    cells = [[format_cell(cell) for cell in row] for row in rows]
    columns = list(zip(head, *cells))
    padded = []
    for column in columns:
        widest, to_left = max(map(len, column)), not any(cell[:1].isdigit() for cell in column[1:])
        padded.append([cell.ljust(widest) if to_left else cell.rjust(widest) for cell in column])
    blocks = [
        "\n".join((indent + "  ".join(row)).rstrip() for row in zip(*block)) for block in _blocks(padded, indent, width)
    ]
    return "\n\n".join(blocks)


def _blocks(padded: list[list[str]], indent: str, width: int | None) -> list[list[list[str]]]:
    """The columns of a table in groups that fit the width, the first column in each."""
    blocks, used = [padded[:1]], 0
    for column in padded[1:]:
        used += 2 + len(column[0])
        if width is not None and len(blocks[-1]) > 1 and len(indent) + len(padded[0][0]) + used > width:
            blocks.append(padded[:1])
            used = 2 + len(column[0])
        blocks[-1] = [*blocks[-1], column]
    return blocks


def fit(text: str, width: int | None) -> str:
    """The text with every line at most so wide: cut at spaces, what follows is indented below its beginning.

    A word that is wider, a path say, stays whole, so that it can be copied. None means no limit.
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        indent = " " * min(len(line) - len(line.lstrip()) + 2, width // 2)
        lines += [line] if len(line) <= width else _cut(line, width, indent)
    return "\n".join(lines)


def _cut(line: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same as an HTML table; every text is escaped."""
    cells = [[format_cell(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in cells:
        sides = ("right" if cell[:1].isdigit() else "left" for cell in row)
        lines.append(
            "<tr>"
            + "".join(f'<td style="text-align:{side}">{escape(cell)}</td>' for side, cell in zip(sides, row))
            + "</tr>"
        )
    return f"<table>{''.join(lines)}</table>"


def format_named(name: str, value: Any) -> str:
    """A value as its name says."""
    if value is None or not isinstance(value, (int, float)) or isinstance(value, bool):
        return format_cell(value)
    if name == "bytes" or name.endswith("_bytes"):
        return format_bytes(value)
    if name.startswith("ratio_") or name.endswith("_ratio"):
        return f"{value:.1f}x"
    if name.startswith("fraction_") or name.endswith("share"):
        return f"{value:.0%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value) if name.endswith("_id") else f"{value:,}"


def format_cell(value: object) -> str:
    """Thousands apart, '-' for what there is not."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def counted(count: int, one: str, many: str = "") -> str:
    """'1 file', '3 files'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def format_bytes(count: float | None) -> str:
    """1536 -> '1.54 kB', 999,600 -> '1 MB' (decimal units, three digits); '-' if there is no figure."""
    if count is None:
        return "-"
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(float(f"{count:.3g}")) < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.3g} {unit}"


def format_seconds(seconds: float) -> str:
    """2.61 -> '2.6 s', 29,569 -> '8.2 h': in the largest unit of which there are two."""
    unit = "s"
    for larger, count in (("min", 60), ("h", 60), ("days", 24)):
        if seconds < 2 * count:
            break
        seconds, unit = seconds / count, larger
    return f"{seconds:.1f} {unit}"
