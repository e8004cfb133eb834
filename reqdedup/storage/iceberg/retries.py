"""How often a commit that lost to another writer's is repeated, and how long it waits before.

The waits are drawn at random below a limit that doubles, so that writers who lost together do not come back together:
24 that commit at once all land. Iceberg's own table properties say how often and how long.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

_PROPERTIES = {
    "count": "commit.retry.num-retries",
    "min_wait_ms": "commit.retry.min-wait-ms",
    "max_wait_ms": "commit.retry.max-wait-ms",
}


@dataclass(frozen=True, kw_only=True)
class CommitRetries:
    """Repetitions of a commit.

    count: number of repetitions after the first attempt.
    min_wait_ms, max_wait_ms: limit of the first wait, and of the longest, in milliseconds.
    """

    count: int = 30
    min_wait_ms: int = 100
    max_wait_ms: int = 4_000

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> CommitRetries:
        """Those that the properties of a table name. Raises ValueError for one that is no whole number from 0."""
        found = {}
        for field in fields(cls):
            name = _PROPERTIES[field.name]
            text = properties.get(name, str(field.default))
            if not (text.isascii() and text.isdigit()):
                raise ValueError(f"table property {name}: a whole number from 0 required, found {text!r}")
            found[field.name] = int(text)
        return cls(**found)

    def wait(self, attempt: int) -> None:
        """Before the repetition of the attempt with this number, the first is 0."""
        limit_ms = min(self.max_wait_ms, self.min_wait_ms * 2 ** min(attempt, 30))
        time.sleep(random.uniform(0, limit_ms) / 1000)

    def __str__(self) -> str:
        return f"{self.count} repetitions (table property {_PROPERTIES['count']})"
