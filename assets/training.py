"""Stage 6: two models trained on deduplicated batches by real ranks, and the report over both."""

from pathlib import Path

import dagster as dg
from pyiceberg.table import Table

from assets.metadata import report_metadata
from assets.model_metadata import judged_metadata, training_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import MODEL, REPORT, TRAINING, WHEN_INPUTS_CHANGE, stage
from reqdedup import training
from reqdedup.storage import TableSource
from reqdedup.training.report import no_better

MODELS = ("retrieval_model", "ranking_model")


@stage(**TRAINING, deps=["training_sample"], tags=MODEL, kinds={"torch"})
def retrieval_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """Which items to fetch for a request: a two-tower model, its user tower computed once per request.

    Trained by real ranks with the fixes that sorted batches need: in-batch negatives of the same user are masked, logQ
    corrects for popular items, BatchNorm spans the ranks. Look at: whether the loss still falls at the end, and
    recall beside chance on held-out users.
    """
    source = TableSource(store.table("training_sample"))
    config = run_recipe.get().retrieval_training(source.schema)
    result = training.train(config, source, out_dir=store.model_dir("retrieval_model"), progress=progress_log(context))
    return store.result(**training_metadata(config, result))


@stage(**TRAINING, deps=["training_sample"], tags=MODEL, kinds={"torch"})
def ranking_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """In which order to show the fetched items: DCAT, which encodes the history once per request for all candidates.

    Every candidate then attends to that one encoding; values and gradients equal those of the model computed once per
    row. Look at: whether the loss still falls at the end, and AUC beside chance on held-out users.
    """
    source = TableSource(store.table("training_sample"))
    config = run_recipe.get().ranking_training(source.schema)
    result = training.train(config, source, out_dir=store.model_dir("ranking_model"), progress=progress_log(context))
    return store.result(**training_metadata(config, result))


@stage(**TRAINING, deps=list(MODELS), tags=REPORT, automation_condition=WHEN_INPUTS_CHANGE, kinds={"iceberg"})
def training_report(store: Warehouse) -> dg.MaterializeResult:
    """The held-out figures of both models with their intervals, each beside chance and the best baseline.

    Baselines are what a team would try first: popularity, what followed the last item, neighbours, EASE for retrieval;
    the means of item and user for ranking, on the same split. Look at: the check, which warns of a model that is no
    better. The loss of every step is shown at each model.
    """
    folders, sample = {name: store.model_dir(name) for name in MODELS}, store.table("training_sample")
    check_one_sample(folders, sample)
    report = training.training_report(folders)
    store.write_report("training_report", report)
    return store.result("training_report", **judged_metadata(report.to_pylist()), **report_metadata(report))


@dg.asset_check(
    asset=training_report,
    description="Mean log-rank, and the AUC of each label over all rows, within users and within requests, are better "
    "than chance and than the best baseline.",
)
def better_than_simple_rules(store: Warehouse) -> dg.AssetCheckResult:
    rows = store.table("training_report").scan().to_arrow().to_pylist()
    worse = no_better(rows)
    text = "; ".join(worse) or "every model is better"
    return dg.AssetCheckResult(passed=not worse, severity=dg.AssetCheckSeverity.WARN, metadata={"detail": text})


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
