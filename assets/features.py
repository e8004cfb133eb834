"""Stage 4: a request-level feature, backfilled without touching the main table."""

import dagster as dg

from assets.metadata import column_lineage, feature_metadata
from assets.resources import Warehouse
from assets.stages import STORAGE, TABLE, stage
from reqdedup import storage

WINDOW_S = 24 * 3600


@stage(**STORAGE, deps=["engagements_by_request"], tags=TABLE, kinds={"iceberg"})
def request_features(store: Warehouse) -> dg.MaterializeResult:
    """A new feature for requests that were stored long ago: how much the user did in the day before the request.

    One value per request, in a table beside the main one, which is not rewritten; the sample joins it in. Look at: the
    bytes written, against those of the main table.
    """
    main = store.table("engagements_by_request")
    feature = storage.recent_event_counts(WINDOW_S)
    report = store.write_features("request_features", main, feature.column, feature)
    made = {feature.column.name: "engagements_by_request.history_ts"}
    lineage = column_lineage(store.table("request_features"), main, made=made)
    return store.result("request_features", **feature_metadata(report, main), **lineage)
