"""Stage 6: two models trained on deduplicated batches by real ranks, and the report over both."""

import dagster as dg

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
    report = training.training_report({name: store.model_dir(name) for name in MODELS})
    store.write_report("training_report", report)
    return store.result(**report_metadata(report))
