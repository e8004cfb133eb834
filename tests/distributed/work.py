"""Work for engines to do: numbers squared, or a fault on the way."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Square:
    """A number. fault: what happens instead, each time or (`once`) the first time."""

    number: int
    fault: str = ""
    once: bool = False

    @property
    def name(self) -> str:
        return f"square {self.number}"


@dataclass(frozen=True)
class Squares:
    """folder: where tasks note that they have begun."""

    folder: Path
    secret: str = ""

    def run(self, task: Square) -> int:
        begun = self.folder / f"{task.number}-{os.getpid()}-{time.monotonic_ns()}"
        again = bool(list(self.folder.glob(f"{task.number}-*")))
        begun.touch()
        if task.fault and not (task.once and again):
            match task.fault:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(60)
                case "value":
                    raise ValueError("a whole number required, found none")
                case "disk":
                    raise OSError(28, "No space left on device")
                case "memory":
                    raise MemoryError("no more")
                case "eat":
                    _ = [b"\x01" * 2**27 for _ in range(32)]
        return task.number**2
