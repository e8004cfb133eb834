"""Stage 0: what servers showed since the last run, and the rows that are mature of it. Here the loop closes."""

import dagster as dg

from assets.metadata import GLANCE
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import LOG, STORAGE, stage
from reqdedup.sequences.sqlite_store import SqliteStore


@stage(**STORAGE, tags=LOG, kinds={"iceberg"})
def impressions(store: Warehouse) -> dg.MaterializeResult:
    """What servers showed since the last run, moved from their log into the tables impressions and impression_clicks.

    Rows whose clicks had time to come in go on to `raw_engagements`, labelled: here the loop closes. Nothing is to be
    seen until a server of this namespace has answered requests.
    """
    if not store.impressions_dir.exists():
        return store.result(**{GLANCE: facts(impressions="none: no server of this namespace")}, num_impressions=0)
    from reqdedup.serving.impressions.attribution import collect_impressions  # needs the extra `serve`

    report = collect_impressions(store.impressions_dir, store.catalog(), store.resolved_namespace)
    glance = facts(
        impressions=f"{report.num_impressions:,}",
        clicks=f"{report.num_clicks:,}",
        dropped_by_servers=f"{report.num_dropped:,}",
    )
    return store.result(**{GLANCE: glance}, **report.counts())


def add_mature_impressions(store: Warehouse) -> dict[str, int]:
    """Append the namespace's mature impressions to raw_engagements; what came of them, nothing if it serves nobody."""
    if not (store.store_path.exists() and store.impressions_dir.exists()):
        return {}
    from reqdedup.serving.impressions.attribution import mature_impressions

    users = SqliteStore(store.store_path)
    report = mature_impressions(store.catalog(), store.resolved_namespace, store.table("raw_engagements"), users)
    users.close()
    return {f"impressions_{name.removeprefix('num_')}": count for name, count in report.counts().items()}
