"""Stage 7, serving: the heavy half of retrieval for every user, computed ahead."""

import dagster as dg

from assets.metadata import GLANCE
from assets.pictures import facts
from assets.resources import Warehouse
from assets.stages import SERVING, TABLE, stage
from reqdedup.display import format_bytes
from reqdedup.models.bundle import Bundle
from reqdedup.sequences.filling import RequestSource, snapshots, user_records
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.user_states import export_user_states, keep_user_states, replace_user_states
from reqdedup.serving.retrieval.user_states import user_states as states_of
from reqdedup.storage.iceberg.layout import table_buckets
from reqdedup.training.loop import BUNDLE_NAME

STATES_NAME = "user_states.parquet"
"""Of the file beside the bundles that a server starts with."""


def retriever(store: Warehouse) -> Retriever:
    """Of the model as it was trained last."""
    return Retriever.of(Bundle.load(store.model_dir("retrieval_model") / BUNDLE_NAME))


@stage(**SERVING, deps=["retrieval_model", "engagements_by_request"], tags=TABLE, kinds={"iceberg", "torch"})
def user_states(store: Warehouse) -> dg.MaterializeResult:
    """The heavy half of retrieval, computed ahead: the user tower over each user's newest window.

    A server keeps these states from its start (`--user-states`, the file at `path`), so that a user's first request is
    as fast as the next. A state counts only for the model and the events that it was computed from.
    """
    main, ours = store.table("engagements_by_request"), retriever(store)
    num_states = replace_user_states(
        store.catalog(),
        store.identifier("user_states"),
        states_of(ours, user_records(RequestSource(main, []))),
        model=ours.fingerprint,
        snapshots=snapshots(main, []),
        num_buckets=table_buckets(main) or 16,
    )
    path = store.serving_dir() / STATES_NAME
    export_user_states(store.table("user_states"), path)
    glance = facts(users=f"{num_states:,}", stored=format_bytes(path.stat().st_size), of_model=ours.fingerprint[:12])
    return store.result(
        "user_states",
        **{GLANCE: glance, "dagster/row_count": num_states, "model": ours.fingerprint, "path": str(path)},
    )


@dg.asset_check(
    asset=user_states,
    additional_deps=["retrieval_model"],
    description="A retriever of the model as it is now keeps every state.",
    blocking=True,
)
def states_of_this_model(store: Warehouse) -> dg.AssetCheckResult:
    ours = retriever(store)
    num_states = keep_user_states(ours, store.table("user_states"))
    return dg.AssetCheckResult(passed=num_states > 0, metadata={"states": num_states, "kept": len(ours.states)})
