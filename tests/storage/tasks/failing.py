"""A compute function that fails at a bucket."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from reqdedup.storage.iceberg.layout import buckets_of
from tests.storage.feature_tables import of_request


@dataclass(frozen=True)
class FailsAt:
    """`of_request`, but an error for requests of one of 4 buckets; -1 for none."""

    bucket: int

    def __call__(self, requests: pa.RecordBatch) -> pa.Array:
        if (buckets_of(requests["user_id"].to_numpy(), 4) == self.bucket).any():
            raise ValueError("a count required, of this one none can be said")
        return of_request(requests)
