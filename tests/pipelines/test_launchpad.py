"""What a person types into the launchpad: fields with a type and a word on each, errors before the run begins."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import get_args

import dagster as dg
import pytest

from assets.engine import EngineName
from assets.own_tables import OwnLake
from assets.recipes import RECIPES, smoke
from assets.run_recipe import (
    HeldOutBy,
    Layer,
    LogPreset,
    LossOfRanking,
    NegativeItems,
    Pooled,
    RunRecipe,
    Size,
    Tower,
)
from pipelines.definitions import build_definitions
from pipelines.environment import Environment
from reqdedup.distributed.engine import NAMES, engine_for
from reqdedup.environment import ENGINE_VARIABLE
from reqdedup.logs import synthetic_schema
from reqdedup.logs.presets import Preset
from reqdedup.models.config import LayerKind
from reqdedup.models.cross import TowerKind
from reqdedup.models.foundation.beginning import EQUAL
from reqdedup.models.two_tower.config import Pooling
from reqdedup.training.config import Negatives
from reqdedup.training.foundations import SAME_PART
from reqdedup.training.ranking_loss import RankingLoss
from reqdedup.training.split import SplitBy
from warehouse import embedded_catalog, load_table, open_catalog


@pytest.fixture(scope="module")
def graph():
    return build_definitions(Environment(recipe="smoke")).resolve_implicit_global_asset_job_def()


def configured(**values) -> dict:
    return {"resources": {"run_recipe": {"config": values}}}


def test_the_choices_are_those_of_recipes_and_presets():
    assert [size.value for size in Size] == list(RECIPES)
    assert [preset.value for preset in LogPreset] == list(get_args(Preset))
    for ours, library in (
        *((Layer, LayerKind), (Pooled, Pooling), (Tower, TowerKind), (NegativeItems, Negatives)),
        *((LossOfRanking, RankingLoss), (HeldOutBy, SplitBy)),
    ):
        assert [choice.value for choice in ours] == list(get_args(library))
    assert {engine.value for engine in EngineName} == {one.partition(":")[0] for one in re.split(", | or ", NAMES)}


def test_every_field_has_a_description(graph):
    compact = build_definitions(Environment(recipe="smoke")).resolve_job_def("compact")
    for job, name in ((graph, "run_recipe"), (graph, "store"), (compact, "own_lake")):
        fields = job.run_config_schema.run_config_schema_type.fields["resources"].config_type.fields
        for field, config in fields[name].config_type.fields["config"].config_type.fields.items():
            assert config.description or field == "run_recipe", f"{name}.{field}"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipe": "latop"}, "not in enum type Size got latop"),
        ({"preset": "movielense"}, "not in enum type LogPreset got movielense"),
        ({"layouts": ["sortd"]}, "not in enum type ComparedLayout got sortd"),
        ({"training_steps": "many"}, "training_steps"),
        ({"trainingsteps": 3}, "unexpected config entry"),
        ({"layer": "hstuu"}, "not in enum type Layer got hstuu"),
        ({"ranking_loss": "bce"}, "not in enum type LossOfRanking got bce"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_what_is_misspelled_is_an_error_before_the_run(graph, values, said):
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"(?i)" + said):
        dg.validate_run_config(graph, configured(**values))


@pytest.mark.parametrize("resource", ["store", "own_lake"])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": "proceses"}, "not in enum type EngineName got proceses"),
        ({"engine": "processes:2"}, "not in enum type EngineName got processes:2"),
        ({"num_processes": "two"}, "num_processes"),
    ],
)
def test_an_engine_that_there_is_not_is_an_error_before_the_run(resource, values, said):
    definitions = build_definitions(Environment(recipe="smoke"))
    job, ops = ("storage_only", {}) if resource == "store" else ("compact", {"compact": {"config": {"table": "a.b"}}})
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"(?i)" + said):
        dg.validate_run_config(
            definitions.resolve_job_def(job), {"resources": {resource: {"config": values}}, "ops": ops}
        )


@pytest.mark.parametrize(
    ("values", "named", "meant"),
    [
        ({}, None, "inline"),
        ({}, "processes:2", "processes:2"),
        ({"engine": "inline"}, "processes:2", "inline"),
        ({"engine": "processes", "num_processes": 3}, "processes:2", "processes:3"),
    ],
)
@pytest.mark.slow
def test_a_run_works_on_the_engine_of_its_own_configuration(monkeypatch, values, named, meant):
    """Whatever the operation, since none is told; what the environment says is for the other runs."""
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    if named:
        monkeypatch.setenv(ENGINE_VARIABLE, named)
    found = []

    @dg.op
    def look(own_lake: OwnLake) -> None:
        found.append(engine_for(None, None, num_tasks=9).name)

    @dg.job(resource_defs={"own_lake": OwnLake.configure_at_launch()})
    def one() -> None:
        look()

    config = {"resources": {"own_lake": {"config": values}}}
    assert one.execute_in_process(config, instance=dg.DagsterInstance.ephemeral()).success
    assert found == [meant]
    assert os.environ.get(ENGINE_VARIABLE) == named


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": EngineName.inline, "num_processes": 2}, "num_processes: engine processes beside it required"),
        ({"ray_address": "127.0.0.1:6379"}, "ray_address: engine ray beside it required, found none"),
    ],
)
def test_what_belongs_to_another_engine_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        OwnLake(**values).engine_name  # noqa: B018 - a property that refuses
    assert OwnLake(engine=EngineName.ray, ray_address="127.0.0.1:6379").engine_name == "ray:127.0.0.1:6379"


def test_a_field_that_is_given_is_the_only_one_that_changes():
    one = RunRecipe(recipe=Size.smoke, seed=4, num_buckets=2, sample_rate=0.5, training_steps=7).get()
    plain = smoke()
    assert one == replace(
        plain,
        num_buckets=2,
        log=replace(plain.log, seed=4),
        sample=replace(plain.sample, rate=0.5, seed=4),
        foundation=replace(plain.foundation, num_steps=7, seed=4),
        retrieval=replace(plain.retrieval, num_steps=7, seed=4),
        ranking=replace(plain.ranking, num_steps=7, seed=4),
    )
    assert RunRecipe(recipe=Size.smoke).get() == plain


def test_kinds_and_options_of_training_reach_the_models_that_they_are_of():
    given = RunRecipe(
        recipe=Size.smoke, max_epochs=1, learning_rate=0.01, ranks=1, layer=Layer.hstu, pooling=Pooled.both,
        tower=Tower.parallel, negatives=NegativeItems.catalogue, ranking_loss=LossOfRanking.listwise,
        split_by=HeldOutBy.time,
    ).get()  # fmt: skip
    schema = synthetic_schema(given.log)
    retrieval, ranking = given.retrieval_training(schema), given.ranking_training(schema)
    for one in (retrieval, ranking):
        assert (one.max_epochs, one.learning_rate, one.world_size, one.split_by) == (1, 0.01, 1, "time")
        assert one.model.layer == "hstu"
    assert (retrieval.model.pooling, retrieval.model.tower, retrieval.negatives) == ("both", "parallel", "catalogue")
    assert (ranking.ranking_loss, retrieval.ranking_loss) == ("listwise", "cross_entropy")
    with pytest.raises(ValueError, match="ranks"):
        RunRecipe(recipe=Size.smoke, ranks=0)


@pytest.mark.parametrize("size", [size for size in Size if size is not Size.full])
def test_a_foundation_model_is_of_the_sizes_of_both_models_and_judged_on_the_same_part(size):
    given = RunRecipe(
        recipe=size, seed=5, foundation=True, layer=Layer.hstu, split_by=HeldOutBy.time, pooling=Pooled.both,
        negatives=NegativeItems.catalogue,
    ).get()  # fmt: skip
    schema = synthetic_schema(given.log)
    found = given.pretraining(schema)
    for one in (given.retrieval_training(schema), given.ranking_training(schema)):
        assert all(getattr(found, name) == getattr(one, name) for name in SAME_PART)
        assert all(getattr(found.model, name) == getattr(one.model, name) for name in EQUAL)
    assert (found.shuffle, found.model.share_context) == ("users", "user")
    assert RunRecipe(recipe=size, foundation=False).get().pretraining(schema) is None


def test_a_failed_run_ends_with_its_reason_whatever_job_it_is_of(tmp_path, capfd):
    """The job that the UI's Materialize launches, without a word of configuration on loggers."""
    job = build_definitions(Environment(recipe="smoke", data_dir=tmp_path)).resolve_implicit_global_asset_job_def()
    for values, selected, said in (
        ({}, "request_features", "request_features: ValueError: table smoke.engagements_by_request is not there;"),
        ({"seed": -2}, "raw_engagements", "RunRecipe: seed Input should be greater than or equal to 0, found -2"),
    ):
        capfd.readouterr()
        done = job.execute_in_process(
            configured(**values), asset_selection=[dg.AssetKey(selected)], raise_on_error=False
        )
        assert not done.success
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) <= 3
        assert f"run failed: {said}" in lines[-1]


def test_a_misspelled_variable_is_refused_when_the_graph_is_loaded():
    with pytest.raises(ValueError, match="REQDEDUP_RECIPE: one of smoke, laptop, full, events required, found 'latop'"):
        Environment.from_os({"REQDEDUP_RECIPE": "latop"})


@pytest.mark.slow
def test_runs_of_two_recipes_and_two_seeds_write_into_namespaces_of_their_own(tmp_path, monkeypatch):
    """One process, one instance, the graph loaded once: the namespace is that of each run's own configuration."""
    small = replace(smoke(), name="laptop", log=replace(smoke().log, num_users=20))
    monkeypatch.setitem(RECIPES, "laptop", lambda: small)
    job = build_definitions(Environment(recipe="smoke", data_dir=tmp_path)).resolve_implicit_global_asset_job_def()
    catalog, snapshots = open_catalog(embedded_catalog(tmp_path)), {}
    with dg.DagsterInstance.ephemeral() as instance:
        for values, namespace in (
            ({}, "smoke"),
            ({"recipe": "laptop"}, "laptop"),
            ({"recipe": "laptop", "seed": 3}, "laptop_seed_3"),
        ):
            selection = [dg.AssetKey("raw_engagements")]
            assert job.execute_in_process(configured(**values), instance=instance, asset_selection=selection).success
            snapshots[namespace] = load_table(catalog, namespace, "raw_engagements").current_snapshot().snapshot_id
            for before, snapshot in snapshots.items():
                assert load_table(catalog, before, "raw_engagements").current_snapshot().snapshot_id == snapshot
    assert len(set(snapshots.values())) == 3


@pytest.mark.slow
def test_reports_are_made_again_when_their_inputs_change_once_that_is_switched_on():
    definitions = build_definitions(Environment(recipe="smoke"))
    (automation,) = [sensor for sensor in definitions.get_repository_def().sensor_defs if "automation" in sensor.name]
    assert automation.default_status is dg.DefaultSensorStatus.STOPPED
    with dg.DagsterInstance.ephemeral() as instance:

        def changed(*names: str) -> set[str]:
            for name in names:
                instance.report_runless_asset_event(dg.AssetMaterialization(name))
            found = dg.evaluate_automation_conditions(definitions, instance, cursor=changed.cursor)
            changed.cursor = found.cursor
            keys = definitions.get_repository_def().asset_graph.get_all_asset_keys()
            return {key.to_user_string() for key in keys if found.get_num_requested(key)}

        changed.cursor = None
        changed("engagements_shuffled", "engagements_sorted", "engagements_by_request", "compression_report")
        assert changed() == set()
        assert changed("engagements_by_request") == {"compression_report"}
        assert changed("raw_engagements") == set()
