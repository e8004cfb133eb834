"""The table `items` of a namespace: which dense id each text id of a log's items has.

    item_id  item_key  first_seen
          0  N55689    2026-11-27 09:12:33
          1  N35729    2026-11-27 09:12:33

Ids are 0, 1, 2, ... in the order of their coming, so that they fit into 32 bits; they are given once and never again,
also if rows of the table were deleted. Two ingests at once cannot give one key two ids, or one id to two keys: the
commit holds only on top of the snapshot that was read, else the table is read again. Ids are committed before the rows
that use them: an ingest that is killed leaves keys without rows at worst. Other columns, features of items say, are
their owner's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.update import SetPropertiesUpdate
from pyiceberg.types import LongType, NestedField, StringType, TimestamptzType

from reqdedup.schema import ITEM_ID
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict, is_outcome_unknown
from reqdedup.storage.iceberg.form import preview
from reqdedup.storage.iceberg.layout import LAYOUT_PROPERTY
from reqdedup.storage.iceberg.manifests import scan_tasks
from reqdedup.storage.iceberg.names import ITEMS_TABLE, make_namespace, split_identifier

if TYPE_CHECKING:
    import polars as pl

ITEM_KEY, FIRST_SEEN = "item_key", "first_seen"
NEXT_ID_PROPERTY = "reqdedup.next-id"
"""The smallest id that no key has had."""

ATTEMPTS = 100
"""Of a commit: each that fails is one that another writer made."""
MAX_WAIT_S = 1.0
MAX_ID = 2**31 - 1
PIECE_ROWS = 2_000_000

_SCHEMA = Schema(
    NestedField(1, ITEM_ID, LongType(), required=True, doc="dense id, given once"),
    NestedField(2, ITEM_KEY, StringType(), required=True, doc="the item's id in the logs"),
    NestedField(3, FIRST_SEEN, TimestamptzType(), required=True, doc="when the key got its id"),
)


def items_identifier(identifier: str) -> str:
    """Name of the vocabulary that an engagement table of this name uses: that of its namespace."""
    return f"{split_identifier(identifier)[0]}.{ITEMS_TABLE}"


def is_vocabulary(table: Table) -> bool:
    """Whether a table is one of keys and ids; it may have further columns."""
    return (
        table.name()[-1] == ITEMS_TABLE
        and LAYOUT_PROPERTY not in table.properties
        and {ITEM_ID, ITEM_KEY} <= set(table.schema().column_names)
    )


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary `name` of a catalog, as it is when it is asked."""

    catalog: Catalog
    name: str

    def check(self) -> None:
        """Raise ValueError if the name is that of a table of other rows."""
        if self.catalog.table_exists(self.name):
            self._load()

    def assign(self, keys: pa.Array) -> np.ndarray:
        """Ids of N distinct keys, [N] int64; those that had none get the next ones, in the order of `keys`.

        When it returns, they are committed. Raises ValueError for more keys than an id of 32 bits can tell apart, and
        for a table of other rows; ConflictError if others change the table all the time.
        """
        table = self._make()
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(MAX_WAIT_S, 0.01 * 2**attempt)))
                table.refresh()
            ids, next_id = _known(table, keys)
            new = np.flatnonzero(ids < 0)
            if not len(new):
                return ids
            ids[new] = next_id + np.arange(len(new))
            if _append(table, keys.take(pa.array(new)), next_id):
                return ids
        raise ConflictError(f"{self.name}: others changed the table {ATTEMPTS} times in a row; ingest again later")

    def keys(self, item_id: np.ndarray) -> np.ndarray:
        """The keys of these items, [N] texts, "" for an id that none has."""
        keys = KeysOf(item_id)
        for piece in _pieces(self.table()):
            keys.look_in(piece)
        return keys.found

    def table(self) -> Table:
        """The table. Raises ValueError if it has other rows, and if it is not there."""
        try:
            return self._load()
        except NoSuchTableError:
            raise ValueError(
                f"table {self.name}: the vocabulary of the items' ids required, found none; ids stay as they are, but "
                "their keys are lost"
            ) from None

    def files(self) -> list[str]:
        """Its data files, for a process that has no catalog."""
        return [task.file.file_path for task in scan_tasks(self.table())]

    def _load(self) -> Table:
        table = self.catalog.load_table(self.name)
        if not is_vocabulary(table):
            raise ValueError(
                f"table {self.name}: a table of items with {ITEM_ID} and {ITEM_KEY} required, found one with columns "
                f"{', '.join(table.schema().column_names)}; rename it, choose another namespace, or have the items' "
                "ids hashed"
            )
        return table

    def _make(self) -> Table:
        try:
            return self._load()
        except NoSuchTableError:
            properties = {"comment": "the keys of the dense item ids of this namespace's tables"}
            make_namespace(self.catalog, split_identifier(self.name)[0])
            try:
                return self.catalog.create_table(self.name, _SCHEMA, properties=properties)
            except TableAlreadyExistsError:
                return self._load()


class KeysOf:
    """Looks for the keys of items, piece by piece. found: [N] texts, "" for an id that no piece had."""

    def __init__(self, item_id: np.ndarray) -> None:
        self.found = np.full(len(item_id), "", object)
        self._wanted = _frame(pa.table({ITEM_ID: np.asarray(item_id, np.int64), "at": np.arange(len(item_id))}))

    def look_in(self, piece: pa.Table) -> None:
        """piece: item_id and item_key of some items."""
        found = _frame(piece).join(self._wanted, on=ITEM_ID, how="inner")
        self.found[found["at"].to_numpy()] = found[ITEM_KEY].to_numpy()


def _frame(table: pa.Table) -> pl.DataFrame:
    import polars as pl  # a tenth of the imports of a worker, which seldom looks for keys

    return pl.DataFrame(table)


def _pieces(table: Table) -> Iterator[pa.Table]:
    """All keys and their ids, in pieces that are long enough for a join with each to pay."""
    if table.current_snapshot() is None:
        return
    scan_tasks(table)  # names a manifest that is damaged
    batches: list[pa.RecordBatch] = []
    for batch in table.scan(selected_fields=(ITEM_ID, ITEM_KEY)).to_arrow_batch_reader():
        batches.append(batch.select([ITEM_ID, ITEM_KEY]))
        if sum(len(one) for one in batches) >= PIECE_ROWS:
            yield pa.Table.from_batches(batches)
            batches = []
    if batches:
        yield pa.Table.from_batches(batches)


def _known(table: Table, keys: pa.Array) -> tuple[np.ndarray, int]:
    """Ids of the keys that have one, else -1, and the smallest id that is free."""
    ids, next_id = np.full(len(keys), -1, np.int64), int(table.properties.get(NEXT_ID_PROPERTY, 0))
    wanted = _frame(pa.table({ITEM_KEY: keys, "at": np.arange(len(keys))}))
    for piece in _pieces(table):
        next_id = max(next_id, 1 + int(piece[ITEM_ID].to_numpy().max(initial=-1)))
        found = _frame(piece).join(wanted, on=ITEM_KEY, how="inner")
        ids[found["at"].to_numpy()] = found[ITEM_ID].to_numpy()
    return ids, next_id


def _append(table: Table, keys: pa.Array, next_id: int) -> bool:
    """Commit these keys with the ids from `next_id` on; False if another writer was faster, or may have been."""
    end = next_id + len(keys)
    if end > MAX_ID:
        raise ValueError(
            f"{'.'.join(table.name())}: at most {MAX_ID:,} keys required, which 32 bits tell apart, found {end:,}; "
            'have the items\' ids hashed (`type = "hash"` in the mapping of ingest, --hash-items of convert)'
        )
    schema = table.schema().as_arrow()
    rows = pa.table(
        {
            ITEM_ID: np.arange(next_id, end),
            ITEM_KEY: keys.cast(pa.string() if keys.nbytes < 2**31 else pa.large_string()),
            FIRST_SEEN: pa.array([datetime.now(UTC)], pa.timestamp("us", tz="UTC")).take(
                pa.array(np.zeros(len(keys), np.int64))
            ),
        },
        schema=pa.schema([schema.field(name) for name in (ITEM_ID, ITEM_KEY, FIRST_SEEN)]),
    )
    # pyiceberg would repeat a commit that came too late, with ids that another key has by now.
    once = preview(table, (SetPropertiesUpdate(updates={TableProperties.COMMIT_NUM_RETRIES: "0"}),))
    try:
        with once.transaction() as transaction:
            transaction.append(rows)
            transaction.set_properties({NEXT_ID_PROPERTY: str(end)})
    except Exception as error:
        if is_conflict(error) or is_outcome_unknown(
            error
        ):  # if it has landed, its keys are found when it is read again
            return False
        raise
    return True
