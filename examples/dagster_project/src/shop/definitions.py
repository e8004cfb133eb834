"""reqdedup inside a Dagster project of your own: your impressions in our layout, checked, and what that saved."""

from pathlib import Path

import dagster as dg

import reqdedup as rd
from reqdedup.storage.measure.checks import requests_whole

TABLE = "shop.impressions"
MAPPING = {
    "user_id": "customer",
    "request_id": "page_view",
    "item_id": "sku",
    "time": {"column": "shown_at"},
    "labels": {"bought": "bought"},
}


class Lake(dg.ConfigurableResource):
    """folder: of the lake, and of the impressions as they come: Parquet in `raw`."""

    folder: str = "lake"

    def open(self) -> rd.Lake:
        return rd.open(self.folder)


@dg.asset(kinds={"iceberg"})
def impressions(lake: Lake) -> dg.MaterializeResult:
    """A page view's context once, its products as rows."""
    done = lake.open().ingest(Path(lake.folder) / "raw", TABLE, mapping=MAPPING, num_buckets=4, replace=True)
    return dg.MaterializeResult(metadata={"rows": done.written.rows, "bytes": done.written.bytes, **done.rejected})


@dg.asset_check(asset=impressions)
def page_views_are_whole(lake: Lake) -> dg.AssetCheckResult:
    found = requests_whole(lake.open().table(TABLE).iceberg)
    return dg.AssetCheckResult(passed=found.ok, metadata={"found": found.detail})


defs = dg.Definitions(assets=[impressions], asset_checks=[page_views_are_whole], resources={"lake": Lake()})
