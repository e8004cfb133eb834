"""What must hold of every table before anyone trusts it: each check reads the table's snapshot and says what it saw."""

from collections.abc import Callable

import dagster as dg
import numpy as np
from pyiceberg.table import Table

import warehouse
from assets import pictures
from assets.metadata import GLANCE
from assets.resources import RunRecipe, Warehouse
from assets.training import FOUNDATION, MODELS, NO_FOUNDATION
from reqdedup import training
from reqdedup.models import Bundle
from reqdedup.models.checkpoint import CHECKPOINT_NAME
from reqdedup.serving.bundles.checks import latency_ms, parity
from reqdedup.serving.bundles.places import find_bundles
from reqdedup.storage import TableSource
from reqdedup.storage.features import features_current
from reqdedup.storage.measure import checks

BUCKETED = ("engagements_sorted", "engagements_by_request", "training_sample")
LAYOUTS = ("engagements_shuffled", "engagements_sorted", "engagements_by_request")


def _result(found: checks.CheckResult) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=found.ok, metadata={"checked": found.checked, "detail": found.detail})


def _table_check(
    table: str, name: str, check: Callable[[Table], checks.CheckResult], doc: str
) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=table, name=name, description=doc, blocking=True)
    def table_check(store: Warehouse) -> dg.AssetCheckResult:
        return _result(check(store.table(table)))

    return table_check


def _same_rows_check(table: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=table,
        name="rows_equal_raw",
        additional_deps=["raw_engagements"],
        description="An order-free checksum over all rows and values equals that of raw_engagements.",
        blocking=True,
    )
    def rows_equal_raw(store: Warehouse) -> dg.AssetCheckResult:
        wanted = checks.content_checksum(TableSource(store.table("raw_engagements")))
        found = checks.content_checksum(TableSource(store.table(table)))
        return dg.AssetCheckResult(passed=found == wanted, metadata={"raw_engagements": str(wanted), table: str(found)})

    return rows_equal_raw


same_rows = [_same_rows_check(table) for table in LAYOUTS]
whole_requests = [
    _table_check(table, "requests_whole", checks.requests_whole, "Every request lies in one file, its rows together.")
    for table in BUCKETED
]
sort_order = [
    _table_check(table, "sort_order_true", checks.sort_order_true, "Rows are in (user_id, request_id, item_id) order.")
    for table in BUCKETED
]
buckets = [
    _table_check(table, "buckets_right", checks.buckets_right, "Every user hashes to the bucket of the file.")
    for table in BUCKETED
]
no_future = [
    _table_check(
        table, "no_future_events", checks.no_future_events, "No sequence event at or after its request's time."
    )
    for table in ("raw_engagements", "engagements_by_request")
]


@dg.asset_check(
    asset="training_sample",
    additional_deps=["engagements_by_request", "request_features"],
    description="The sample is of the tables as they are now, and the features of the requests that there are now.",
    blocking=True,
)
def of_one_moment(store: Warehouse) -> dg.AssetCheckResult:
    main, features = store.table("engagements_by_request"), store.table("request_features")
    changed = warehouse.changed_since(store.table("training_sample"), main, features)
    found = features_current(main, features)
    detail = f"training_sample is older than {' and '.join(changed)}: materialize it again" if changed else found.detail
    return dg.AssetCheckResult(passed=found.ok and not changed, metadata={"detail": detail})


def _loss_check(model: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=model,
        name="loss_finite_and_falling",
        description="Every loss is finite; the last tenth of the steps is below the first.",
    )
    def loss_finite(store: Warehouse, run_recipe: RunRecipe) -> dg.AssetCheckResult:
        if model == FOUNDATION and run_recipe.get().foundation is None:
            return dg.AssetCheckResult(passed=True, metadata={"note": NO_FOUNDATION})
        losses = training.read_losses(store.model_dir(model) / "metrics.csv")
        tenth = max(len(losses) // 10, 1)
        first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
        return dg.AssetCheckResult(
            passed=bool(np.isfinite(losses).all()) and last < first,
            metadata={"steps": len(losses), "first_tenth": first, "last_tenth": last},
        )

    return loss_finite


losses = [_loss_check(model) for model in (FOUNDATION, *MODELS)]


@dg.asset_check(
    asset="serving_bundle",
    additional_deps=["training_sample"],
    description="Stored requests, sent as plain values, get the bits that the trained models give them in the loader.",
    blocking=True,
)
def parity_with_training(store: Warehouse) -> dg.AssetCheckResult:
    source = TableSource(store.table("training_sample"))
    found = {}
    for folder in find_bundles(store.serving_dir() / "bundle"):
        bundle = Bundle.load(folder)
        checkpoint = store.model_dir(f"{bundle.task}_model") / CHECKPOINT_NAME
        found[bundle.task] = parity(bundle, checkpoint, source)
    rows = [{"model": task, **{name: f"{count:,}" for name, count in vars(one).items()}} for task, one in found.items()]
    holds = all(one.holds for one in found.values())
    return dg.AssetCheckResult(passed=holds, metadata={GLANCE: pictures.table(rows)})


@dg.asset_check(
    asset="serving_bundle",
    additional_deps=["training_sample"],
    description="A request without a kept context is answered within the recipe's budget, one thread.",
)
def latency_within_budget(store: Warehouse, run_recipe: RunRecipe) -> dg.AssetCheckResult:
    source, budget = TableSource(store.table("training_sample")), run_recipe.get().latency_budget_ms
    bundles = [Bundle.load(folder) for folder in find_bundles(store.serving_dir() / "bundle")]
    measured = {f"{bundle.task}_ms": round(latency_ms(bundle, source), 3) for bundle in bundles}
    passed = max(measured.values()) <= budget
    glance = pictures.table([{"answer": name, "took": f"{ms:.1f} of {budget:.0f} ms"} for name, ms in measured.items()])
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,  # of the machine as much as of the model
        metadata={GLANCE: glance, **measured, "budget_ms": budget},
    )
