"""The environment is read in one place, and what is secret there stays out of sight."""

import pytest
from dagster_shared.error import SerializableErrorInfo

import reqdedup
from assets.resources import RunRecipe
from pipelines.environment import Environment
from pipelines.progress import reason
from pipelines.resources import DeployedWarehouse


def test_variables_become_settings():
    found = Environment.from_os(
        {
            "REQDEDUP_RECIPE": "smoke",
            "REQDEDUP_LOGS": "/logs/My Log.csv",
            "REQDEDUP_STRICT": "1",
            "REQDEDUP_CATALOG__URI": "http://127.0.0.1:8181",
            "REQDEDUP_CATALOG__S3__SECRET_ACCESS_KEY": "hidden",
        }
    )
    assert (found.recipe, found.strict, found.resolved_namespace) == ("smoke", True, "my_log")
    assert found.catalog_properties == {"uri": "http://127.0.0.1:8181", "s3.secret-access-key": "hidden"}
    assert "hidden" not in repr(found)


def test_properties_beside_the_embedded_lake_reach_the_graph_and_another_folder_stands_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("REQDEDUP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REQDEDUP_CATALOG__WAREHOUSE", "s3://bucket/tables")
    deployed = DeployedWarehouse(run_recipe=RunRecipe(), data_dir=str(tmp_path)).place()
    assert deployed == reqdedup.open().place
    assert deployed.properties["warehouse"] == "s3://bucket/tables"
    other = DeployedWarehouse(run_recipe=RunRecipe(), data_dir=str(tmp_path / "other")).place()
    assert other.properties["warehouse"] == f"file://{tmp_path / 'other' / 'tables'}"


def test_arguments_go_before_variables():
    environment = Environment.from_os({"REQDEDUP_RECIPE": "full", "REQDEDUP_PRESET": "mind"})
    changed = environment.with_arguments(recipe="smoke", preset="", logs="x/behaviors.tsv")
    assert (changed.recipe, changed.preset, changed.resolved_namespace) == ("smoke", "mind", "mind_behaviors")
    strict = Environment.from_os({"REQDEDUP_STRICT": "1", "REQDEDUP_MAX_REJECTS": "0.5"})
    assert strict.with_arguments(strict=False, max_rejects=None) == strict  # not given
    assert strict.with_arguments(max_rejects=0.0).max_rejects == 0


@pytest.mark.parametrize("text", ["half", "1.5", "nan", "-0.1"])
def test_a_share_of_rejects_that_is_none_is_named(text):
    with pytest.raises(ValueError, match="REQDEDUP_MAX_REJECTS: a share of the rows, 0 to 1, required, found"):
        Environment.from_os({"REQDEDUP_MAX_REJECTS": text})


def test_the_error_that_was_raised_is_shown_and_not_what_it_was_raised_from():
    def error(name: str, message: str, cause=None) -> SerializableErrorInfo:
        return SerializableErrorInfo(message, [], name, cause)

    own = error(
        "NamespaceTakenError", "warehouse.runs.NamespaceTakenError: taken\n", error("KeyError", "KeyError: 1\n")
    )
    assert reason(error("DagsterExecutionStepExecutionError", "wrapped", own)) == "NamespaceTakenError: taken"
    assert reason(None) == ""
