"""A shadow comparison names what was injected: a column, an event type, an order, by share and first examples."""

from __future__ import annotations

import polars as pl
import pytest
from pyiceberg.types import StringType

from reqdedup import cli
from reqdedup.logs.synthetic_events import (
    EVENT_COLUMNS,
    EVENT_TYPES,
    SyntheticEventsConfig,
    synthetic_events,
)
from reqdedup.sequences.batch import advance, backfill, publish_timeline
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition
from reqdedup.sequences.intake import append_events
from reqdedup.sequences.shadow import ShadowLimits, shadow
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage import open_catalog

CONFIG = SyntheticEventsConfig(num_users=30, num_items=50, num_days=3)
ENGAGED = SequenceDefinition(
    name="engaged",
    events=[EventType("click"), EventType("view")],
    columns=["item_id", "event_type", "surface", "duration_s"],
    last_n=40,
    owner="tests",
)


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """The timeline, and its sequences as a legacy table would hold them: lists per user, made by plain loops."""
    folder = tmp_path_factory.mktemp("shadow")
    uri = f"sqlite:///{folder}/catalog.db"
    catalog = open_catalog(properties={"uri": uri, "warehouse": f"file://{folder}/tables"})
    log = EventLog(types=EVENT_TYPES, columns=EVENT_COLUMNS)
    append_events(catalog, "lake", log, synthetic_events(CONFIG), source="stream")
    advance(catalog, "lake", [ENGAGED], num_buckets=3)
    timeline = open_timeline(catalog, "lake")
    lists: dict[int, list[dict]] = {}
    for bucket in range(3):
        for row in timeline.read(bucket, ["event_id", *ENGAGED.columns]).to_pylist():
            lists.setdefault(row["user_id"], []).append(row)
    rows = [row for events in lists.values() for row in events[-40:]]
    return catalog, pl.DataFrame(rows, infer_schema_length=None), uri


def legacy(catalog, name: str, events: pl.DataFrame) -> str:
    users = events.with_columns(
        pl.col("event_type").replace_strict(dict(enumerate(EVENT_TYPES)), return_dtype=pl.String)
    )
    table = users.group_by("user_id", maintain_order=True).agg(pl.exclude("timeline_index")).to_arrow()
    catalog.create_namespace_if_not_exists("legacy")
    catalog.create_table(f"legacy.{name}", table.schema).append(table)
    return f"legacy.{name}"


def figures(report) -> dict:
    return {(row.figure, row.of): row for row in report.rows}


@pytest.mark.slow
def test_sequences_that_are_alike_pass_whichever_form_the_old_ones_have(lake):
    catalog, events, _ = lake
    by_event = catalog.create_table("lake.by_event", (table := events.drop("event_type").to_arrow()).schema)
    by_event.append(table)
    for old in (legacy(catalog, "same", events), "lake.by_event"):
        report = shadow(catalog, "lake", "engaged", old)
        assert report.passed
        found = figures(report)
        assert {name: found[name, ""].share for name in ("exact", "prefix", "length", "overlap")} == dict.fromkeys(
            ("exact", "prefix", "length", "overlap"), 1.0
        )
        assert found["differs", "item_id"].compared == events.height
    rows = catalog.load_table("lake.sequence_shadow").scan().to_arrow()
    assert set(rows.column("old").to_pylist()) == {"legacy.same", "lake.by_event"}


@pytest.mark.slow
def test_a_table_that_kept_examples_goes_on_without_them(lake):
    catalog, events, _ = lake
    old = legacy(catalog, "with_examples", events)
    shadow(catalog, "lake", "engaged", old)
    table = catalog.load_table("lake.sequence_shadow")
    assert "examples" not in table.schema().column_names
    with table.update_schema() as update:
        update.add_column("examples", StringType())
    before = table.refresh().scan().to_arrow().drop_columns(["examples"])
    shadow(catalog, "lake", "engaged", old)
    after = table.refresh().scan().to_arrow()
    assert after.column_names == before.column_names
    assert after.num_rows > before.num_rows
    assert after.slice(0, before.num_rows).equals(before)


@pytest.mark.slow
def test_what_was_injected_is_named_with_share_and_examples(lake):
    catalog, events, _ = lake
    place = pl.int_range(pl.len())
    off = events.with_columns(
        pl.when(place % 100 == 7).then(pl.col("surface") + 1).otherwise("surface").alias("surface")
    )
    slow = pl.when(place % 50 == 3).then(pl.col("duration_s") + 0.05).otherwise("duration_s")
    old = legacy(catalog, "off", off.with_columns(slow.alias("duration_s")))
    found = figures(report := shadow(catalog, "lake", "engaged", old, tolerance={"duration_s": 0.1}))
    assert not report.passed
    num_off = len(range(7, events.height, 100))
    assert found["differs", "surface"].share == num_off / events.height
    assert not found["differs", "surface"].ok
    first = off.row(7, named=True)
    assert (
        found["differs", "surface"].examples.split("; ")[0].split(": ")[1]
        == f"{first['surface']} -> {first['surface'] - 1}"
    )
    assert found["differs", "duration_s"].share == 0
    assert found["exact", ""].ok
    strict = figures(shadow(catalog, "lake", "engaged", old))
    assert strict["differs", "duration_s"].share > 0

    found = figures(
        shadow(catalog, "lake", "engaged", legacy(catalog, "views", events.filter(pl.col("event_type") == 0)))
    )
    clicks = events.filter(pl.col("event_type") == 1).height
    assert found["only_new", "click"].share == 1
    assert found["only_new", ""].share == clicks / events.height
    assert found["only_old", ""].share == 0
    assert ("only_new", "view") not in found
    assert not found["only_new", ""].ok

    user = events["user_id"][0]
    swapped = pl.when(pl.col("user_id") == user).then(place.reverse().over("user_id")).otherwise(place.over("user_id"))
    found = figures(shadow(catalog, "lake", "engaged", legacy(catalog, "order", events.sort("user_id", swapped))))
    num_users = events["user_id"].n_unique()
    assert found["exact", ""].share == (num_users - 1) / num_users
    assert found["overlap", ""].share == 1
    assert "the same events" in found["exact", ""].examples


@pytest.mark.slow
def test_a_version_is_compared_and_the_command_says_the_verdict(lake, capsys):
    catalog, _, uri = lake
    shorter = SequenceDefinition(**{**vars(ENGAGED), "last_n": 10, "version": 2})
    backfill(catalog, "lake", [shorter])
    publish_timeline(catalog, "lake")
    arguments = ["sequences", "shadow", "engaged", "--namespace", "lake", "--catalog-uri", uri, "--old"]
    assert cli.main([*arguments, "1"]) == 1
    said = capsys.readouterr().out
    assert "engaged against 1: not passed" in said
    assert "only_old" in said
    assert cli.main([*arguments, "1", "--unmatched", "1", "--exact", "0", "--overlap", "0"]) == 0
    assert shadow(catalog, "lake", "engaged", 2, limits=ShadowLimits(exact=1.0)).passed
    assert cli.main([*arguments, "1", "--columns", "color"]) == 2
    assert "found color" in capsys.readouterr().err
