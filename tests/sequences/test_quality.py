"""The figures of `sequence_quality` are those of plain loops, and each check says what is wrong."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest

from reqdedup.logs.synthetic_events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
    synthetic_items,
)
from reqdedup.sequences.batch import advance
from reqdedup.sequences.definition import Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.naive import accept, timelines
from reqdedup.sequences.predicate import col
from reqdedup.sequences.quality import check_quality, days_of, sequence_quality, shares, waiting_events
from reqdedup.storage import open_catalog

CONFIG = SyntheticEventsConfig(num_users=30, num_items=50, num_days=3, again_share=0.02, late_share=0.02)
LOG = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("view", ~(col("duration_s") < 5))],
    enrichments=[Enrichment("item", "lake.items", "item_id", ["category"])],
    columns=["item_id", "category"],
    last_n=20,
    owner="tests",
)


def us_of(table: pa.Table) -> list[dict]:
    for name in ("event_ts", "arrival_ts"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table.column(name).cast(pa.int64()))
    return table.to_pylist()


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    catalog = open_catalog(properties={"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/tables"})
    catalog.create_namespace("lake")
    items = synthetic_items(CONFIG).slice(0, 40)  # of 50: a fifth of the items has no row
    catalog.create_table("lake.items", items.schema).append(items)
    delivered = list(synthetic_events(CONFIG))[: CONFIG.num_days]
    bad = delivered[1].slice(0, 4).set_column(3, "event_type", pa.array(["gone"] * 4))
    delivered.insert(1, bad)
    append_events(catalog, "lake", LOG, delivered, source="stream")
    advance(catalog, "lake", [ENGAGED], num_buckets=2)
    return catalog, pa.concat_tables(delivered), items


@pytest.mark.slow
def test_the_figures_are_those_of_plain_loops(lake):
    catalog, delivered, items = lake
    report = sequence_quality(catalog, "lake")
    found = {(row["day"], row["event_type"], row["figure"], row["of"]): row["value"] for row in report.to_pylist()}
    accepted = accept(LOG, us_of(delivered), 10**17)
    required: Counter = Counter()
    last_of: dict = {}

    def day_of(event):
        return datetime.fromtimestamp(event["arrival_ts"] / 1e6, UTC).date()

    for event in accepted.events:
        name = (event["user_id"], event["event_id"])
        before, last_of[name] = last_of.get(name), event["arrival_ts"]
        key = (day_of(event), event["event_type"])
        required[*key, "delivered", ""] += 1
        required[*key, "duplicate", ""] += before is not None and event["arrival_ts"] - before <= 3 * 86_400_000_000
        required[*key, "late", ""] += event["arrival_ts"] - event["event_ts"] > 3_600_000_000
    for name in ("delivered", "duplicate", "late"):
        assert {key: value for key, value in found.items() if key[2] == name} == {
            key: value for key, value in required.items() if key[2] == name
        }
    assert sum(value for key, value in found.items() if key[2] == "duplicate") > 10
    kept: Counter = Counter()
    for timeline in timelines(LOG, [ENGAGED], accepted.events, {"lake.items": items.to_pylist()}).of_user.values():
        for event in timeline:
            key = (day_of(event), event["event_type"])
            kept[*key, "kept", ""] += 1
            kept[*key, "covered", "item"] += event["category"] is not None
            for name in (*EVENT_COLUMNS, "category"):
                kept[*key, "null_share", name] += event[name] is None or math.isnan(event[name])
    required_kept = {
        key: value if key[2] == "kept" else value / kept[key[0], key[1], "kept", ""] for key, value in kept.items()
    }
    assert {key: value for key, value in found.items() if key[2] in ("kept", "covered", "null_share")} == pytest.approx(
        required_kept
    )
    rejected = {key[3]: value for key, value in found.items() if key[2] == "rejected"}
    assert rejected == {"event_type is unknown": 4}
    assert waiting_events(catalog, "lake") == 0
    assert sum(value for _, value in days_of(report, "delivered")) == len(accepted.events)


@pytest.mark.slow
def test_each_check_says_what_is_wrong(lake):
    report = sequence_quality(lake[0], "lake")
    lag, coverage, drift = check_quality(report)
    assert lag.ok
    assert drift.ok
    assert drift.checked == 6
    assert [line.split(":")[0] for line in coverage.wrong] == ["click", "view"]  # a fifth of the items has no row
    assert shares(report, "covered")["item"] == pytest.approx(0.93, abs=0.06)
    rows = pl.from_arrow(report)
    last = pl.col("day") == rows["day"].max()
    slow = rows.with_columns(
        pl.when(last & (pl.col("figure") == "lag_p50_s")).then(90.0).otherwise("value").alias("value")
    )
    assert "a median lag of at most 60 s required, found 90.0 s" in check_quality(slow.to_arrow())[0].wrong[0]
    is_null = (
        last & (pl.col("of") == "category") & (pl.col("event_type") == "click") & (pl.col("figure") == "null_share")
    )
    nulls = rows.with_columns(pl.when(is_null).then(0.6).otherwise("value").alias("value"))
    (said,) = check_quality(nulls.to_arrow())[2].wrong
    assert said.startswith("click: a share of nulls in category near")
