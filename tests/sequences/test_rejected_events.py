"""What is no event is in `rejected_events`, with its reason, and each append takes its own away alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.sequences.intake import append_events
from reqdedup.sequences.tables import delivered_of, load_raw
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.maintenance import row_deletion
from tests.sequences.event_lake import deliver, event, lake
from tests.sequences.event_streams import (
    LOG,
    NOW_US,
    START_US,
    arrow_of,
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return lake(tmp_path)


def test_an_append_that_was_slower_takes_no_rejected_events_of_the_faster_one(catalog: Catalog):
    deliver(catalog, [event(1, START_US)], "first")

    def slowly() -> Iterator[pa.Table]:
        yield arrow_of([event(2, START_US + 1, event_type="hide")])
        deliver(catalog, [event(3, START_US + 2), event(4, START_US + 3, user_id=None)], "fast")

    with pytest.raises(ConflictError, match="another writer was faster"):
        append_events(catalog, "lake", LOG, slowly(), source="slow", now_us=NOW_US)
    rows = catalog.load_table("lake.rejected_events").scan().to_arrow().to_pylist()
    assert [(row["source"], row["position"]) for row in rows] == [("fast", 2)]


def test_rejected_events_say_which_append_brought_them_and_others_leave_none(catalog: Catalog):
    good, bad = event(1, START_US), event(2, START_US, event_type="hide")
    deliver(catalog, [good, bad], "a")

    def slowly() -> Iterator[pa.Table]:
        yield arrow_of([bad])
        deliver(catalog, [bad], "b")  # the same source and position

    with pytest.raises(ConflictError, match="another writer was faster"):
        append_events(catalog, "lake", LOG, slowly(), source="b", now_us=NOW_US)
    table = catalog.load_table("lake.rejected_events")
    schema = table.schema().as_arrow()
    for position, write_id in ((3, "killed"), (3, None), (4, "killed"), (5, "killed")):
        row = {"reason": "r", "source": "c", "source_row": 0, "position": position, "user_id": 7, "write_id": write_id}
        table.append(pa.Table.from_pylist([row], schema))
    deliver(catalog, [good, bad], "c")
    rows = table.refresh().scan().to_arrow().sort_by("position").to_pylist()
    writes = [snapshot.summary["reqdedup.write-id"] for snapshot in load_raw(catalog, "lake").snapshots()]
    assert [(row["position"], row["write_id"]) for row in rows] == [*zip((1, 2, 4), writes), (5, "killed")]


def test_an_append_that_has_landed_is_not_said_to_have_failed_if_others_write_rejected_events(
    catalog: Catalog, monkeypatch
):
    good, bad = event(1, START_US), event(2, START_US, event_type="hide")
    deliver(catalog, [bad], "a")
    table = catalog.load_table("lake.rejected_events")

    def left(position: int, write_id: str) -> None:
        row = {"reason": "r", "source": "c", "source_row": 0, "position": position, "user_id": 7, "write_id": write_id}
        catalog.load_table("lake.rejected_events").append(pa.Table.from_pylist([row], table.schema().as_arrow()))

    def after_another(*arguments, **options):
        left(9, "running")
        return replace_files(*arguments, **options)

    left(1, "killed")
    with monkeypatch.context() as patched:
        replace_files = row_deletion.replace_files
        patched.setattr(row_deletion, "replace_files", after_another)
        deliver(catalog, [good], "b")
    assert delivered_of(load_raw(catalog, "lake")).next_position == 2
    assert "killed" in table.refresh().scan().to_arrow()["write_id"].to_pylist()
    deliver(catalog, [good], "c")
    assert set(table.refresh().scan().to_arrow()["position"].to_pylist()) == {0, 9}


def test_a_table_of_rejected_events_of_an_earlier_version_goes_on(catalog: Catalog):
    deliver(catalog, [event(1, START_US, event_type="hide")], "a")
    table = catalog.load_table("lake.rejected_events")
    with table.update_schema() as update:
        update.delete_column("write_id")
    with load_raw(catalog, "lake").transaction() as transaction:
        transaction.set_properties({"reqdedup.delivered": json.dumps({"next_position": 1, "arrival_us": START_US})})
    deliver(catalog, [event(2, START_US, event_type="hide")], "b")
    rows = table.refresh().scan().to_arrow().sort_by("position").to_pylist()
    assert [(row["position"], row["write_id"] is None) for row in rows] == [(0, True), (1, False)]


def test_what_a_killed_append_of_an_earlier_version_left_goes_from_a_table_that_says_no_append(catalog: Catalog):
    deliver(catalog, [event(1, START_US, event_type="hide")], "a")
    table = catalog.load_table("lake.rejected_events")
    with table.update_schema() as update:
        update.delete_column("write_id")
    row = {"reason": "r", "source": "b", "source_row": 0, "position": 1, "user_id": 7}
    table.append(pa.Table.from_pylist([row], table.schema().as_arrow()))
    with load_raw(catalog, "lake").transaction() as transaction:
        transaction.set_properties({"reqdedup.delivered": json.dumps({"next_position": 1, "arrival_us": START_US})})
    deliver(catalog, [event(2, START_US)], "b")
    assert table.refresh().scan().to_arrow()["position"].to_pylist() == [0]


def test_rejected_events_are_kept_with_reason_source_and_position(catalog: Catalog):
    deliver(
        catalog,
        [event(1, START_US), event(2, START_US, event_type="hide"), event(3, START_US, user_id=None)],
        "a.jsonl",
    )
    rows = catalog.load_table("lake.rejected_events").scan().to_arrow().sort_by("position").to_pylist()
    assert [(row["reason"], row["source"], row["source_row"], row["position"], row["user_id"]) for row in rows] == [
        ("event_type is unknown", "a.jsonl", 1, 1, 7),
        ("user_id is null", "a.jsonl", 2, 2, None),
    ]
