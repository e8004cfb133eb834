"""Stage 5: the training set, joined bucket by bucket and stratified by users."""

import dagster as dg

import warehouse
from assets.metadata import column_lineage, sample_metadata, write_metadata
from assets.resources import RunRecipe, Warehouse, progress_log
from assets.stages import TABLE, TRAINING, stage
from reqdedup import storage
from reqdedup.storage.features import features_current


@stage(**TRAINING, deps=["engagements_by_request", "request_features"], tags=TABLE, kinds={"iceberg"})
def training_sample(context: dg.AssetExecutionContext, store: Warehouse, run_recipe: RunRecipe) -> dg.MaterializeResult:
    """What the models are trained on: all rows of the sampled users, with the backfilled feature joined in.

    Users are drawn by activity, whole, and very active ones keep a bounded number of requests. Join and sample go
    bucket by bucket: nothing is shuffled. Look at: rows before and after by stratum, and rows without a feature, which
    should be none.
    """
    recipe = run_recipe.get()
    main, features = store.table("engagements_by_request"), store.table("request_features")
    found = features_current(main, features)
    if not found.ok:
        raise ValueError(f"training_sample: {found.detail} (materialize request_features); nothing was written")
    joined = storage.bucket_join(main, features)
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
        sample,
        num_buckets=recipe.num_buckets,
        progress=progress_log(context),
        properties=warehouse.made_from(engagements_by_request=main, request_features=features),
    )
    if joined.counts.missing_rows:
        context.log.warning(
            f"{joined.counts.missing_rows:,} of {joined.counts.left_rows:,} rows dropped, whose requests have no features; "
            "materialize request_features again if it is older than engagements_by_request"
        )
    sampled = sample_metadata(joined, sample)
    lineage = column_lineage(store.table("training_sample"), main, features)
    return store.result("training_sample", **{**sampled, **write_metadata(report), **sampled, **lineage})
