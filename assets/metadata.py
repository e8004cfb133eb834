"""Results as Dagster metadata: plain numbers, their unit in the name."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow as pa

from reqdedup.storage import WriteReport


def write_metadata(report: WriteReport) -> dict[str, Any]:
    """What a write did, with units."""
    return {
        "dagster/row_count": report.rows,
        "requests": report.requests,
        "users": report.users,
        "fan_out": round(report.rows / max(report.requests, 1), 2),
        "files": report.files,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 2),
    }


def markdown_table(rows: pa.Table, *, limit: int = 60) -> dg.MarkdownMetadataValue:
    """A small table for the UI; floats to three significant digits."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    lines = ["| " + " | ".join(rows.schema.names) + " |", "|" + " --- |" * rows.num_columns]
    for row in rows.slice(0, limit).to_pylist():
        lines.append("| " + " | ".join(text(value) for value in row.values()) + " |")
    return dg.MetadataValue.md("\n".join(lines))
