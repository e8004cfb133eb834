"""A compute function whose process is killed in the middle of a task, once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tests.storage.feature_tables import of_request


@dataclass(frozen=True)
class KilledOnce:
    """`of_request`; the first process that gets to it, and makes `mark`, dies."""

    mark: Path

    def __call__(self, requests: pa.RecordBatch) -> pa.Array:
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return of_request(requests)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
