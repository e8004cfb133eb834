"""A log by days: appended once whatever is made again, started by new files, kept in shape; all of it off at first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets.daily import NAME
from pipelines import daily
from pipelines.environment import Environment
from reqdedup.storage import TableSource
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.measure.checks import requests_whole
from warehouse import GraphRun, claim, embedded_catalog, load_table, open_catalog, release

TABLE = f"logs.{NAME}"
MAPPING = """
columns = ["user", "item", "rating", "time"]
separator = "\\t"
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
labels = { like = { column = "rating", at_least = 4, range = [1, 5] } }
"""


def ratings(day: int, users: range, *, bad: int = 0) -> str:
    start = int(datetime(2026, 11, day, tzinfo=UTC).timestamp())
    lines = [f"{user}\t{item}\t{1 + item % 5}\t{start + 60 * item}\n" for user in users for item in range(1, 6)]
    return "".join(lines) + "x\ty\tz\n" * bad


@pytest.fixture
def logs(tmp_path) -> Path:
    """Two days, a file each."""
    for day in (3, 4):
        folder = tmp_path / "logs" / f"2026-11-0{day}"
        folder.mkdir(parents=True)
        (folder / "a.data").write_text(ratings(day, range(1, 4), bad=day - 3))
    return tmp_path / "logs"


@pytest.fixture
def environment(tmp_path, logs, monkeypatch):
    for name in ("REQDEDUP_CATALOG__TYPE", "REQDEDUP_CATALOG__URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "columns.toml").write_text(MAPPING)
    return Environment(
        recipe="smoke",
        logs=str(logs),
        mapping=str(tmp_path / "columns.toml"),
        data_dir=tmp_path / "data",
        first_day=date(2026, 11, 1),
    )


@pytest.fixture
def make(environment):
    job = daily.build_definitions(environment).resolve_job_def("ingest_day")

    def make(day: str, **resources) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(
            {"resources": {name: {"config": config} for name, config in resources.items()}},
            partition_key=day,
            raise_on_error=False,
            instance=dg.DagsterInstance.ephemeral(),
        )

    return make


def said(result: dg.ExecuteInProcessResult) -> dict:
    (event,) = result.get_asset_materialization_events()
    return {name.rpartition("/")[2]: value.value for name, value in event.materialization.metadata.items()}


@pytest.mark.slow
def test_days_are_appended_once_in_any_order_however_often_they_are_made(make, environment, logs):
    catalog = open_catalog(embedded_catalog(environment.data_dir))
    assert said(make("2026-11-04"))["new_rows"] == 15
    assert said(make("2026-11-03"))["new_rows"] == 15
    again = said(make("2026-11-03"))
    assert (again["new_files"], again["new_rows"]) == (0, 0)
    (logs / "2026-11-03" / "b.data").write_text(ratings(3, range(8, 10)))
    assert said(make("2026-11-03"))["new_rows"] == 10
    table = catalog.load_table(TABLE)
    rows = TableSource(table).to_arrow(["user_id", "request_ts"])
    assert rows.num_rows == 40
    assert {moment.day for moment in rows["request_ts"].to_pylist()} == {3, 4}
    assert requests_whole(table).ok
    rejected = catalog.load_table("logs.rejected_engagements").scan().to_arrow()
    assert rejected["file"].to_pylist() == ["2026-11-04/a.data"]  # kept when another day came after it


@pytest.mark.slow
def test_what_cannot_be_appended_leaves_the_table_as_it_was(make, environment, logs):
    catalog = open_catalog(embedded_catalog(environment.data_dir))
    assert make("2026-11-03").success
    before = catalog.load_table(TABLE).current_snapshot()
    (logs / "2026-11-03" / "a.data").write_text(ratings(3, range(1, 9)))
    claim(catalog, "logs", GraphRun.begin("the-other", str(logs)))
    assert not make("2026-11-04").success  # while another run has the namespace
    release(catalog, "logs", "the-other")
    for day, reason in (("2026-11-03", "a.data changed"), ("2026-11-02", "with the day's files required, found none")):
        (failure,) = make(day).filter_events(lambda event: event.is_step_failure)
        assert reason in str(failure.step_failure_data.error)
    assert catalog.load_table(TABLE).current_snapshot() == before


@pytest.mark.slow
def test_a_killed_append_leaves_no_row_and_is_made_again_whole(make, environment, monkeypatch):
    """Ended between the writing of files and the commit, as a terminated run is."""
    catalog = open_catalog(embedded_catalog(environment.data_dir))
    assert make("2026-11-03").success
    before = catalog.load_table(TABLE)

    def interrupted(self, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StagedFiles, "commit", interrupted)
        with pytest.raises(BaseException):  # noqa: B017, PT011  # Dagster's own kinds of interrupt among them
            assert make("2026-11-04").success
    files = set(Path(before.location().removeprefix("file://")).rglob("*.parquet"))
    assert len(files) == len(list(before.scan().plan_files()))
    assert catalog.load_table(TABLE).current_snapshot() == before.current_snapshot()
    assert said(make("2026-11-04"))["new_rows"] == 15


@pytest.mark.slow
def test_without_a_log_each_day_has_a_synthetic_one(make, environment):
    job = daily.build_definitions(replace(environment, logs="", mapping="")).resolve_job_def("ingest_day")
    for day in ("2026-11-03", "2026-11-04", "2026-11-03"):
        assert job.execute_in_process(partition_key=day, instance=dg.DagsterInstance.ephemeral()).success
    table = load_table(open_catalog(embedded_catalog(environment.data_dir)), "smoke", NAME)
    assert requests_whole(table).ok
    assert {str(moment.date()) for moment in TableSource(table).to_arrow(["request_ts"])["request_ts"].to_pylist()} == {
        "2026-11-03",
        "2026-11-04",
    }


def test_new_files_start_a_run_of_their_day_and_nothing_else_does(environment, logs):
    definitions = daily.build_definitions(environment)
    sensor = definitions.resolve_sensor_def("new_log_files")

    def look(cursor: str | None) -> tuple[list[str], str]:
        context = dg.build_sensor_context(
            cursor=cursor, repository_def=definitions.get_repository_def(), instance=dg.DagsterInstance.ephemeral()
        )
        found = sensor.evaluate_tick(context)
        return sorted(request.partition_key for request in found.run_requests), found.cursor

    (logs / "2026-10-01").mkdir()  # before the first day
    (logs / "2026-10-01" / "a.data").write_text("1\t1\t5\t1\n")
    days, cursor = look(None)
    assert days == ["2026-11-03", "2026-11-04"]
    assert look(cursor)[0] == []
    (logs / "2026-11-04" / ".part").write_text("half")
    (logs / "2026-11-05").mkdir()
    assert look(cursor)[0] == []
    (logs / "2026-11-04" / "b.data").write_text(ratings(4, range(9, 12)))
    assert look(cursor)[0] == ["2026-11-04"]


def test_schedules_launch_what_their_jobs_accept_and_everything_is_off(environment):
    repository = daily.build_definitions(environment).get_repository_def()
    assert {schedule.name for schedule in repository.schedule_defs} == {
        "every_day",
        "compact_nightly",
        "expire_nightly",
        "sweep_nightly",
    }
    for schedule in repository.schedule_defs:
        assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
        context = dg.build_schedule_context(
            scheduled_execution_time=datetime(2026, 11, 5, 4, tzinfo=UTC), repository_def=repository
        )
        (request,) = schedule.evaluate_tick(context).run_requests
        if schedule.name == "every_day":
            assert request.partition_key == "2026-11-04"
        else:
            job = repository.get_job(schedule.job_name)
            (config,) = dg.validate_run_config(job, request.run_config)["ops"].values()
            assert config["config"]["table"] == TABLE
            assert config["config"]["apply"] is True
    assert {sensor.name for sensor in repository.sensor_defs} == {"new_log_files"}
    assert all(sensor.default_status is dg.DefaultSensorStatus.STOPPED for sensor in repository.sensor_defs)


def test_the_table_is_overdue_without_the_day_before(environment):
    """Days end at midnight UTC; a morning later the last one has to be there."""
    graph = daily.build_definitions(environment).get_repository_def().asset_graph
    policy = graph.get(dg.AssetKey(NAME)).freshness_policy
    assert policy.deadline_cron == "0 9 * * *"
    assert policy.lower_bound_delta == timedelta(hours=9)
