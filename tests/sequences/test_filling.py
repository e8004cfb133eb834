"""A store filled from tables holds what the rows say, by a plain loop over them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reqdedup import storage
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.sequences.filling import check_store, event_columns, feature_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.storage import Layout, TableSource
from tests.storage.small_log import log_schema, make_log, to_batches

LOG = SyntheticLogConfig(
    seed=5,
    num_users=40,
    num_items=500,
    mean_requests_per_user=4.0,
    max_requests_per_user=9,
    mean_fan_out=3.0,
    max_fan_out=9,
    median_history=24.0,
    p90_history=60.0,
    max_history=32,
    anchor_stride=8,
    user_embedding_width=4,
    users_per_block=16,
)


@pytest.fixture
def main(catalog):
    catalog.create_namespace("log")
    storage.replace_table(catalog, "log.main", synthetic_schema(LOG), Layout.BY_REQUEST, synthesize(LOG), num_buckets=4)
    return catalog.load_table("log.main")


@pytest.fixture
def side(catalog, main):
    counts = storage.recent_event_counts(24 * 3600)
    storage.replace_feature_table(catalog, "log.side", main, [counts.column], counts)
    return catalog.load_table("log.side")


def open_store(tmp_path, schema, name="store"):
    return SqliteStore(tmp_path / f"{name}.sqlite", event_columns(schema))


def rows_of(*sources):
    """Rows as dicts, those of the second source joined by hand."""
    rows, *more = ([row for batch in source.to_arrow().to_batches() for row in batch.to_pylist()] for source in sources)
    for other in more:
        by_request = {(row["user_id"], row["request_id"]): row for row in other}
        rows = [{**row, **by_request[row["user_id"], row["request_id"]]} for row in rows]
    return rows


def histories(rows, schema):
    """user -> number -> event, from every request's history."""
    events = {}
    for row in rows:
        length = len(row["history_item_id"])
        for place in range(length):
            number = row["history_end"] - length + place
            event = tuple(row[column.name][place] for column in schema.sequences)
            assert events.setdefault(row["user_id"], {}).setdefault(number, event) == event
    return events


@pytest.mark.slow
def test_every_request_s_history_is_a_window_of_the_store(tmp_path, main):
    schema = synthetic_schema(LOG)
    store = open_store(tmp_path, schema)
    report = fill_store(store, main)
    rows = rows_of(TableSource(main))
    known = histories(rows, schema)
    assert report.num_new == report.num_users == len({row["user_id"] for row in rows})
    num_held = 0
    for row in rows:
        length, end = len(row["history_item_id"]), row["history_end"]
        held = sorted(known.get(row["user_id"], {}))
        if length and set(range(end - length, held[-1] + 1)) - set(held):
            continue  # cut apart from the newest request's history: the store holds no such old events
        num_held += 1
        window = store.window(row["user_id"], list(store.columns), at=end, start_of=lambda end, n=length: end - n)
        assert (window.start, window.end, window.version) == (end - length, end, row["timeline_version"])
        for column in schema.sequences:
            found = window.columns[column.name.removeprefix("history_")]
            assert found.dtype == column.dtype
            assert found.tolist() == row[column.name]
    assert num_held > len(rows) // 2
    assert any(row["history_end"] > len(row["history_item_id"]) for row in rows)  # some are cut


def test_features_are_the_newest_request_s_side_tables_included(tmp_path, main, side):
    store = open_store(tmp_path, synthetic_schema(LOG))
    fill_store(store, main, [side])
    newest = {}
    for row in rows_of(TableSource(main), storage.bucket_join(main, side)):
        key = row["request_ts"], row["request_id"]
        if row["user_id"] not in newest or newest[row["user_id"]][0] < key:
            newest[row["user_id"]] = key, row
    assert len({row["recent_event_count"] for _, row in newest.values()}) > 1
    for user, (_, row) in newest.items():
        found = store.request_features(user, ["recent_event_count", "device", "hour_of_day", "user_embedding"])
        assert found.pop("user_embedding").tolist() == row["user_embedding"]
        assert found == {name: row[name] for name in ("recent_event_count", "device", "hour_of_day")}
    assert store.request_features(user, ["history_end"]) == {}


@pytest.mark.slow
def test_a_second_fill_changes_nothing_and_a_newer_snapshot_only_what_changed(tmp_path, catalog, main, side):
    store = open_store(tmp_path, synthetic_schema(LOG))
    first = fill_store(store, main, [side])
    again = fill_store(store, main, [side])
    assert (again.num_same, again.num_changed, again.num_new) == (first.num_new, 0, 0)
    assert store.filled_from() == {
        "log.main": main.metadata.current_snapshot_id,
        "log.side": side.metadata.current_snapshot_id,
    }
    schema = synthetic_schema(LOG)
    everything = pa.Table.from_batches(TableSource(main).batches())
    user = everything.column("user_id")[0].as_py()
    newest = [row for row in rows_of(TableSource(main)) if row["user_id"] == user][-1]
    length = len(newest["history_item_id"])
    more = request_batch(schema, newest, request_id=2**40, history_end=newest["history_end"] + 1, add=1)
    gone = everything.column("user_id")[-1].as_py()
    assert gone != user
    kept = [batch.filter(pa.compute.not_equal(batch.column("user_id"), gone)) for batch in TableSource(main).batches()]
    storage.replace_table(catalog, "log.main", schema, Layout.BY_REQUEST, [*kept, more], num_buckets=4)
    main = catalog.load_table("log.main")
    with pytest.raises(ValueError, match=r"log.side is stale.*nothing was changed"):
        fill_store(store, main, [side])
    counts = storage.recent_event_counts(24 * 3600)
    storage.replace_feature_table(catalog, "log.side", main, [counts.column], counts)
    third = fill_store(store, main, [catalog.load_table("log.side")])
    assert (third.num_new, third.num_changed, third.num_deleted) == (0, 1, 1)
    assert third.num_same == first.num_new - 2
    assert store.end(user).end == newest["history_end"] + 1
    window = store.window(user, ["item_id"], start_of=lambda end: end - length - 1)
    assert window.columns["item_id"].tolist() == [*newest["history_item_id"], 77]
    assert store.end(gone) is None
    assert check_store(store, main, [catalog.load_table("log.side")]).ok


def request_batch(schema: EngagementSchema, row, *, request_id, history_end, add):
    """One row of a new request, whose history has `add` events more."""
    from reqdedup.dedup.encoding import deduplicated_schema

    arrays = []
    for field in deduplicated_schema(schema):
        column = schema[field.name]
        value = {"request_id": request_id, "history_end": history_end}.get(field.name, row[field.name])
        if column.is_blob:
            value = np.array([*value, *([77] * add if column in schema.sequences else [])], column.dtype).tobytes()
            arrays.append(pa.array([value], pa.binary()).dictionary_encode())
        else:
            arrays.append(pa.array([value], field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(schema))


def test_a_log_without_history_ends_gives_the_newest_request_s_history(tmp_path, catalog):
    catalog.create_namespace("log")
    requests = make_log(num_users=12)
    storage.replace_table(catalog, "log.small", log_schema(), Layout.BY_REQUEST, to_batches(requests), num_buckets=2)
    store = open_store(tmp_path, log_schema())
    fill_store(store, catalog.load_table("log.small"))
    newest = {r["user_id"]: r for r in sorted(requests, key=lambda r: (r["request_ts"], r["request_id"]))}
    for user, request in newest.items():
        window = store.window(user, ["ts", "item_id"], start_of=lambda end: 0)
        assert (window.start, window.end, window.version) == (0, len(request["events"]), 0)
        assert window.columns["item_id"].tolist() == request["events"][:, 0].tolist()
        assert window.columns["ts"].tolist() == request["events"][:, 2].tolist()
        found = store.request_features(user, ["user_key", "score", "device"])
        assert found == {name: request[name] for name in ("user_key", "score", "device")}
    assert check_store(store, catalog.load_table("log.small")).ok


@pytest.mark.slow
def test_users_whose_rows_lie_in_several_files_come_once(tmp_path, catalog):
    catalog.create_namespace("log")
    requests = make_log(num_users=12, max_requests=6)
    storage.create_table(catalog, "log.small", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    for part in (0, 1):
        storage.write(catalog.load_table("log.small"), to_batches(requests[part::2]), mode="append")
    store = open_store(tmp_path, log_schema())
    report = fill_store(store, catalog.load_table("log.small"))
    assert report.num_new == len({r["user_id"] for r in requests})
    assert check_store(store, catalog.load_table("log.small")).ok


@pytest.mark.slow
def test_a_history_of_16_384_events_goes_in_and_comes_out(tmp_path, catalog):
    catalog.create_namespace("log")
    config = SyntheticLogConfig(
        num_users=3,
        num_items=500,
        mean_requests_per_user=2,
        mean_fan_out=2,
        max_fan_out=4,
        median_history=20_000,
        p90_history=20_001,
    )
    storage.replace_table(
        catalog, "log.long", synthetic_schema(config), Layout.BY_REQUEST, synthesize(config), num_buckets=1
    )
    store = open_store(tmp_path, synthetic_schema(config))
    fill_store(store, catalog.load_table("log.long"))
    found = check_store(store, catalog.load_table("log.long"))
    assert found.ok, found.detail
    row = rows_of(TableSource(catalog.load_table("log.long"), columns=["history_item_id", "history_end"]))[-1]
    assert len(row["history_item_id"]) > 8192
    window = store.window(
        row["user_id"],
        ["item_id"],
        at=row["history_end"],
        start_of=lambda end: end - len(row["history_item_id"]),
    )
    assert window.columns["item_id"].tolist() == row["history_item_id"]


@pytest.mark.slow
def test_the_check_finds_a_wrong_event_a_wrong_feature_and_a_missing_user(tmp_path, main, side):
    schema = synthetic_schema(LOG)
    fill_store(open_store(tmp_path, schema, "right"), main, [side])
    right = open_store(tmp_path, schema, "right")
    assert check_store(right, main, [side]).ok
    user = rows_of(TableSource(main))[0]["user_id"]
    end = right.end(user)
    for number, harm in enumerate(
        [
            lambda store: store.delete_user(user),
            lambda store: store.correct(user, shifted(store, user), key="x"),
            lambda store: None,
        ]
    ):
        store = open_store(tmp_path, schema, f"wrong{number}")
        fill_store(store, main, [] if number == 2 else [side])  # forgetting the side table is wrong too
        assert store.end(user) == end
        harm(store)
        found = check_store(store, main, [side])
        assert (not found.ok) == (number != 1), found.detail  # a correction leaves the earlier version as it was


def shifted(store, user):
    window = store.window(user, list(store.columns), start_of=lambda end: max(0, end - 3))
    return {name: np.roll(array, 1) for name, array in window.columns.items()}


def test_a_store_of_other_events_is_refused(tmp_path, main):
    store = SqliteStore(tmp_path / "other.sqlite", {"item_id": "int64"})
    with pytest.raises(ValueError, match=r"the event columns of log.main, .* required, found \{'item_id': 'int64'\}"):
        fill_store(store, main)


def test_request_times_and_context_are_features_and_the_window_s_place_is_not():
    names = {column.name for column in feature_columns(synthetic_schema(LOG))}
    assert {"request_ts", "device", "user_embedding"} <= names
    assert not names & {"history_end", "timeline_version", "history_item_id", "item_category"}
    assert Column(name="x", dtype="int32", level=Level.REQUEST)  # a scalar
