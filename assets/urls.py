"""Stage 1: which URLs are one item, learned from the log and a table of its pages; for the next ingest."""

from pathlib import Path

import dagster as dg
import duckdb
import polars as pl

from assets.metadata import GLANCE
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import REPORT, STORAGE, stage
from reqdedup.logs.mapping import ITEM_URL
from reqdedup.logs.urls import ContentTable, learn, load_rules, publish
from reqdedup.schema import ITEM_ID

PAGES = "page_contents"


def rules_path(store: Warehouse) -> Path:
    """The rules file of the namespace."""
    return Path(store.data_dir) / "url_rules" / f"{store.resolved_namespace}.json"


@stage(**STORAGE, deps=["raw_engagements"], tags=REPORT, kinds={"iceberg"})
def url_rules(store: Warehouse) -> dg.MaterializeResult:
    """Which parameters of the log's URLs lead to another page; nothing for a log whose items are no URLs.

    Learned if the namespace has a table `page_contents` (url, content_hash). Rules that lose parameters of too many
    patterns fail the run, and the old ones stay. Look at: items per URL, and hosts whose pages are never the same, or
    all alike.
    """
    items = _items(store)
    if items is None:
        return store.result(**{GLANCE: facts(urls="none: items of this log are no URLs")}, num_urls=0)
    num_urls, num_items = len(items), items[ITEM_ID].n_unique()
    glance = {GLANCE: facts(urls=f"{num_urls:,}", items=f"{num_items:,}")}
    found = {"num_urls": num_urls, "num_items": num_items}
    if not store.catalog().table_exists(store.identifier(PAGES)):
        return store.result(**glance, **found)
    pages = store.table(PAGES).scan(selected_fields=("url", "content_hash")).to_arrow()
    path = rules_path(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(pages["url"].to_pylist(), pages["content_hash"].to_pylist())
    learned = learn(items[ITEM_URL], ContentTable(rows), layers=load_rules(path) if path.exists() else None)
    change = publish(learned.rules, path, absent=learned.absent)
    return store.result(
        **glance,
        **found,
        rules=str(path),
        fingerprint=learned.rules.fingerprint,
        num_patterns=learned.rules.num_patterns,
        untested_parameters=learned.untested,
        unstable_hosts=", ".join(learned.unstable),
        hosts_of_alike_pages=", ".join(learned.alike),
        flagged_patterns=len(change.flagged) if change is not None else 0,
    )


@dg.asset_check(asset=url_rules, description="Every URL of the log is one item, as the rules of its ingest say.")
def urls_are_items(store: Warehouse) -> dg.AssetCheckResult:
    items = _items(store)
    several = 0 if items is None else len(items) - items[ITEM_URL].n_unique()
    return dg.AssetCheckResult(passed=several == 0, metadata={"urls_of_several_items": several})


def _items(store: Warehouse) -> pl.DataFrame | None:
    """Distinct pairs of URL and item; None for a log whose items are no URLs."""
    raw = store.table("raw_engagements")
    if ITEM_URL not in raw.schema().column_names:
        return None
    rows = raw.scan(selected_fields=(ITEM_ID, ITEM_URL)).to_arrow_batch_reader()
    with duckdb.connect() as connection:
        return connection.from_arrow(rows).select(ITEM_ID, ITEM_URL).distinct().pl()
