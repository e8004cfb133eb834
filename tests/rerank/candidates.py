"""Scored candidates of a few requests, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def scored(requests: Sequence[int] = (9, 0, 1, 14), *, seed: int = 0) -> pa.Table:
    """requests: candidates of each. Rows in no order."""
    rng = np.random.default_rng(seed)
    rows = sum(requests)
    request = np.repeat(np.arange(len(requests)), requests)
    table = pa.table({
        "user_id": request // 2, "request_id": request, "item_id": rng.permutation(rows) + 100,
        "score": rng.standard_normal(rows).astype(np.float32),
        "vector": pa.array(list(rng.standard_normal((rows, 4)).astype(np.float32)), pa.list_(pa.float32())),
        "topic": pa.array([None if n == 0 else f"topic {n}" for n in rng.integers(0, 4, rows)]),
    })  # fmt: skip
    return table.take(rng.permutation(rows))
