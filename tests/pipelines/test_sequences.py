"""Events of one's own through the graph: files, definitions, the timeline, its report; the sensor and the backfill."""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from assets import recipes
from assets.run_recipe import RunRecipe
from assets.sequences import ITEMS, synthetic_definitions
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.logs.synthetic_events import synthetic_events, synthetic_items
from reqdedup.sequences import naive
from reqdedup.sequences.batch import check_timeline
from reqdedup.sequences.timeline import open_timeline
from reqdedup.storage import TableSource
from warehouse import embedded_catalog, load_table, open_catalog

DEFINITIONS = """
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition

log = EventLog(types=["view", "click"], columns={"dwell_s": "float64"})
clicked = SequenceDefinition(name="clicked", owner="t", events=[EventType("click")], columns=["item_id"], last_n=9)
"""


def write_events(path: Path, first: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for event in range(first, first + 60):
            at = f"2026-01-{1 + event // 60:02d}T00:{event % 60:02d}:00Z"
            kind = ("view", "click", "gone")[event % 3]
            row = {"event_id": event, "user_id": event % 4, "item_id": event, "event_type": kind}
            file.write(json.dumps({**row, "event_ts": at, "arrival_ts": at}) + "\n")


@pytest.mark.slow
def test_new_files_reach_the_timeline_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events, sequences = tmp_path / "events", tmp_path / "sequences.py"
    sequences.write_text(DEFINITIONS)
    environment = Environment(
        recipe="smoke", namespace="own", data_dir=tmp_path / "data", events=str(events), sequences=str(sequences),
        lake=embedded_catalog(tmp_path / "data"),
    )  # fmt: skip
    repository = build_definitions(environment).get_repository_def()
    sensor, job = repository.get_sensor_def("new_event_files"), repository.get_job("sequences")
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    catalog = open_catalog(embedded_catalog(tmp_path / "data"))
    with dg.DagsterInstance.ephemeral() as instance:
        with dg.build_sensor_context(instance) as context:
            assert "event files" in sensor.evaluate_tick(context).skip_message
        cursor = None
        for day, kept in ((0, 20), (1, 40)):
            write_events(events / f"{day}.jsonl", 60 * day)
            with dg.build_sensor_context(instance, cursor=cursor) as context:
                found = sensor.evaluate_tick(context)
            assert len(found.run_requests) == 1
            cursor = found.cursor
            config = {"resources": {"store": {"config": {"data_dir": str(tmp_path / "data"), "namespace": "own"}}}}
            assert job.execute_in_process(instance=instance, run_config=config).success
            assert sum(file.record_count for file in open_timeline(catalog, "own").files) == kept
        with dg.build_sensor_context(instance, cursor=cursor) as context:
            assert sensor.evaluate_tick(context).skip_message == "2 files as before"
    rows = load_table(catalog, "own", "sequence_quality").scan().to_arrow().to_pylist()
    assert sum(row["value"] for row in rows if row["figure"] == "rejected") == 40
    log, mapping = tmp_path / "requests.csv", tmp_path / "requests.toml"
    log.write_text("user,item,at,liked\n" + "".join(f"{user},5,1767229200,1\n" for user in range(4)))
    mapping.write_text(
        'user_id = "user"\nitem_id = "item"\n[time]\ncolumn = "at"\nunit = "s"\n[labels]\nliked = "liked"\n'
    )
    chosen = {"logs": str(log), "mapping": str(mapping), "histories": "clicked", "recipe": "smoke"}
    chosen |= {"events": str(events), "sequences": str(sequences)}
    config["resources"]["run_recipe"] = {"config": chosen}
    everything, raw = repository.get_job("everything"), [dg.AssetKey("raw_engagements")]
    assert everything.execute_in_process(run_config=config, asset_selection=raw).success
    for batch in TableSource(load_table(catalog, "own", "raw_engagements")).batches():
        for row in batch.to_pylist():
            assert np.frombuffer(row["history_item_id"], "<i8").tolist() == [
                event for event in range(60) if event % 3 == 1 and event % 4 == row["user_id"]
            ]
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path / "data"))
    backfill = repository.get_job("backfill_sequences")
    for version, chosen in (
        (1, {}),
        (2, {"apply": True}),
        (3, {"apply": True, "since": "2026-01-01", "until": "2026-01-02"}),
    ):
        config = {"ops": {"backfill_sequences": {"config": {"namespace": "own", **chosen}}}}
        done = backfill.execute_in_process(config, instance=dg.DagsterInstance.ephemeral())
        (event,) = [event for event in done.all_events if event.event_type_value == "STEP_OUTPUT"]
        (said,) = event.step_output_data.metadata["at a glance"].value.records
        assert said.data["version"].replace("\xa0", " ") == f"{max(2, version)} {'published' if chosen else 'staged'}"
        assert open_timeline(catalog, "own").state.version == version
    assert check_timeline(open_timeline(catalog, "own")) == 40


@pytest.mark.slow
def test_the_histories_of_requests_follow_from_the_stream(tmp_path: Path):
    environment = Environment(recipe="events", data_dir=tmp_path / "data", lake=embedded_catalog(tmp_path / "data"))
    job = build_definitions(environment).get_repository_def().get_job("everything")
    chosen = [dg.AssetKey(name) for name in ("raw_events", "user_events", "raw_engagements")]
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(instance=instance, asset_selection=chosen).success
    catalog, recipe = open_catalog(embedded_catalog(tmp_path / "data")), recipes.events()
    found = synthetic_definitions("events")
    some = pa.array(range(0, recipe.events.num_users, 40))
    delivered = [
        event | {name: round(event[name].timestamp() * 1e6) for name in ("event_ts", "arrival_ts")}
        for day in islice(synthetic_events(recipe.events), recipe.events.num_days)
        for event in day.filter(pc.is_in(day.column("user_id"), value_set=some)).to_pylist()
    ]
    accepted = naive.accept(found.log, delivered, time.time_ns() // 1000)
    items = {f"events.{ITEMS}": synthetic_items(recipe.events, width=4).to_pylist()}
    required, num = naive.timelines(found.log, found.definitions, accepted.events, items), 0
    (engaged,) = [one for one in found.definitions if one.name == "engaged"]
    names = ["user_id", "request_ts", "item_id", "history_item_id", "history_ts", "history_end"]
    for batch in TableSource(load_table(catalog, "events", "raw_engagements")).batches(names):
        for row in batch.filter(pc.is_in(batch.column("user_id"), value_set=some)).to_pylist():
            at_us = round(row["request_ts"].timestamp() * 1e6)
            timeline = required.of_user[row["user_id"]]
            sequence = naive.sequence_at(engaged, timeline, naive.history_end(timeline, at_us), at_us)
            assert np.frombuffer(row["history_item_id"], "<i8").tolist() == [one["item_id"] for one in sequence]
            happened = [one["event_ts"] // 1000 for one in sequence]
            assert np.frombuffer(row["history_ts"], "<i8").tolist() == happened
            num += 1
    assert num > 500


def test_events_without_definitions_are_refused():
    with pytest.raises(ValueError, match="events and sequences belong together"):
        RunRecipe(events="events").check_log()
    with pytest.raises(ValueError, match="histories: logs and events required"):
        RunRecipe(histories="clicked").check_log()
