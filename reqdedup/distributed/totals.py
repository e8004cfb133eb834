"""What the tasks of a stretch of work came to, for who called it: a command, an asset.

    with counted() as totals:          totals.tasks, .retries, .num_bytes of every engine that ran inside, in this
        storage.compact(table)         thread; blocks may lie in one another

So no verb has to hand it through, whatever its report says beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass
class Totals:
    """tasks: done.  retries: attempts beyond one per task.  num_bytes: of the files that tasks wrote, exchange files
    among them.  engine: the name of the last one; '' if all was done without tasks."""

    tasks: int = 0
    retries: int = 0
    num_bytes: int = 0
    engine: str = ""

    def __bool__(self) -> bool:
        return self.tasks > 0 or self.retries > 0

    @property
    def figures(self) -> dict[str, Any]:
        """As reports name them."""
        return {
            **{"engine": self.engine or "inline", "tasks": self.tasks, "retries": self.retries},
            "bytes_moved": self.num_bytes,
        }


_open: ContextVar[tuple[Totals, ...]] = ContextVar("totals", default=())


@contextmanager
def counted() -> Iterator[Totals]:
    """Totals that grow while the block runs."""
    totals = Totals()
    token = _open.set((*_open.get(), totals))
    try:
        yield totals
    finally:
        _open.reset(token)


def count_done(result: Any, engine: str) -> None:
    """A task of this engine is done. result: its `num_bytes`, if it has any, are those that were written."""
    for totals in _open.get():
        totals.tasks += 1
        totals.num_bytes += getattr(result, "num_bytes", 0)
        totals.engine = engine


def count_retry() -> None:
    """A task is begun again."""
    for totals in _open.get():
        totals.retries += 1
