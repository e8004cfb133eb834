"""States of all users, computed ahead: a table that a batch writes and a retriever keeps from its start.

user_id              int64      partition bucket(N, user_id)
timeline_version     int64      of the timeline that was read
start, history_end   int64      events of it
digest               binary     of these events as the model reads them
state                list<float>

Properties of the table: fingerprint of the model, and the snapshot of every table that the timelines came from. A state
is used only for exactly the events that it was computed from; for a user who has moved on it is computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import BinaryType, FloatType, ListType, LongType, NestedField

from reqdedup.sequences.store import UserRecord, Window
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.state_cache import StateKey
from reqdedup.serving.retrieval.states_file import STATES_SCHEMA, model_of, read_states, write_states
from reqdedup.serving.threads import one_thread
from reqdedup.storage.iceberg.layout import bucket_spec

MODEL_PROPERTY, SNAPSHOTS_PROPERTY = "reqdedup.model", "reqdedup.snapshots"
TOGETHER = 10_000
"""States in one batch of rows."""

_ICEBERG = Schema(
    NestedField(1, "user_id", LongType(), required=True),
    NestedField(2, "timeline_version", LongType(), required=True),
    NestedField(3, "start", LongType(), required=True),
    NestedField(4, "history_end", LongType(), required=True),
    NestedField(5, "digest", BinaryType(), required=True),
    NestedField(6, "state", ListType(element_id=7, element=FloatType(), element_required=True), required=True),
)


def user_states(retriever: Retriever, users: Iterable[UserRecord]) -> Iterator[pa.RecordBatch]:
    """The state of each user's newest window, one at a time on one thread: in the bits that a server computes."""
    rows: list[dict[str, Any]] = []
    for user in users:
        if not user.timelines:
            continue
        version = max(user.timelines)
        first, events = user.timelines[version]
        end = first + len(next(iter(events.values())))
        window = retriever.read(Window(events, first, end, version))
        key = StateKey(retriever.fingerprint, user.user_id, version, window.start, end)
        with one_thread():
            state_D = retriever.model.user_state(window.history).numpy()
        rows.append(
            {
                "user_id": key.user_id,
                "timeline_version": version,
                "start": key.start,
                "history_end": end,
                "digest": window.digest,
                "state": state_D,
            }
        )
        if len(rows) == TOGETHER:
            yield pa.RecordBatch.from_pylist(rows, schema=STATES_SCHEMA)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=STATES_SCHEMA)


def replace_user_states(
    catalog: Catalog,
    identifier: str,
    states: Iterable[pa.RecordBatch],
    *,
    model: str,
    snapshots: Mapping[str, Any],
    num_buckets: int = 16,
) -> int:
    """Make the table hold exactly these states, in one commit; how many there are.

    model: fingerprint of the model.  snapshots: of the tables that the timelines came from.
    """
    rows = pa.Table.from_batches(states, schema=STATES_SCHEMA)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        table = catalog.create_table(identifier, _ICEBERG, partition_spec=bucket_spec(_ICEBERG, num_buckets))
    with table.transaction() as transaction:
        if table.current_snapshot() is not None:
            transaction.delete(AlwaysTrue())
        transaction.set_properties({MODEL_PROPERTY: model, SNAPSHOTS_PROPERTY: json.dumps(dict(snapshots))})
        transaction.append(rows)
    return len(rows)


def export_user_states(table: Table, path: Path) -> int:
    """Write the states of the table into the file that a server starts with; how many there are."""
    return write_states(path, table.scan().to_arrow_batch_reader(), model=table.properties[MODEL_PROPERTY])


def keep_user_states(
    retriever: Retriever, states: Table | Path, *, is_ours: Callable[[int], bool] = lambda user_id: True
) -> int:
    """Give a retriever the states of a table or a file, as many as it has room for; how many there were.

    is_ours: for a worker, whether it is asked about this user.  Raises ValueError for states of another model.
    """
    if isinstance(states, Path):
        name, found, batches = str(states), model_of(states), read_states(states)
    else:
        name, found = ".".join(states.name()), states.properties.get(MODEL_PROPERTY, "none")
        batches = iter(states.scan().to_arrow_batch_reader())
    if found != retriever.fingerprint:
        raise ValueError(
            f"{name}: states of the model {retriever.fingerprint} required, found those of {found}; compute them again"
        )
    num_states = 0
    for batch in batches:
        state_ND = batch["state"].flatten().to_numpy().reshape(len(batch), -1).astype(np.float32, copy=False)
        keys = zip(*(batch[name].to_pylist() for name in ("user_id", "timeline_version", "start", "history_end")))
        for (user_id, version, start, end), digest, state_D in zip(keys, batch["digest"].to_pylist(), state_ND):
            if is_ours(user_id):
                retriever.states.put(StateKey(found, user_id, version, start, end), digest, state_D.copy())
                num_states += 1
    return num_states
