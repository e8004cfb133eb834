"""Definitions and event streams as hypothesis draws them: late, delivered twice, null, NaN, at equal times, on a clock
that runs backwards; and what plain loops make of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from hypothesis import strategies as st

from reqdedup.sequences.columns import values_of
from reqdedup.sequences.definition import Computed, Enrichment, EventLog, EventType, SequenceDefinition
from reqdedup.sequences.executors import executor
from reqdedup.sequences.predicate import col

LOG = EventLog(
    types=("view", "click", "save"), columns={"surface": "int32", "duration_s": "float64", "query": "string"}
)
ITEMS = "lake.items"
PRICES = "lake.prices"
DAY_US = 86_400_000_000
START_US = 1_750_000_000_000_000 // DAY_US * DAY_US
NOW_US = START_US + 400 * DAY_US
HORIZON_US = 2 * DAY_US

ITEM_ROWS = [
    {"item_id": item, "category": None if item == 3 else item * 10, "vector": [float(item), -1.0]}
    for item in range(1, 5)
]
PRICE_ROWS = [
    {"item_id": item, "price": 1.5 * item + day, "since": START_US + day * DAY_US + item}
    for item in (1, 2, 2**40)
    for day in (0, 1, 5)
]
ITEM = Enrichment("item", ITEMS, "item_id", ("category", "vector"))
PRICE = Enrichment("price", PRICES, "item_id", ("price",), as_of="since")


@executor
def halves(events: pl.DataFrame) -> pl.DataFrame:
    return events.select(
        half=pl.col("duration_s") / 2,
        pair=(pl.col("surface") + pl.col("event_ts").dt.hour()) // 2,
    )


HALVES = Computed(
    "halves",
    executor="tests.sequences.event_streams:halves",
    on=["duration_s", "surface", "event_ts"],
    columns={"half": "float64", "pair": "int32"},
)


def lookups() -> dict[str, pa.Table]:
    """The tables of the enrichments."""
    items = pa.Table.from_pylist(
        ITEM_ROWS,
        pa.schema([("item_id", pa.int64()), ("category", pa.int32()), ("vector", pa.list_(pa.float32()))]),
    )
    since = pa.array([row["since"] for row in PRICE_ROWS]).cast(pa.timestamp("us", tz="UTC"))
    prices = pa.table(
        {
            "item_id": [row["item_id"] for row in PRICE_ROWS],
            "price": [row["price"] for row in PRICE_ROWS],
            "since": since,
        }
    )
    return {ITEMS: items, PRICES: prices}


def plain_lookups() -> dict[str, list[dict[str, Any]]]:
    vectors = [{**row, "vector": np.array(row["vector"], "<f4").tobytes()} for row in ITEM_ROWS]
    return {ITEMS: vectors, PRICES: PRICE_ROWS}


CONDITIONS = st.sampled_from(
    [
        None,
        col("duration_s") >= 10,
        ~(col("duration_s") >= 10),
        col("duration_s").is_null(),
        (col("surface") == 1) | (col("query") == "shoes"),
        col("surface").is_in([1, 2]) & (col("duration_s") < 30),
        col("query") != "shoes",
    ]
)


@st.composite
def definitions(draw: st.DrawFn) -> list[SequenceDefinition]:
    """One to three over one timeline."""
    found = []
    for name in ("engaged", "narrow", "wide")[: draw(st.integers(1, 3))]:
        types = draw(st.lists(st.sampled_from(LOG.types), min_size=1, max_size=3, unique=True))
        enrichments = draw(st.sampled_from([(), (ITEM,), (PRICE,), (ITEM, PRICE)]))
        columns = ["item_id", "event_type", "event_ts", "event_id", "surface", "duration_s", "query"]
        computed = draw(st.sampled_from([(), (HALVES,)]))
        columns += [column for one in (*enrichments, *computed) for column in one.columns]
        found.append(
            SequenceDefinition(
                name=name,
                events=[EventType(one, draw(CONDITIONS)) for one in types],
                columns=columns,
                last_n=draw(st.sampled_from([1, 2, 5, 100])),
                window=draw(st.sampled_from([None, "1d", "30d"])),
                enrichments=enrichments,
                computed=computed,
                owner="tests",
            )
        )
    return found


@st.composite
def streams(draw: st.DrawFn, *, max_size: int = 40) -> list[dict[str, Any]]:
    """Events as delivered, dicts of the log's columns."""
    clock = START_US + draw(st.integers(0, DAY_US))
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, max_size))):
        kind = draw(st.sampled_from(["new"] * 8 + ["again", "changed", "bad"]))
        # Equal times, neighbours, hours, empty days, and a clock that runs backwards.
        clock += draw(st.sampled_from([0, 0, 1, 1_000, 3_600_000_000, DAY_US, 3 * DAY_US, -1_000, -DAY_US]))
        if kind in ("again", "changed") and found:
            event = {**draw(st.sampled_from(found)), "arrival_ts": clock}
            if kind == "changed":
                event["surface"] = 9
            found.append(event)
            continue
        late = draw(st.sampled_from([0, 0, 1_000, 5 * DAY_US, -3_600_000_000]))
        event = {
            "event_id": draw(st.integers(0, 30)),
            "user_id": draw(st.sampled_from([1, 2, 7, -5, 2**62])),
            "item_id": draw(st.sampled_from([1, 2, 3, 4, 99, 2**40, None])),
            "event_type": draw(st.sampled_from(LOG.types)),
            "event_ts": clock - late,
            "arrival_ts": clock,
            "surface": draw(st.sampled_from([None, 0, 1, 2, 3])),
            "duration_s": draw(st.sampled_from([None, math.nan, 0.0, 9.99, 10.0, 60.0, math.inf])),
            "query": draw(st.sampled_from([None, "", "shoes", "é"])),
        }
        if kind == "bad":
            event |= draw(
                st.sampled_from(
                    [
                        {"event_id": None},
                        {"user_id": None},
                        {"event_type": "hide"},
                        {"event_type": None},
                        {"event_ts": None},
                        {"event_ts": 5},
                        {"event_ts": clock + 3 * DAY_US},
                        {"arrival_ts": NOW_US + 1},
                        {"arrival_ts": None},
                    ]
                )
            )
        found.append(event)
    return found


def arrow_of(events: list[dict[str, Any]], **more: pa.DataType) -> pa.Table:
    """Delivered events as a source gives them. more: columns beside those of LOG."""
    kinds = {
        "event_id": pa.int64(),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "event_type": pa.string(),
        "surface": pa.int32(),
        "duration_s": pa.float64(),
        "query": pa.string(),
        **more,
    }
    made = {name: pa.array([event[name] for event in events], kind) for name, kind in kinds.items()}
    for name in ("event_ts", "arrival_ts"):
        made[name] = pa.array([event[name] for event in events], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table(made)


def frame_of(events: list[dict[str, Any]], **more: pa.DataType) -> pl.DataFrame:
    frame = pl.from_arrow(arrow_of(events, **more))
    assert isinstance(frame, pl.DataFrame)
    return frame


def columns_of(events: list[dict[str, Any]], schema: pa.Schema, log: EventLog = LOG) -> dict[str, np.ndarray]:
    """What plain loops found, as the arrays that a fetch gives."""
    found = {}
    for field in schema:
        values = [event[field.name] for event in events]
        if field.name == "event_type":
            values = [log.types.index(value) for value in values]
        kind = pa.int64() if pa.types.is_timestamp(field.type) else field.type
        found[field.name] = values_of(pa.array(values, kind))
    return found


def same(found: dict[str, np.ndarray], required: dict[str, np.ndarray]) -> bool:
    """Equal columns, dtypes and values, NaN included."""
    if found.keys() != required.keys():
        return False
    for name, values in required.items():
        if values.dtype == object:
            if found[name].tolist() != values.tolist():
                return False
        elif found[name].dtype != values.dtype or found[name].tobytes() != values.tobytes():
            return False
    return True
