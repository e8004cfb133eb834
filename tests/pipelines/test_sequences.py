"""Events of one's own through the graph: files, definitions, the timeline, its report; the sensor and the backfill."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from assets.own_tables import OwnLake
from assets.run_recipe import RunRecipe
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.sequences.timeline import open_timeline
from warehouse import embedded_catalog, load_table, open_catalog

DEFINITIONS = """
from reqdedup.sequences.definition import EventLog, EventType, SequenceDefinition

log = EventLog(types=["view", "click"], columns={"dwell_s": "float64"})
clicked = SequenceDefinition(name="clicked", owner="t", events=[EventType("click")], columns=["item_id"], last_n=9)
"""


class _Lake(OwnLake):
    folder: str

    def default_place(self):
        return embedded_catalog(self.folder)


def write_events(path: Path, first: int) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for event in range(first, first + 60):
            at = f"2026-01-{1 + event // 60:02d}T00:{event % 60:02d}:00Z"
            kind = ("view", "click", "gone")[event % 3]
            row = {"event_id": event, "user_id": event % 4, "item_id": event, "event_type": kind}
            file.write(json.dumps({**row, "event_ts": at, "arrival_ts": at}) + "\n")


@pytest.mark.slow
def test_new_files_reach_the_timeline_and_its_report(tmp_path: Path):
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
    own_lake = _Lake(folder=str(tmp_path / "data"))
    backfill = repository.get_job("backfill_sequences").graph.to_job(resource_defs={"own_lake": own_lake})
    config = {"ops": {"backfill_sequences": {"config": {"namespace": "own", "apply": True}}}}
    assert backfill.execute_in_process(config).success
    assert open_timeline(catalog, "own").state.version == 2


def test_events_without_definitions_are_refused():
    with pytest.raises(ValueError, match="events and sequences belong together"):
        RunRecipe(events="events").check_log()
