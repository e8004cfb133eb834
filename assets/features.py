"""Stage 4: a request-level feature, backfilled without touching the main table."""

import dagster as dg

from assets.metadata import feature_metadata
from assets.resources import Warehouse
from reqdedup import storage

WINDOW_S = 24 * 3600


@dg.asset(deps=["engagements_by_request"], group_name="training_data", kinds={"iceberg"})
def request_features(store: Warehouse) -> dg.MaterializeResult:
    """How much each user did in the day before the request: one value per request, in a side table."""
    main = store.table("engagements_by_request")
    feature = storage.recent_event_counts(WINDOW_S)
    report = store.write_features("request_features", main, feature.column, feature)
    return store.result(**feature_metadata(report))
