"""The asset graph is the one that is documented, and it runs: as a whole, in part, twice, and on a user's own log."""

import dagster as dg
import pytest

from assets.metadata import GLANCE
from assets.recipes import smoke
from assets.training import MODELS
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from pipelines.summary import asset_metadata
from reqdedup.models.checkpoint import load_checkpoint
from tests.pipelines.running import GRAPH, command, content, run_graph, run_here
from warehouse import embedded_catalog, load_table, open_catalog

CHECKS = {
    "raw_engagements": {"no_future_events"},
    "url_rules": {"urls_are_items"},
    "engagements_shuffled": {"rows_equal_raw"},
    "engagements_sorted": {"rows_equal_raw", "requests_whole", "sort_order_true", "buckets_right"},
    "engagements_by_request": {
        "rows_equal_raw",
        "requests_whole",
        "sort_order_true",
        "buckets_right",
        "no_future_events",
    },
    "training_sample": {"requests_whole", "sort_order_true", "buckets_right", "of_one_moment"},
    "foundation_model": {"loss_finite_and_falling"},
    "retrieval_model": {"loss_finite_and_falling"},
    "ranking_model": {"loss_finite_and_falling"},
    "serving_bundle": {"parity_with_training", "latency_within_budget"},
    "training_report": {"better_than_simple_rules"},
    "rerank_report": {"variety_rises"},
    "user_states": {"states_of_this_model"},
    "serving_store": {"store_equals_tables"},
    "user_events": {"numbered_by_arrival", "fresh"},
    "sequence_report": {"lag", "coverage", "null_drift"},
}


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory):
    """The whole graph, once, from a synthetic log."""
    folder = tmp_path_factory.mktemp("smoke")
    done = run_graph("--recipe", "smoke", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_graph_is_the_documented_one():
    repository = build_definitions(Environment()).get_repository_def()
    graph = repository.asset_graph
    found = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert found == GRAPH
    found_checks: dict[str, set[str]] = {}
    for key in graph.asset_check_keys:
        found_checks.setdefault(key.asset_key.to_user_string(), set()).add(key.name)
    assert found_checks == CHECKS
    assert not any(graph.get(key).is_partitioned for key in graph.get_all_asset_keys())


@pytest.mark.slow
def test_whole_graph_runs_shows_progress_and_sums_up(smoke_run):
    _, done = smoke_run
    for asset in GRAPH:
        assert f"{asset} " in done.stderr
    for check in {f"{asset}_{name}" for asset, names in CHECKS.items() for name in names}:
        said = [line.split()[3] for line in done.stderr.splitlines() if line.split()[2:3] == [check]]
        assert "passed" in said or (check == "training_report_better_than_simple_rules" and "WARNS:" in said), check
    for word in (
        "rows",
        "requests",
        "fan-out",
        "store-once limit",
        "join",
        "sample",
        "foundation",
        "retrieval",
        "ranking",
        "begins with foundation_model",
        "make serve NAMESPACE=",
        "make ui",
    ):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_is_one_of_the_code_location_of_the_ui(smoke_run):
    """Else its first page leaves it out."""
    folder, _ = smoke_run
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        (run,) = instance.get_runs(dg.RunsFilter(job_name="everything"))
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.remote_job_origin.repository_origin.get_label() == "__repository__@reqdedup"


@pytest.mark.slow
def test_every_stage_says_at_a_glance_what_it_made(smoke_run):
    """In words and units, before its numbers."""
    folder, _ = smoke_run
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        made = {asset: asset_metadata(instance, asset, "smoke") for asset in GRAPH}
    assert [asset for asset, metadata in made.items() if GLANCE not in list(metadata)[:3]] == []


@pytest.mark.slow
def test_models_learn(smoke_run):
    """Falling loss, and held-out users ranked better than by chance."""
    folder, _ = smoke_run
    catalog = open_catalog(embedded_catalog(folder / "data"))
    report = load_table(catalog, "smoke", "training_report").scan().to_arrow().to_pylist()
    figures = {(row["model"], row["metric"]): row for row in report}
    for model in ("retrieval_model", "ranking_model"):
        assert figures[model, "last_loss"]["value"] < figures[model, "first_loss"]["value"]
    assert figures["ranking_model", "auc_click"]["value"] > 0.5
    rank = figures["retrieval_model", "mean_log_rank"]
    assert rank["value"] < rank["chance"]


@pytest.mark.slow
def test_both_models_begin_with_the_foundation_model_and_with_no_other(smoke_run, capfd):
    folder, _ = smoke_run
    models = folder / "data" / "models" / "smoke"
    before = load_checkpoint(models / "foundation_model" / "checkpoint.pt")
    with dg.DagsterInstance.from_config(str(folder / "dagster")) as instance:
        made = {name: asset_metadata(instance, name, "smoke") for name in ("foundation_model", *MODELS)}
    for name in MODELS:
        assert made[name]["begins_with"] == f"foundation_model {made['foundation_model']['fingerprint']}"
        assert load_checkpoint(models / name / "checkpoint.pt")["snapshot_id"] == before["snapshot_id"]
    (models / "foundation_model").rename(models / "away")
    try:
        done = run_here("--recipe", "smoke", "--select", "ranking_model", folder=folder, capfd=capfd)
        (models / "foundation_model").rmdir()
    finally:
        (models / "away").rename(models / "foundation_model")
    assert done.returncode == 1
    said = "a finished pre-training required, found none; materialize foundation_model first"
    assert said in done.stderr.partition("run failed: ranking_model: ValueError: ")[2]


@pytest.mark.slow
def test_a_recipe_without_a_foundation_model_leaves_a_note(smoke_run):
    folder, _ = smoke_run
    job = build_definitions(Environment(recipe="smoke", data_dir=folder / "data")).resolve_job_def("everything")
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(
            {"resources": {"run_recipe": {"config": {"foundation": False}}}},
            instance=instance,
            asset_selection=[dg.AssetKey("foundation_model")],
        )
        assert (
            "both models of this recipe begin without" in asset_metadata(instance, "foundation_model", "smoke")["note"]
        )
    assert [check.passed for check in done.get_asset_check_evaluations()] == [True]


@pytest.mark.slow
def test_second_run_changes_nothing(smoke_run, capfd):
    folder, _ = smoke_run
    tables = ("raw_engagements", "engagements_by_request", "training_sample")
    before = [content(folder, "smoke", table) for table in tables]
    layouts = "engagements_shuffled,engagements_sorted,engagements_by_request"
    chosen = f"raw_engagements,{layouts},request_features,training_sample"
    done = run_here("--recipe", "smoke", "--select", chosen, folder=folder, capfd=capfd)
    assert done.returncode == 0, done.stderr
    assert [content(folder, "smoke", table) for table in tables] == before


@pytest.mark.slow
def test_dagster_command_line_runs_a_selection(smoke_run):
    folder, _ = smoke_run
    done = command("dg", "launch", "--assets", "compression_report", folder=folder, REQDEDUP_RECIPE="smoke")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_own_log_goes_to_a_namespace_of_its_own(smoke_run, tmp_path, capfd):
    folder, _ = smoke_run
    synthetic = content(folder, "smoke", "raw_engagements")
    ratings = "".join(
        f"{user}\t{item}\t{1 + (user * item) % 5}\t{881_250_000 + 40_000 * visit + 60 * item}\n"
        for user in range(1, 21)
        for visit in range(3)
        for item in range(visit * 5 + 1, visit * 5 + 6)
    )
    log = tmp_path / "u.data"
    log.write_text(ratings + "7\tnot-an-item\t4\tyesterday\n")
    chosen = "raw_engagements,engagements_by_request,request_features,training_sample"
    done = run_here(
        "--recipe", "smoke", "--logs", str(log), "--preset", "movielens", "--select", chosen, folder=folder, capfd=capfd
    )
    assert done.returncode == 0, done.stderr
    assert "300 rows" in done.stdout
    assert "1 rows rejected" in done.stdout
    catalog = open_catalog(embedded_catalog(folder / "data"))
    rejected = load_table(catalog, "movielens_u", "rejected_engagements").scan().to_arrow().to_pylist()
    assert [(row["file"], row["line"]) for row in rejected] == [("u.data", 301)]
    assert content(folder, "smoke", "raw_engagements") == synthetic


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--logs", "no-such-file.csv", "--preset", "movielens"], "no-such-file.csv"),
        (["--logs", "pyproject.toml"], "LOGS needs PRESET"),
        (["--select", "raw_engagement"], "found raw_engagement"),
    ],
)
def test_wrong_input_is_a_clear_error(tmp_path, arguments, said, capfd):
    done = run_here("--recipe", "smoke", *arguments, folder=tmp_path, capfd=capfd)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_wrong_engine_is_refused_before_the_first_asset(tmp_path, capfd):
    done = run_here("--recipe", "smoke", folder=tmp_path, capfd=capfd, REQDEDUP_ENGINE="spark")
    assert done.returncode == 2
    assert done.stderr.startswith("error: engine: inline, processes, processes:N, ray or ray:HOST:PORT required, found")


@pytest.mark.slow
def test_strict_run_fails_and_keeps_the_old_table(smoke_run, tmp_path, capfd):
    folder, _ = smoke_run
    log = tmp_path / "u.data"
    log.write_text("1\t1\t5\t881250949\n1\t2\t9\t881250950\n2\tx\t5\tnever\n")
    arguments = ["--recipe", "smoke", "--logs", str(log), "--preset", "movielens", "--namespace", "strictly"]
    arguments += ["--max-rejects", "1"]
    assert run_here(*arguments, "--select", "raw_engagements", folder=folder, capfd=capfd).returncode == 0
    before = content(folder, "strictly", "raw_engagements")
    done = run_here(*arguments, "--select", "raw_engagements", "--strict", folder=folder, capfd=capfd)
    assert done.returncode == 1
    assert "FAILED" in done.stderr
    assert done.stderr.partition("run failed: ")[2].startswith("raw_engagements: LogError: ")  # is read last
    assert content(folder, "strictly", "raw_engagements") == before


def test_recipes_are_complete_and_know_no_clock_once_given_a_date():
    fixed = smoke().log.end_ts
    assert smoke(fixed) == smoke(fixed)


@pytest.mark.slow
def test_metadata_is_that_of_the_namespace():
    with dg.DagsterInstance.ephemeral() as instance:
        for namespace, rows in (("one", 1), ("two", 2)):
            metadata = {"namespace": namespace, "dagster/row_count": rows}
            instance.report_runless_asset_event(dg.AssetMaterialization("raw_engagements", metadata=metadata))
        assert asset_metadata(instance, "raw_engagements", "one")["dagster/row_count"] == 1
        assert asset_metadata(instance, "raw_engagements", "three") == {}
