"""Results as Dagster metadata: plain numbers, their unit in the name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa

from reqdedup.storage import BucketJoin, FeatureReport, UserOverlap, UserSample, WriteReport
from reqdedup.training import TrainingConfig, TrainingResult


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


def compression_metadata(report: pa.Table, overlap: UserOverlap) -> dict[str, Any]:
    """Bytes and ratio of each layout, for all columns and for the sequences and vectors alone."""
    columns = pl.from_arrow(report)
    assert isinstance(columns, pl.DataFrame)
    control = columns.filter(pl.col("table") == "engagements_shuffled")
    wide = control.filter(pl.col("compressed_bytes") == control["compressed_bytes"].max())["column"].to_list()
    metadata: dict[str, Any] = {"user_overlap": round(overlap.share, 3), "widest_column": wide[0]}
    for (table,), rows in columns.group_by("table", maintain_order=True):
        name = str(table).removeprefix("engagements_")
        stored, limit = int(rows["compressed_bytes"].sum()), int(rows["store_once_bytes"].sum())
        widest = rows.filter(pl.col("column") == wide[0])
        metadata |= {
            f"bytes_{name}": stored,
            f"ratio_{name}": round(int(control["compressed_bytes"].sum()) / stored, 2),
            f"fraction_of_limit_{name}": round(limit / stored, 3),
            f"widest_column_ratio_{name}": round(float(widest["ratio_to_control"][0]), 2),
        }
    return {**metadata, **report_metadata(report)}


def feature_metadata(report: FeatureReport) -> dict[str, Any]:
    """What a backfill wrote, beside the least it could have."""
    return {
        "dagster/row_count": report.requests,
        "files": report.files,
        "bytes": report.bytes,
        "minimum_bytes": report.minimum_bytes,
        "key_bytes": report.key_bytes,
        "seconds": round(report.seconds, 2),
    }


def sample_metadata(joined: BucketJoin, sample: UserSample) -> dict[str, Any]:
    """What the join matched, and what the sample kept of each stratum."""
    counts = {f"join_{name}": value for name, value in asdict(joined.counts).items()}
    return {**counts, "sampled_users": len(sample.user_ids), "sample": markdown_table(sample.report)}


def report_metadata(report: pa.Table) -> dict[str, Any]:
    """A report table as it is."""
    return {"dagster/row_count": report.num_rows, "report": markdown_table(report)}


def training_metadata(config: TrainingConfig, result: TrainingResult) -> dict[str, Any]:
    """What a training run gave, with units."""
    return {
        "task": config.task,
        "ranks": config.world_size,
        "steps": result.steps,
        "epochs": result.epochs,
        "rows": result.rows,
        "loss_first_tenth": round(result.first_loss, 4),
        "loss_last_tenth": round(result.last_loss, 4),
        "rows_per_s": round(result.rows_per_s),
        "total_s": round(result.total_s, 1),
        "peak_memory_bytes": result.peak_memory_bytes,
        "checkpoint": str(result.checkpoint),
        **{name: float(value) for name, value in result.metrics.items()},
    }
