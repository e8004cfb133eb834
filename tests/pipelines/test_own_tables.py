"""Jobs on a table of one's own, as the launchpad starts them: dry by default, the report in the metadata."""

from __future__ import annotations

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import assets.own_tables
import reqdedup as rd
from assets.resources import PROCESS_TAG
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from warehouse import Process

COLUMNS = {"user": "user", "request": ["request"], "item": "item", "time": "ts", "time_unit": "ms", "labels": ["click"]}
TABLE = "lake.engagements"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of Parquet: 40 users, 2 requests each, 6 rows a request; and the lake beside it."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"user": user, "request": 2 * user + visit, "item": item, "ts": 1_767_000_000_000 + 3_600_000 * visit,
         "click": int(item == 3), "history": list(range(user, user + 20))}
        for user in range(40) for visit in range(2) for item in range(6)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder


@pytest.fixture(scope="module")
def run(place):
    repository = build_definitions(Environment(recipe="smoke"))
    own_lake = {"own_lake": _Lake(folder=str(place / "lake"))}

    def run(job: str, **config) -> dict:
        """The metadata of the job's step."""
        found = repository.resolve_job_def(job)
        done = found.graph.to_job(name=job, resource_defs=own_lake).execute_in_process(
            {"ops": {job: {"config": config}}}, instance=dg.DagsterInstance.ephemeral()
        )
        assert Process.from_json(done.dagster_run.tags[PROCESS_TAG]).is_alive()  # else it is failed as dead
        (event,) = [event for event in done.all_events if event.event_type_value == "STEP_OUTPUT"]
        return {name: value.value for name, value in event.step_output_data.metadata.items()}

    return run


class _Lake(assets.own_tables.OwnLake):
    folder: str

    def default_place(self):
        return rd.open(self.folder).place


def cells(metadata: dict) -> dict[str, str]:
    return {name: str(text).replace("\xa0", " ") for name, text in metadata["at a glance"].records[0].data.items()}


@pytest.mark.slow
def test_a_table_is_audited_converted_looked_at_kept_in_shape_and_rid_of_a_user(run, place):
    source, lake = str(place / "rows.parquet"), rd.open(place / "lake")
    audit = run("audit_table", source=source, request_key=["request"], user_key=["user"])
    assert "history" in audit["report"]
    conversion = {"source": source, "table": TABLE, "num_buckets": 2, **COLUMNS}
    assert cells(run("convert_table", **conversion))["table"] == "not made: apply"
    assert not lake.make().table_exists(TABLE)
    made = run("convert_table", **conversion, apply=True)
    assert cells(made)["rows"] == "480"
    assert "row for row the same as the source" in made["report"]
    run("convert_table", **conversion, append=True, apply=True)
    table = lake.table(TABLE)
    assert table.iceberg.scan().count() == 960
    health = run("health", table=TABLE)
    assert health["files"] == 4
    assert TABLE in health["report"]

    def now() -> tuple[int, int]:
        return table.iceberg.current_snapshot().snapshot_id, len(table.iceberg.metadata.snapshots)

    before = now()
    assert cells(run("compact", table=TABLE))["would be rewritten"] == "2 of 2"
    assert cells(run("expire", table=TABLE, older_than_days=0))["snapshots"] == "1 would go"
    (row,) = [
        row
        for row in run("delete_user", user_ids=[7], tables=[TABLE])["at a glance"].records
        if row.data["table"] == TABLE
    ]
    assert row.data["rows"].replace("\xa0", " ") == "24 would go"
    assert now() == before

    assert cells(run("compact", table=TABLE, apply=True))["files"] == "4 -> 2"
    run("delete_user", user_ids=[7], tables=[TABLE], apply=True)
    assert cells(run("expire", table=TABLE, older_than_days=0, apply=True))["kept"] == "1"
    assert table.iceberg.scan().count() == 960 - 24
    assert len(table.iceberg.metadata.snapshots) == 1


@pytest.mark.parametrize(
    ("job", "config"),
    [
        ("convert_table", {"source": "x", "table": TABLE, **COLUMNS, "time_unit": "minutes"}),
        ("convert_table", {"source": "x", "table": TABLE, **COLUMNS, "layout": "by_reqest"}),
        ("expire", {"table": TABLE, "older_than_days": "5d"}),
        ("compact", {}),
    ],
)
def test_what_is_misspelled_is_an_error_before_the_run(job, config):
    found = build_definitions(Environment(recipe="smoke")).resolve_job_def(job)
    with pytest.raises(dg.DagsterInvalidConfigError):
        dg.validate_run_config(found, {"ops": {job: {"config": config}}})


def test_nothing_that_changes_a_table_does_so_by_default():
    definitions = build_definitions(Environment(recipe="smoke"))
    for job in ("convert_table", "compact", "expire", "delete_user"):
        fields = definitions.resolve_job_def(job).graph.node_named(job).definition.config_schema.config_type.fields
        assert fields["apply"].default_value is False
