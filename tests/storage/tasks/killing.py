"""Compute functions that end badly: one whose process is killed in the middle of a task, one that fails at a bucket."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from reqdedup.storage.iceberg.layout import buckets_of
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


@dataclass(frozen=True)
class FailsAt:
    """`of_request`, but an error for requests of one of 4 buckets; -1 for none."""

    bucket: int

    def __call__(self, requests: pa.RecordBatch) -> pa.Array:
        if (buckets_of(requests["user_id"].to_numpy(), 4) == self.bucket).any():
            raise ValueError("a count required, of this one none can be said")
        return of_request(requests)
