"""What subcommands print: reports as JSON, small tables as text, bytes in words, progress on one line."""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from reqdedup.masking import mask


def print_json(value: object) -> None:
    print(mask(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str)))


def plain(value: Any) -> Any:
    """The same in dicts, lists, numbers and strings: reports are dataclasses, some of whose fields are Arrow tables."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if hasattr(value, "to_pylist"):
        return plain(value.to_pylist())
    return value


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "  ") -> str:
    """Columns as wide as their widest cell; words to the left, what begins with a digit to the right."""
    cells = [[format_cell(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *cells)]
    to_left = [not any(cell[:1].isdigit() for cell in column) for column in zip(*cells)]
    lines = []
    for row in [list(head), *cells]:
        padded = [cell.ljust(width) if left else cell.rjust(width) for cell, width, left in zip(row, widths, to_left)]
        lines.append((indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)


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
    """1536 -> '1.5 kB' (decimal units); '-' where there is no figure."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class ProgressLine:
    """One line on standard error: rewritten on a terminal, printed every few seconds otherwise."""

    def __init__(self) -> None:
        self.printed = time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        self.width = 0

    def __call__(self, progress: object) -> None:
        now = time.monotonic()
        if now - self.printed < (0.2 if self.is_terminal else 5.0):
            return
        self.printed = now
        text = str(progress)
        if self.is_terminal:
            print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self.width:
            print(file=sys.stderr)
