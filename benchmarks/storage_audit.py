"""How well `reqdedup audit` predicts: the estimate of each layout against that layout really written.

    python -m benchmarks.storage --only audit

Every log is written in all layouts; the audit sees the shuffled one and samples part of its users. An error is estimate
over truth, less one. A row holds the standard deviation of the errors over the logs, the largest, and in how many logs
the audit's 95% interval held the truth. Bytes alone: the load of the machine does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyiceberg.table import Table

from benchmarks.tables import local_catalog
from reqdedup.audit import audit_table
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.storage import Layout, create_table, write

LAYOUTS = (Layout.SHUFFLED, Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST)
NUM_LOGS = 8
CASES = {
    "short histories": (
        SyntheticLogConfig(num_users=1_200, mean_requests_per_user=3, mean_fan_out=20, max_fan_out=80, max_history=64),
        24 * 2**20,
    ),
    "histories of 512": (
        SyntheticLogConfig(num_users=300, mean_requests_per_user=3, mean_fan_out=30, max_fan_out=120, max_history=512),
        80 * 2**20,
    ),
}
"""Name -> (log, bytes of the sample with every value laid down)."""


def measure(
    folder: Path, name: str, log: SyntheticLogConfig, sample_bytes: int, *, num_logs: int = NUM_LOGS
) -> Iterator[dict[str, Any]]:
    """One row per layout."""
    errors: dict[Layout, list[float]] = {layout: [] for layout in LAYOUTS}
    held = dict.fromkeys(LAYOUTS, 0)
    users = []
    for seed in range(num_logs):
        config = replace(log, seed=seed)
        catalog = local_catalog(folder / f"{name} {seed}")
        tables = {}
        for layout in LAYOUTS:
            tables[layout] = create_table(catalog, f"audit.{layout.value}", synthetic_schema(config), layout)
            write(tables[layout], synthesize(config))
        report = audit_table(
            tables[Layout.SHUFFLED],
            request_key="request_id",
            user_key="user_id",
            item_key="item_id",
            sample_bytes=sample_bytes,
        )
        users.append(report.sample.users)
        for layout, table in tables.items():
            found, truth = report.layout(layout.name), column_bytes(table)
            errors[layout].append(found.bytes / truth - 1)
            held[layout] += found.low <= truth <= found.high
    for layout in LAYOUTS:
        yield {
            "claim": f"audit of a shuffled table, {name}",
            "variant": layout.value,
            "value": float(np.std(errors[layout], ddof=1)) if num_logs > 1 else abs(errors[layout][0]),
            "unit": "standard deviation of estimate / truth - 1",
            "target": None,
            "spread": [min(errors[layout]), max(errors[layout])],
            "runs": num_logs,
            "intervals_that_held": held[layout],
            "sizes": {"users": log.num_users, "users_sampled": users, "max_history": log.max_history},
        }


def column_bytes(table: Table) -> int:
    """Compressed bytes of all column chunks of the table's files, what the audit speaks of."""
    total = 0
    for task in table.scan().plan_files():
        footer = pq.read_metadata(task.file.file_path.removeprefix("file://"))
        for i in range(footer.num_row_groups):
            group = footer.row_group(i)
            total += sum(group.column(j).total_compressed_size for j in range(group.num_columns))
    return total
