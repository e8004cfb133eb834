"""Results as Dagster metadata: a picture and a small table first, then plain numbers, their unit in the name.

Dagster draws a number's course over the runs, so a number keeps its name, meaning and unit from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
from pyiceberg.table import Table

from assets import pictures
from reqdedup import plots
from reqdedup.display import format_bytes, format_seconds
from reqdedup.sequences.quality import shares
from reqdedup.storage import BucketJoin, FeatureReport, UserOverlap, UserSample, WriteReport
from reqdedup.storage.measure.compression import layout_totals

PICTURE, GLANCE, CHART = "picture", "at a glance", "chart"
BY_COLUMN, EVENTS, LAG = "by column", "events by day", "lag by day"
WIDEST = 5
"""Columns of a small picture."""


def table_metadata(table: Table) -> dict[str, Any]:
    """What the UI knows of a table: its name, its columns with our docs, rows, bytes, and where and which it is."""
    snapshot = table.current_snapshot()
    columns = [
        dg.TableColumn(
            name=field.name,
            type=str(field.field_type),
            description=field.doc,
            constraints=dg.TableColumnConstraints(nullable=not field.required),
        )
        for field in table.schema().fields
    ]
    metadata: dict[str, Any] = {
        "dagster/table_name": ".".join(table.name()),
        "location": dg.MetadataValue.path(table.location()),
    }
    if any(column.description for column in columns):  # without a word to say they would push the picture down
        metadata["dagster/column_schema"] = dg.TableSchema(columns=columns)
    if snapshot is not None and snapshot.summary is not None:
        metadata["snapshot_id"] = str(snapshot.snapshot_id)  # as text: Dagster would draw it as a number
        for name, of in (("dagster/row_count", "total-records"), ("bytes", "total-files-size")):
            if (value := snapshot.summary[of]) is not None:
                metadata[name] = int(value)
    return metadata


def column_lineage(table: Table, *origins: Table, made: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Which columns of other assets the columns of a table come from: those of the same name, the first that has it.

    origins: tables of the assets that are named like them.  made: of a column that is computed, `asset.column`.
    """
    deps = {}
    for name in table.schema().column_names:
        computed = (made or {}).get(name)
        found = [computed.split(".")] if computed else [[o.name()[-1], name] for o in origins if _has(o, name)][:1]
        if found:
            deps[name] = [
                dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=column) for asset, column in found
            ]
    return {"dagster/column_lineage": dg.TableColumnLineage(deps_by_column=deps)}


def _has(table: Table, column: str) -> bool:
    return column in table.schema().column_names


def write_metadata(report: WriteReport) -> dict[str, Any]:
    """What a write did, with units."""
    return {
        GLANCE: pictures.facts(
            rows=f"{report.rows:,}",
            requests=f"{report.requests:,}",
            users=f"{report.users:,}",
            rows_per_request=f"{report.rows / max(report.requests, 1):.1f}",
            stored=format_bytes(report.bytes),
            per_row=format_bytes(report.bytes / max(report.rows, 1)),
        ),
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
    totals = layout_totals(report)
    texts = {
        plots.layout_name(row["table"]): format_bytes(row["bytes"])
        + (
            f", {row['ratio']:.1f}x, {row['fraction_of_limit'] or 0:.0%} of limit"
            if (row["ratio"] or 0) > 1.005
            else ""
        )
        for row in totals
    }
    metadata: dict[str, Any] = {
        PICTURE: pictures.bars(
            {plots.layout_name(row["table"]): row["bytes"] for row in totals},
            texts,
            limits=[row["store_once_bytes"] for row in totals],
            first_is_control=True,
        ),
        GLANCE: pictures.table(
            [
                {
                    "layout": plots.layout_name(row["table"]),
                    "stored": format_bytes(row["bytes"]),
                    "smaller": f"{row['ratio'] or 0:.1f}x",
                    "of limit": f"{row['fraction_of_limit'] or 0:.0%}",
                }
                for row in totals
            ]
        ),
        BY_COLUMN: _by_column(columns),
        "chart by layout": pictures.chart(plots.layouts(report)),
        "chart by column": pictures.chart(plots.columns(report)),
    }
    metadata |= {"user_overlap": round(overlap.share, 3), "widest_column": wide[0]}
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


def _by_column(columns: pl.DataFrame) -> dg.MetadataValue:
    """How much smaller the last layout holds the largest columns of the first; the line is where the limit would be."""
    first, last = columns["table"][0], columns["table"][-1]
    widest = columns.filter(pl.col("table") == first).top_k(WIDEST, by="compressed_bytes")
    of_last = {row["column"]: row for row in columns.filter(pl.col("table") == last).iter_rows(named=True)}
    rows = [(row["column"], row["compressed_bytes"], of_last[row["column"]]) for row in widest.iter_rows(named=True)]
    ratios = {name: before / max(after["compressed_bytes"], 1) for name, before, after in rows}
    return pictures.bars(
        ratios,
        {name: f"{ratios[name]:.1f}x to {format_bytes(after['compressed_bytes'])}" for name, _, after in rows},
        limits=[before / max(after["store_once_bytes"], 1) for _, before, after in rows],
    )


def feature_metadata(report: FeatureReport, main: Table) -> dict[str, Any]:
    """What a backfill wrote, beside the least it could have. main: the table that was not rewritten for it."""
    return {
        GLANCE: pictures.facts(
            requests=f"{report.requests:,}",
            written=format_bytes(report.bytes),
            values_alone=format_bytes(report.minimum_bytes),
            main_table_not_rewritten=format_bytes(table_metadata(main).get("bytes")),
        ),
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
    rows = sample.report.to_pylist()
    glance = [
        {
            "stratum": row["stratum"],
            **{name: f"{row[f'{name}_before']:,} -> {row[f'{name}_after']:,}" for name in ("users", "rows")},
        }
        for row in rows
    ]
    before, after = (rows[-1][f"rows_{when}"] for when in ("before", "after"))
    return {
        PICTURE: pictures.bars(
            {"before": before, "sample": after},
            {"before": f"{before:,} rows", "sample": f"{after:,} rows, {after / max(before, 1):.0%}"},
            first_is_control=True,
        ),
        GLANCE: pictures.table(glance),
        CHART: pictures.chart(plots.before_and_after(sample.report)),
        **counts,
        "sampled_users": len(sample.user_ids),
        "sample": markdown_table(sample.report),
    }


def curve_metadata(report: pa.Table) -> dict[str, Any]:
    """A re-ranking's curve. report: of `rerank.scored.curve_table`."""
    found: dict[str, dict[str, float]] = {}
    for row in report.to_pylist():
        found.setdefault(row["point"], {})[row["figure"]] = row["value"]
    if not all({"dcg_ratio", "mean_distance"} <= figures.keys() for figures in found.values()):
        return {
            GLANCE: pictures.facts(slates_of_two_or_more="none: there is no order to tell"),
            **report_metadata(report),
        }
    kept = [100 * figures["dcg_ratio"] for figures in found.values()]
    names = list(found)
    return {
        PICTURE: pictures.line(kept, first=f"{kept[0]:.1f}% kept", last=f"{kept[-1]:.1f}% at {names[-1]}"),
        GLANCE: pictures.table(
            [
                {
                    "weight": name,
                    "relevance kept": f"{figures['dcg_ratio']:.1%}",
                    "distance of picks": f"{figures['mean_distance']:.3f}",
                }
                for name, figures in found.items()
            ]
        ),
        CHART: pictures.chart(plots.relevance_and_variety(report)),
        **report_metadata(report),
    }


def quality_metadata(report: pa.Table) -> dict[str, Any]:
    """How good sequences are on the last day. report: of `sequences.quality.sequence_quality`."""
    last = max(report.column("day").to_pylist())
    rows = [row for row in report.to_pylist() if row["day"] == last]
    count = {
        name: int(sum(row["value"] for row in rows if row["figure"] == name))
        for name in ("delivered", "kept", "duplicate", "late", "rejected")
    }
    lags = {(row["event_type"], row["figure"]): row["value"] for row in rows if row["figure"].startswith("lag_")}
    covered = shares(report, "covered")
    return {
        **({PICTURE: pictures.bars(covered, {of: f"{share:.1%} covered" for of, share in covered.items()})}
           if covered else {}),
        GLANCE: pictures.table(
            [
                {"event type": kind, "lag, median": format_seconds(lags[kind, "lag_p50_s"]),
                 "lag, 99%": format_seconds(lags[kind, "lag_p99_s"])}
                for kind in dict.fromkeys(kind for kind, _ in lags)
            ]
        ),
        **_by_day(report.to_pylist()),
        CHART: pictures.chart(plots.sequence_figures(report)),
        "last_day": str(last),
        **{f"last_day_{name}": number for name, number in count.items()},
        **report_metadata(report),
    }  # fmt: skip


def _by_day(rows: Sequence[Mapping[str, Any]]) -> dict[str, dg.MetadataValue]:
    """The course of two figures over the days: events that were kept, and the longest lag of an event type."""
    kept: dict[Any, float] = {}
    lag: dict[Any, float] = {}
    for row in rows:
        day, value = row["day"], row["value"]
        if row["figure"] == "kept":
            kept[day] = kept.get(day, 0.0) + value
        elif row["figure"] == "lag_p99_s":
            lag[day] = max(lag.get(day, 0.0), value)
    events, longest = ([of[day] for day in sorted(of)] for of in (kept, lag))
    return {
        **(
            {EVENTS: pictures.line(events, first=f"{events[0]:,.0f}", last=f"{events[-1]:,.0f} at last")}
            if events
            else {}
        ),
        **(
            {LAG: pictures.line(longest, first=format_seconds(longest[0]), last=f"{format_seconds(longest[-1])} (99%)")}
            if longest
            else {}
        ),
    }


def report_metadata(report: pa.Table) -> dict[str, Any]:
    """A report table as it is."""
    return {"dagster/row_count": report.num_rows, "report": markdown_table(report)}
