"""Stage 7, serving: what a server reads of its users, filled from the tables."""

import dagster as dg

from assets.metadata import GLANCE
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import SERVING, TABLE, stage
from reqdedup.display import format_bytes
from reqdedup.sequences.filling import check_store, event_columns, fill_store
from reqdedup.sequences.sqlite_store import SqliteStore
from reqdedup.storage import TableSource

NUM_CHECKED = 200


@stage(**SERVING, deps=["engagements_by_request", "request_features"], tags=TABLE, kinds={"sqlite"})
def serving_store(store: Warehouse) -> dg.MaterializeResult:
    """What a server reads of its users: each one's timeline and newest request features, in one file.

    Filled in one step; what a server appended in the meantime stays. Look at: the check, which compares windows and
    features of random requests with the tables, bit for bit.
    """
    main, features = store.table("engagements_by_request"), store.table("request_features")
    filled = SqliteStore(store.store_path, event_columns(TableSource(main).schema))
    report = fill_store(filled, main, [features])
    filled.close()
    size = store.store_path.stat().st_size
    glance = facts(
        users=f"{report.num_users:,}",
        new_or_changed=f"{report.num_new + report.num_changed:,}",
        stored=format_bytes(size),
    )
    return store.result(**{GLANCE: glance}, path=str(store.store_path), store_bytes=size, **report.counts())


@dg.asset_check(
    asset=serving_store,
    additional_deps=["engagements_by_request", "request_features"],
    description="Windows and features of random requests in the store equal the tables', bit for bit.",
    blocking=True,
)
def store_equals_tables(store: Warehouse) -> dg.AssetCheckResult:
    filled = SqliteStore(store.store_path)
    found = check_store(
        filled, store.table("engagements_by_request"), [store.table("request_features")], num_requests=NUM_CHECKED
    )
    filled.close()
    return dg.AssetCheckResult(passed=found.ok, metadata={"checked": found.checked, "detail": found.detail})
