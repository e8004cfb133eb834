"""A run works in the namespace of its own log, has it to itself, and is failed if it was killed."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import dagster as dg
import pytest

from assets.resources import PROCESS_TAG
from assets.training import check_one_sample
from pipelines.dead_runs import START_S, fail_dead_runs
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.storage.iceberg.commit import StagedFiles
from warehouse import GraphRun, Process, claim, embedded_catalog, load_table, open_catalog

RATINGS = "".join(f"{user}\t{item}\t5\t{881_250_000 + 60 * item}\n" for user in range(1, 4) for item in range(1, 6))


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def catalog(tmp_path):
    return open_catalog(embedded_catalog(tmp_path))


@pytest.fixture
def run(tmp_path, instance, monkeypatch):
    """A function that makes assets as the UI launches them: the graph as loaded, a configuration for the run."""
    for name in ("REQDEDUP_CATALOG__TYPE", "REQDEDUP_CATALOG__URI"):
        monkeypatch.delenv(name, raising=False)

    def run(loaded: dict[str, str], assets: tuple[str, ...] = ("raw_engagements",), **config):
        environment = replace(Environment(recipe="smoke", data_dir=tmp_path), **loaded)
        job = build_definitions(environment).resolve_job_def("everything")
        resources = {name: {"config": values} for name, values in config.items()}
        return job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(name) for name in assets],
            run_config={"resources": resources},
            raise_on_error=False,
        )

    return run


@pytest.fixture
def logs(tmp_path):
    for name, user in (("one", 7), ("two", 8)):
        (tmp_path / f"{name}.data").write_text(RATINGS + f"{user}\t9\t5\t881250949\n")
    return {name: {"logs": str(tmp_path / f"{name}.data"), "preset": "movielens"} for name in ("one", "two")}


def refusal(result) -> str:
    events = result.filter_events(lambda event: event.event_type is dg.DagsterEventType.RESOURCE_INIT_FAILURE)
    return " ".join(str(event.engine_event_data.error) for event in events)


def snapshot(catalog, namespace: str) -> int:
    return load_table(catalog, namespace, "raw_engagements").current_snapshot().snapshot_id


@pytest.mark.slow
def test_the_namespace_follows_the_log_that_the_run_is_configured_with(run, catalog, logs):
    assert run(logs["one"]).success
    before = snapshot(catalog, "movielens_one")
    assert run(logs["one"], run_recipe=logs["two"]).success
    assert snapshot(catalog, "movielens_one") == before
    assert snapshot(catalog, "movielens_two")


@pytest.mark.slow
def test_a_namespace_chosen_for_one_log_is_not_taken_by_another(run, catalog, logs):
    chosen = logs["one"] | {"namespace": "mine"}
    assert run(chosen).success
    before = snapshot(catalog, "mine")
    refused = run(chosen, run_recipe=logs["two"])
    assert not refused.success
    assert f"tables of another log, {logs['one']['logs']}" in refusal(refused)
    assert snapshot(catalog, "mine") == before
    assert run(chosen, run_recipe=logs["two"], store={"namespace": "mine"}).success  # chosen again, for this log
    assert snapshot(catalog, "mine") != before


@pytest.mark.slow
def test_a_run_is_refused_while_another_has_the_namespace(run, catalog):
    claim(catalog, "smoke", GraphRun.begin("the-other", "/logs/other.csv"))
    refused = run({})
    assert not refused.success
    assert "found run the-other of /logs/other.csv" in refusal(refused)
    assert not catalog.table_exists("smoke.raw_engagements")


@pytest.mark.slow
def test_of_two_runs_at_once_on_one_namespace_the_second_is_refused_and_the_first_is_whole(
    run, catalog, logs, monkeypatch
):
    """The first is held before its commit, all its files written, for as long as the second takes."""
    is_written, go_on, commit = threading.Event(), threading.Event(), StagedFiles.commit

    def held(*arguments, **options):
        is_written.set()
        assert go_on.wait(60)
        return commit(*arguments, **options)

    monkeypatch.setattr(StagedFiles, "commit", held)
    mine = {"namespace": "mine"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(run, logs["one"] | mine)
        assert is_written.wait(60)
        second = run(logs["two"] | mine)
        go_on.set()
        assert first.result().success
    assert not second.success
    assert f"of {logs['one']['logs']}" in refusal(second)
    table = load_table(catalog, "mine", "raw_engagements")
    assert len(table.snapshots()) == 1
    assert set(table.scan().to_arrow()["user_id"].to_pylist()) == {1, 2, 3, 7}
    assert run(logs["one"] | mine).success


@pytest.mark.slow
def test_a_run_that_ends_leaves_the_namespace_to_the_next(run, catalog, logs, tmp_path):
    (tmp_path / "one.data").write_text("no\tlog\n")
    assert not run(logs["one"]).success
    (tmp_path / "one.data").write_text(RATINGS)
    assert run(logs["one"]).success
    with contextlib.closing(open_catalog(embedded_catalog(tmp_path))) as catalog:
        (row,) = catalog.load_table("movielens_one.graph_run").scan().to_arrow().to_pylist()
    assert row["ended"] > row["started"]


@pytest.mark.slow
def test_started_runs_without_a_process_are_failed_and_others_are_not(instance, monkeypatch):
    own = Process.own()
    processes = {
        "alive": own,
        "killed": replace(own, process_started=own.process_started - 3600),
        "elsewhere": replace(own, host="elsewhere"),
    }
    job = build_definitions(Environment()).resolve_job_def("storage_only")
    tags = {name: {PROCESS_TAG: process.to_json()} for name, process in processes.items()} | {"silent": {}}
    runs = {
        name: instance.create_run_for_job(job, tags=tag, status=dg.DagsterRunStatus.STARTING)
        for name, tag in tags.items()
    }
    for one in runs.values():
        instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", one.job_name), one.run_id)

    def statuses() -> dict[str, str]:
        return {name: instance.get_run_by_id(one.run_id).status.value for name, one in runs.items()}

    (said,) = fail_dead_runs(instance)
    assert f"process {own.pid} on {own.host} is gone" in said
    assert statuses() == {"alive": "STARTED", "killed": "FAILURE", "elsewhere": "STARTED", "silent": "STARTED"}
    monkeypatch.setattr("pipelines.dead_runs.START_S", -1.0)
    assert START_S > 0
    assert len(fail_dead_runs(instance)) == 1
    assert statuses()["silent"] == "FAILURE"


@pytest.mark.slow
def test_features_of_an_earlier_log_leave_the_training_sample_as_it_is(run, catalog, logs):
    def of(log: str, *assets: str):
        return run({**logs[log], "namespace": "both"}, assets)

    assert of("one", "raw_engagements", "engagements_by_request", "request_features", "training_sample").success
    before = load_table(catalog, "both", "training_sample").current_snapshot().snapshot_id
    assert of("two", "raw_engagements", "engagements_by_request").success
    failed = of("two", "training_sample")
    (failure,) = failed.filter_events(lambda event: event.is_step_failure)
    assert "both.request_features is stale" in str(failure.step_failure_data.error)
    assert load_table(catalog, "both", "training_sample").current_snapshot().snapshot_id == before


def test_a_report_over_models_of_two_samples_is_refused(tmp_path):
    sample = SimpleNamespace(current_snapshot=lambda: SimpleNamespace(snapshot_id=2))
    models = {name: tmp_path / name for name in ("retrieval_model", "ranking_model")}

    def trained_on(**snapshots: int | None) -> None:
        for name, snapshot_id in snapshots.items():
            models[name].mkdir(exist_ok=True)
            (models[name] / "result.json").write_text(json.dumps({"snapshot_id": snapshot_id}))

    for folder in models.values():  # of a training that failed later: not of the model that is there
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"snapshot_id": 2}))
    trained_on(retrieval_model=2, ranking_model=2)
    check_one_sample(models, sample)
    trained_on(ranking_model=1)
    with pytest.raises(ValueError, match="materialize ranking_model first"):
        check_one_sample(models, sample)
    trained_on(retrieval_model=None, ranking_model=None)
    with pytest.raises(ValueError, match="none recorded for retrieval_model and ranking_model; materialize"):
        check_one_sample(models, sample)
    trained_on(retrieval_model=1, ranking_model=1)
    check_one_sample(models, sample)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", ["../x", "a.b", " ", "my/ns"])
def test_a_name_of_several_parts_is_refused(run, catalog, namespace):
    assert "letters, digits, _ and - required" in refusal(run({"namespace": namespace}))
    assert not catalog.list_namespaces()
