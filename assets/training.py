"""Stage 6: two models trained on deduplicated batches by real ranks, and the report over both."""

from pathlib import Path

import dagster as dg
from pyiceberg.table import Table

from assets.metadata import report_metadata, training_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from reqdedup import training
from reqdedup.storage import TableSource

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
    """Raise ValueError that names the models to train again, unless all are of one snapshot of the sample.

    An older snapshot than the present one is good enough if it is that of all of them; an unknown one never is.
    """
    # result.json, not run.json: a training that was killed left that one anew beside an older model.
    trained_on = {name: training.trained_on(folder) for name, folder in models.items()}
    unknown = [name for name, found in trained_on.items() if found is None]
    if unknown:
        found, again = f"none recorded for {' and '.join(unknown)}", unknown
    elif len(set(trained_on.values())) > 1:
        snapshot = sample.current_snapshot()
        again = [name for name, of in trained_on.items() if snapshot is None or of != snapshot.snapshot_id]
        found = f"{' and '.join(again)} trained on an older one"
    else:
        return
    raise ValueError(
        f"{', '.join(models)}: trained on one snapshot of training_sample required, found {found}; materialize "
        f"{' and '.join(again)} first"
    )
