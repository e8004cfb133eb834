"""What the stages read from: anything that yields deduplicated batches, as often as it is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from reqdedup.schema import EngagementSchema


@runtime_checkable
class BatchSource(Protocol):
    """A table, a join or a sample, read as deduplicated batches (reqdedup.dedup.encoding).

    One with `fingerprint() -> dict[str, str]` can be resumed in the middle: named parts that are equal in another
    process if the same rows come in the same order, and not otherwise.
    """

    @property
    def schema(self) -> EngagementSchema:
        """The columns of the batches."""
        ...

    def batches(
        self, columns: Sequence[str] | None = None, users: np.ndarray | pa.Array | None = None
    ) -> Iterator[pa.RecordBatch]:
        """A fresh pass over all rows.

        columns: exactly these, in schema order; None means all.  users: only the rows of these user ids.
        """
        ...


def fingerprint_of(source: object) -> dict[str, str] | None:
    """The fingerprint of a source, None if it has none."""
    fingerprint = getattr(source, "fingerprint", None)
    return None if fingerprint is None else fingerprint()


def digest(*parts: object) -> str:
    """128-bit hash of plain values (as JSON) and arrays (as their bytes)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()
