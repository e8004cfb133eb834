"""What subcommands print: reports as JSON, small tables as text, bytes in words, progress on one line."""

from __future__ import annotations

import enum
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from reqdedup.display import counted, format_bytes, format_table
from reqdedup.masking import mask

if TYPE_CHECKING:
    from rich.status import Status

__all__ = ["ProgressLine", "counted", "format_bytes", "format_table", "plain", "print_json", "say"]


def say(text: object) -> None:
    """Print a result; what may be a credential in it is masked."""
    print(mask(str(text)))


def print_json(value: object) -> None:
    say(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str))


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
    """Progress on standard error: one line with a spinner on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._printed = time.monotonic()
        self._status: Status | None = None

    def __call__(self, progress: object) -> None:
        now = time.monotonic()
        if now - self._printed < (0.2 if sys.stderr.isatty() else 5.0):
            return
        self._printed, text = now, mask(str(progress))
        if not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)
        elif self._status is None:
            from rich.console import Console
            from rich.text import Text

            self._status = Console(stderr=True).status(Text(text))
            self._status.start()
        else:
            from rich.text import Text

            self._status.update(Text(text))

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status is not None:
            self._status.stop()
