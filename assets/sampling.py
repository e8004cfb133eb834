"""Stage 5: the training set, joined bucket by bucket and stratified by users."""

import dagster as dg

from assets.metadata import sample_metadata, write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from reqdedup import storage


@dg.asset(deps=["engagements_by_request", "request_features"], group_name="training_data", kinds={"iceberg"})
def training_sample(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """Rows of the sampled users with the backfilled feature joined in, no shuffle on the way."""
    recipe = run_recipe.get()
    joined = storage.bucket_join(store.table("engagements_by_request"), store.table("request_features"))
    sample = storage.sample_users(
        joined,
        rate=recipe.sample.rate,
        strata=recipe.sample.strata,
        max_requests_per_user=recipe.sample.max_requests_per_user,
        seed=recipe.sample.seed,
    )
    report = store.write(
        "training_sample",
        sample.schema,
        sample.batches(),
        num_buckets=recipe.num_buckets,
        progress=progress_log(context),
    )
    return store.result(**write_metadata(report), **sample_metadata(joined, sample))
