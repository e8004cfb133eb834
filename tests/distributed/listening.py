"""An engine that keeps what it would send to other processes, and what they would answer."""

from __future__ import annotations

import pickle
from typing import Any

from reqdedup.distributed import Inline


class Listening(Inline):
    """An engine that keeps what it would send."""

    is_here = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.tasks: list[Any] = []

    def run(self, work, tasks):
        self.sent += [pickle.dumps(work), pickle.dumps(tasks)]
        self.tasks += tasks
        for number, result in super().run(pickle.loads(self.sent[-2]), tasks):
            self.sent.append(pickle.dumps(result))
            yield number, result
