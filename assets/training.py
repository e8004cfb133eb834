"""Stage 6: a model pre-trained on histories, two that begin with it, trained on deduplicated batches by real ranks, and
the report over these."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
from pyiceberg.table import Table

from assets.metadata import report_metadata
from assets.model_metadata import judged_metadata, training_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import MODEL, REPORT, TRAINING, WHEN_INPUTS_CHANGE, stage
from reqdedup import training
from reqdedup.storage import TableSource
from reqdedup.training import TrainingConfig
from reqdedup.training.foundations import finished_foundation
from reqdedup.training.report import no_better, poor_probabilities

FOUNDATION, MODELS = "foundation_model", ("retrieval_model", "ranking_model")
NO_FOUNDATION = "no foundation model: both models of this recipe begin without one; run_recipe.foundation asks for it"


@stage(**TRAINING, deps=["training_sample"], tags=MODEL, kinds={"torch"})
def foundation_model(
    context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe
) -> dg.MaterializeResult:
    """What the histories say before any label: a transformer that learns what comes next, and both models begin with.

    Requests of a user share their windows of the timeline, so that a step reads each event once, not once per request.
    It is no model to serve. Look at: whether the loss still falls at the end, and recall beside chance, of the last
    event alone; what it gives is seen at the models. A recipe without one leaves a note.
    """
    source = TableSource(store.table("training_sample"))
    config = run_recipe.get().pretraining(source.schema)
    return store.result(note=NO_FOUNDATION) if config is None else trained(context, store, FOUNDATION, config, source)


@stage(**TRAINING, deps=["training_sample", FOUNDATION], tags=MODEL, kinds={"torch"})
def retrieval_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """Which items to fetch for a request: a two-tower model, its user tower computed once per request.

    Trained by real ranks with the fixes that sorted batches need: in-batch negatives of the same user are masked, logQ
    corrects for popular items, BatchNorm spans the ranks. Look at: whether the loss still falls at the end, and
    recall beside chance on held-out users.
    """
    source = TableSource(store.table("training_sample"))
    config = begun(run_recipe.get().retrieval_training(source.schema), store, run_recipe)
    return trained(context, store, "retrieval_model", config, source)


@stage(**TRAINING, deps=["training_sample", FOUNDATION], tags=MODEL, kinds={"torch"})
def ranking_model(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """In which order to show the fetched items: DCAT, which encodes the history once per request for all candidates.

    Every candidate then attends to that one encoding; values and gradients equal those of the model computed once per
    row. Look at: whether the loss still falls at the end, and AUC beside chance on held-out users.
    """
    source = TableSource(store.table("training_sample"))
    config = begun(run_recipe.get().ranking_training(source.schema), store, run_recipe)
    return trained(context, store, "ranking_model", config, source)


def begun(config: TrainingConfig, store: Warehouse, run_recipe: RunRecipe) -> TrainingConfig:
    """The same, to begin with the namespace's foundation model if the recipe has one.

    Raises ValueError that names foundation_model unless it is a finished one of this sample, of the model's sizes.
    """
    if run_recipe.get().foundation is None:
        return config
    snapshot = store.table("training_sample").current_snapshot()
    try:
        path = finished_foundation(store.model_dir(FOUNDATION), config, snapshot.snapshot_id if snapshot else None)
    except ValueError as error:
        raise ValueError(f"{error}; materialize {FOUNDATION} first, with this configuration of the run") from None
    return replace(config, foundation=str(path))


def trained(
    context: dg.AssetExecutionContext, store: Warehouse, name: str, config: TrainingConfig, source: TableSource
) -> dg.MaterializeResult:
    """The result of the asset `name`: its model, trained into its folder."""
    result = training.train(config, source, out_dir=store.model_dir(name), progress=progress_log(context))
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
    "than chance and than the best baseline, at the low end of their 95% intervals too.",
)
def better_than_simple_rules(store: Warehouse) -> dg.AssetCheckResult:
    rows = store.table("training_report").scan().to_arrow().to_pylist()
    worse = no_better(rows)
    said = {
        "detail": "; ".join(worse) or "every model is clearly better",
        "probabilities": "; ".join(poor_probabilities(rows)) or "none is worse than the rate of its label alone",
    }
    return dg.AssetCheckResult(passed=not worse, severity=dg.AssetCheckSeverity.WARN, metadata=said)


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
