"""What subcommands print: reports as JSON, small tables as text, bytes in words, progress as a bar or a line.

Results go to standard output, everything else to standard error. Tables and sentences fit the terminal.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import click

from reqdedup import display
from reqdedup.cli.terminal import is_terminal, styled, width
from reqdedup.display import counted, fit, format_bytes
from reqdedup.distributed import Inline, Totals
from reqdedup.distributed import counted as counted_tasks
from reqdedup.masking import mask

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "ProgressLine",
    "counted",
    "format_bytes",
    "format_table",
    "interruptible",
    "note",
    "plain",
    "print_json",
    "say",
    "tell",
    "warn",
]


def say(text: object) -> None:
    """Print a result; what may be a credential in it is masked."""
    print(fit(mask(str(text)), width(sys.stdout)))


def note(text: object) -> None:
    """Say something beside the result, unless --quiet was given."""
    if not _is_quiet():
        print(fit(mask(str(text)), width(sys.stderr)), file=sys.stderr)


def warn(text: object) -> None:
    """Say what should not be overlooked; --quiet does not silence it."""
    tell("warning:", str(text), colour="yellow")


def tell(head: str, text: str, *, colour: str) -> None:
    """A message on standard error, its head in a colour on a terminal."""
    fitted = fit(f"{head} {mask(text)}", width(sys.stderr)).removeprefix(head)
    print(styled(head, sys.stderr, fg=colour, bold=True) + fitted, file=sys.stderr)


def print_json(value: object, *, is_masked: bool = True) -> None:
    """Print a document; is_masked: whether what may be a credential in it is, unlike in data that were asked for."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, default=str)
    text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair is written so in JSON, too
    print(mask(text) if is_masked else text)


def format_table(head: Sequence[str], rows: Sequence[Sequence[object]], *, indent: str = "  ") -> str:
    """`display.format_table` in the width of the terminal."""
    return display.format_table(head, rows, indent=indent, width=width(sys.stdout))


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


@contextlib.contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """If Ctrl-C ends the block, the message says what `kept` finds: what is there now, and what is not."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        try:
            found = kept()
        except Exception as error:  # the catalog is away, say
            found = f"what was kept could not be looked up ({error}); tables are as before their last commit"
        told = KeyboardInterrupt(found)
        for one in getattr(stopped, "__notes__", ()):
            told.add_note(one)
        raise told from stopped


class ProgressLine:
    """Progress on standard error: a bar with the time left on a terminal, else a line every few seconds.

    progress: what is done, in words, or an object with phase, done and total.  done, total: if it is words.
    totals: of the tasks that ran in the block, which are named at its end if they ran elsewhere.
    """

    def __init__(self) -> None:
        self._count = counted_tasks()
        self.totals = Totals()
        self._is_quiet, self._is_terminal = _is_quiet(), is_terminal(sys.stderr)
        self._printed = 0.0 if self._is_terminal else time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""

    def __call__(self, progress: object, done: int | None = None, total: int | None = None) -> None:
        now = time.monotonic()
        if self._is_quiet or now - self._printed < (0.1 if self._is_terminal else 5.0):
            return
        self._printed = now
        if not self._is_terminal:
            text = str(progress) if done is None else f"{progress}: {done:,}" + (f" of {total:,}" if total else "")
            print(mask(text + self._repeated()), file=sys.stderr, flush=True)
            return
        done = getattr(progress, "done", done)
        self._draw(
            mask(str(getattr(progress, "phase", progress))) + self._repeated(), done, getattr(progress, "total", total)
        )

    def _draw(self, label: str, done: int | None, total: int | None) -> None:
        if self._bar is None:
            self._bar = _make_bar()
            self._bar.start()
        kind = label.partition(" ")[0].strip(":")
        if self._task is None or kind != self._label:  # another phase has an estimate of its own
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._label, self._task = kind, self._bar.add_task(label, total=total)
        self._bar.update(self._task, description=label, completed=done or 0, total=total)

    def _repeated(self) -> str:
        return f", {self.totals.retries:,} begun again" if self.totals.retries else ""

    def __enter__(self) -> ProgressLine:
        self.totals = self._count.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._count.__exit__(None, None, None)
        if self._bar is not None:
            self._bar.stop()
        if self.totals.engine not in ("", Inline.name) and not self._is_quiet:
            moved = format_bytes(self.totals.num_bytes)
            text = f"{self.totals.engine}: {counted(self.totals.tasks, 'task')}{self._repeated()}, {moved} moved"
            print(text, file=sys.stderr, flush=True)


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Count(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}")

    label = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (label, BarColumn(bar_width=20), Count(), TimeRemainingColumn(elapsed_when_finished=True))
    return Progress(*columns, console=Console(stderr=True, width=width(sys.stderr)), transient=True)


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context is not None and context.params.get("quiet"))
