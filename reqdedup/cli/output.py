"""What subcommands print: reports as JSON, small tables as text, bytes in words, progress on one line."""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from reqdedup.display import counted, format_bytes, format_table
from reqdedup.masking import mask

__all__ = ["ProgressLine", "counted", "format_bytes", "format_table", "plain", "print_json"]


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
