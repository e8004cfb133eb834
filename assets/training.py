"""Stage 6: two models trained on deduplicated batches by real ranks, and the report over both."""

import json
from pathlib import Path

import dagster as dg
from pyiceberg.table import Table

from assets.metadata import report_metadata, training_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from reqdedup import training
from reqdedup.storage import TableSource
from reqdedup.training.report import RESULT_NAME

MODELS = ("retrieval_model", "ranking_model")


@dg.asset(deps=["training_sample"], group_name="models", kinds={"torch"})
def retrieval_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """Two-tower: user tower once per request, masked InfoNCE with logQ, SyncBatchNorm; gloo ranks."""
    source = TableSource(store.table("training_sample"))
    config = run_recipe.get().retrieval_training(source.schema)
    result = training.train(config, source, out_dir=store.model_dir("retrieval_model"), progress=progress_log(context))
    return store.result(**training_metadata(config, result))


@dg.asset(deps=["training_sample"], group_name="models", kinds={"torch"})
def ranking_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """DCAT: the history encoded once per request, every candidate crossing with it; SyncBatchNorm; gloo ranks."""
    source = TableSource(store.table("training_sample"))
    config = run_recipe.get().ranking_training(source.schema)
    result = training.train(config, source, out_dir=store.model_dir("ranking_model"), progress=progress_log(context))
    return store.result(**training_metadata(config, result))


@dg.asset(deps=list(MODELS), group_name="models", kinds={"iceberg"})
def training_report(store: Warehouse) -> dg.MaterializeResult:
    """Loss of every step and the held-out figures of both models, as a table."""
    check_one_sample({name: store.model_dir(name) for name in MODELS}, store.table("training_sample"))
    report = training.training_report({name: store.model_dir(name) for name in MODELS})
    store.write_report("training_report", report)
    return store.result(**report_metadata(report))


def check_one_sample(models: dict[str, Path], sample: Table) -> None:
    """Raise ValueError that names the models of an older sample than the present one, if they are not all of one."""
    # result.json, not run.json: a training that failed or was stopped left that one anew beside an older model.
    trained_on = {
        name: json.loads((folder / RESULT_NAME).read_text()).get("snapshot_id") for name, folder in models.items()
    }
    snapshot = sample.current_snapshot()
    stale = [name for name, found in trained_on.items() if snapshot is None or found != snapshot.snapshot_id]
    if len(set(trained_on.values())) > 1:
        raise ValueError(
            f"{', '.join(models)}: trained on one snapshot of training_sample required, found {' and '.join(stale)} trained on "
            f"an older one; materialize {' and '.join(stale)} first"
        )
