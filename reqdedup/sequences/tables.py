"""The tables that sequences are made of, and what each of them says about itself.

    raw_events        an event as delivered; day(arrival_ts), in the order of delivery, which `position` numbers
    rejected_events   what was delivered and is no event, with reason and position
    user_events       the timeline; bucket(N, user_id), month(arrival_ts); user_id, timeline_index

What a table has been brought to (a position, a watermark, a version) is a property of the table and of the snapshot
that brought it there, set in the commit that adds the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform, MonthTransform
from pyiceberg.types import FixedType, IcebergType, LongType, NestedField, StringType

from reqdedup.sequences.definition import (
    ARRIVAL_TS,
    EVENT_ID,
    EVENT_TS,
    EVENT_TYPE,
    ITEM,
    USER,
    EventLog,
    SequenceDefinition,
    check_together,
    computed_of,
    enrichments_of,
)
from reqdedup.storage.iceberg.errors import ConflictError, is_conflict
from reqdedup.storage.iceberg.layout import DTYPES
from reqdedup.storage.iceberg.names import make_namespace
from reqdedup.storage.iceberg.row_files import NO_RETRIES

RAW_TABLE, REJECTED_TABLE, TIMELINE_TABLE = "raw_events", "rejected_events", "user_events"
POSITION, INDEX, VERSION = "position", "timeline_index", "timeline_version"
REJECTED_BY = "write_id"

LOG_PROPERTY, RAW_PROPERTY, TIMELINE_PROPERTY = "reqdedup.event-log", "reqdedup.delivered", "reqdedup.timeline"

_TYPES: dict[str, IcebergType] = {dtype: kind for kind, dtype in DTYPES.items()}
_DELTA, _PLAIN = "DELTA_BINARY_PACKED", "PLAIN"

_BOUNDED = (USER, ITEM, EVENT_TYPE, EVENT_TS, ARRIVAL_TS, POSITION, INDEX)
"""Columns whose bounds manifests have, for what looks for some rows; those of all columns would be several times as
much to read and write in every run."""

RAW_ENCODINGS = {EVENT_ID: _PLAIN, POSITION: _DELTA, ARRIVAL_TS: _DELTA, EVENT_TS: _DELTA}
TIMELINE_ENCODINGS = {EVENT_ID: _PLAIN, INDEX: _DELTA, ARRIVAL_TS: _DELTA, EVENT_TS: _DELTA}

_DOCS = {
    EVENT_ID: "names an event of a user; a later delivery of the same is dropped",
    USER: "whose event it is",
    ITEM: "what it is about, null if nothing",
    EVENT_TYPE: "one of the types in the table property reqdedup.event-log",
    EVENT_TS: "when it happened, UTC, as the client says",
    ARRIVAL_TS: "when it was delivered, UTC; never falls in the order of delivery",
    POSITION: "number of the delivered event, from 0, the rejected ones counted",
}

REJECTED_SCHEMA = Schema(
    NestedField(1, "reason", StringType(), required=True, doc="why it is no event"),
    NestedField(2, "source", StringType(), required=True, doc="file or name of the stream that it came from"),
    NestedField(3, "source_row", LongType(), required=True, doc="row of the source, the first is 0"),
    NestedField(4, POSITION, LongType(), required=True, doc=_DOCS[POSITION]),
    NestedField(5, USER, LongType(), required=False, doc="whose it is, null if that cannot be read"),
    NestedField(6, "raw", StringType(), required=False, doc="the row as JSON, cut if it is long"),
    NestedField(
        7, REJECTED_BY, StringType(), required=False, doc="append that brought it: as its snapshot of raw_events"
    ),
)


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """How far `raw_events` is. next_position: of the next event.  arrival_us: latest arrival [us since 1970].

    first_position, write_id: of the append that came last; empty if it was of an earlier version.
    """

    next_position: int = 0
    arrival_us: int = 0
    first_position: int = 0
    write_id: str = ""


@dataclass(frozen=True, kw_only=True)
class TimelineState:
    """What a snapshot of the timeline holds.

    version: of the timeline.  position: the watermark: events before it are in, those from it on are not.
    arrival_us: latest arrival before the watermark.  kept_from_us: what arrived before is beyond the retention: of
    those events only the numbers are left.  definitions: canonical JSON of each.
    """

    version: int
    position: int = 0
    arrival_us: int = 0
    kept_from_us: int = 0
    definitions: tuple[str, ...] = ()

    def parsed(self) -> list[SequenceDefinition]:
        return [SequenceDefinition.from_json(text) for text in self.definitions]

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return json.dumps(self.plain(), separators=(",", ":"))


def raw_schema(log: EventLog) -> Schema:
    fields = [
        NestedField(number, name, _TYPES[dtype], required=name not in {ITEM, *log.columns}, doc=_DOCS.get(name))
        for number, (name, dtype) in enumerate({**log.dtypes, POSITION: "int64"}.items(), start=1)
    ]
    return Schema(*fields)


def raw_table(catalog: Catalog, namespace: str, log: EventLog) -> Table:
    """The table `raw_events` for a log of this form, made if it is not there; see `continue_log` if it is."""
    identifier = f"{namespace}.{RAW_TABLE}"
    schema = raw_schema(log)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        make_namespace(catalog, namespace)
        day = PartitionField(
            schema.find_field(ARRIVAL_TS).field_id, PARTITION_FIELD_ID_START, DayTransform(), "arrival_day"
        )
        return catalog.create_table(
            identifier,
            schema,
            partition_spec=PartitionSpec(day),
            properties={
                **_properties(schema),
                LOG_PROPERTY: log.to_json(),
                RAW_PROPERTY: json.dumps(asdict(Delivered())),
            },
        )
    continue_log(catalog, namespace, table, log)
    return table


def _properties(schema: Schema) -> dict[str, str]:
    bounded = [name for name in _BOUNDED if name in schema.column_names]
    return {
        **NO_RETRIES,
        TableProperties.DEFAULT_WRITE_METRICS_MODE: "none",
        **{f"{TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX}.{name}": "full" for name in bounded},
    }


def published_log(catalog: Catalog, namespace: str) -> EventLog | None:
    """The log whose events were delivered; None before the first."""
    identifier = f"{namespace}.{RAW_TABLE}"
    return log_of(catalog.load_table(identifier)) if catalog.table_exists(identifier) else None


def check_log(catalog: Catalog, namespace: str, log: EventLog) -> tuple[str, ...]:
    """What this log would add to the one that is there, one line each.

    Raises ValueError if it lacks something of that one, or if a new column has the name of an enrichment's.
    """
    old = published_log(catalog, namespace)
    added = log.added_to(old) if old is not None else ()
    if added and catalog.table_exists(f"{namespace}.{TIMELINE_TABLE}"):
        for one in state_of(load_timeline(catalog, namespace)).parsed():
            one.validate(log)
    return added


def continue_log(catalog: Catalog, namespace: str, table: Table, log: EventLog) -> None:
    """Give `raw_events` the types and columns that the log has beyond the table's, in one commit.

    The timeline takes them up with its next version: see `batch.backfill`. Raises as `check_log` does, ConflictError if
    another process changed the table meanwhile.
    """
    if not check_log(catalog, namespace, log):
        return
    try:
        with table.transaction() as transaction:
            add_optional_columns(transaction, raw_schema(log))
            transaction.set_properties({LOG_PROPERTY: log.to_json()})
    except Exception as error:
        if is_conflict(error):
            raise ConflictError(f"{namespace}.{RAW_TABLE}: another process changed it; run it again") from error
        raise


def add_optional_columns(transaction: Transaction, wanted: Schema) -> None:
    """Put the columns behind that the table has not; rows that are there have none of them."""
    has = transaction.table_metadata.schema().column_names
    new = [one for one in wanted.fields if one.name not in has]
    if new:
        with transaction.update_schema() as update:
            for one in new:
                update.add_column(one.name, one.field_type, doc=one.doc)


def timeline_dtypes(
    log: EventLog, definitions: Sequence[SequenceDefinition], enriched: Mapping[str, str]
) -> dict[str, str]:
    """The columns of the timeline and their dtypes. enriched: those of the enrichments' columns."""
    return {
        USER: "int64",
        INDEX: "int64",
        VERSION: "int32",
        **{name: dtype for name, dtype in log.dtypes.items() if name != USER},
        EVENT_TYPE: "int32",
        **{name: enriched[name] for one in enrichments_of(definitions) for name in one.columns},
        **{name: dtype for one in computed_of(definitions) for name, dtype in one.columns.items()},
        **{one.rank_column: "int32" for one in sorted(definitions, key=lambda one: one.name)},
    }


def timeline_schema(log: EventLog, definitions: Sequence[SequenceDefinition], enriched: Mapping[str, str]) -> Schema:
    docs = _DOCS | {
        INDEX: "number of the event in the user's timeline, from 0, in the order of arrival",
        VERSION: "version of the timeline that wrote this row; the table property says which one the table holds",
        EVENT_TYPE: "place of the type in the types of the table property reqdedup.event-log",
    }
    docs |= {one.rank_column: f"events of {one.name} among the user's up to this one" for one in definitions}
    required = {USER, INDEX, VERSION, EVENT_ID, EVENT_TYPE, EVENT_TS, ARRIVAL_TS}
    return Schema(
        *(
            NestedField(number, name, iceberg_type(dtype), required=name in required, doc=docs.get(name))
            for number, (name, dtype) in enumerate(timeline_dtypes(log, definitions, enriched).items(), start=1)
        )
    )


def make_timeline(
    catalog: Catalog,
    namespace: str,
    log: EventLog,
    definitions: Sequence[SequenceDefinition],
    enriched: Mapping[str, str],
    num_buckets: int,
) -> Table:
    """A new table `user_events` without rows."""
    check_together(log, definitions)
    schema = timeline_schema(log, definitions, enriched)
    user, index, arrival = (schema.find_field(name).field_id for name in (USER, INDEX, ARRIVAL_TS))
    state = TimelineState(version=1, definitions=texts(definitions))
    return catalog.create_table(
        f"{namespace}.{TIMELINE_TABLE}",
        schema,
        partition_spec=PartitionSpec(
            PartitionField(user, PARTITION_FIELD_ID_START, BucketTransform(num_buckets), "user_bucket"),
            PartitionField(arrival, PARTITION_FIELD_ID_START + 1, MonthTransform(), "arrival_month"),
        ),
        sort_order=SortOrder(SortField(user, IdentityTransform()), SortField(index, IdentityTransform())),
        properties={
            **_properties(schema),
            LOG_PROPERTY: log.to_json(),
            TIMELINE_PROPERTY: state.text(),
        },
    )


def texts(definitions: Sequence[SequenceDefinition]) -> tuple[str, ...]:
    """Canonical JSON of the definitions, in order of their names."""
    return tuple(one.to_json() for one in sorted(definitions, key=lambda one: one.name))


def load_timeline(catalog: Catalog, namespace: str) -> Table:
    """Raises ValueError if there is none."""
    identifier = f"{namespace}.{TIMELINE_TABLE}"
    try:
        return catalog.load_table(identifier)
    except NoSuchTableError:
        raise ValueError(
            f"{identifier}: a timeline required, found none; make it with `reqdedup sequences advance`"
        ) from None


def load_raw(catalog: Catalog, namespace: str) -> Table:
    """Raises ValueError if there is none."""
    identifier = f"{namespace}.{RAW_TABLE}"
    try:
        return catalog.load_table(identifier)
    except NoSuchTableError:
        raise ValueError(f"{identifier}: delivered events required, found none; append some first") from None


def log_of(table: Table) -> EventLog:
    return EventLog.from_json(table.properties[LOG_PROPERTY])


def delivered_of(table: Table) -> Delivered:
    return Delivered(**json.loads(table.properties[RAW_PROPERTY]))


def state_of(table: Table, version: int | None = None, snapshot_id: int | None = None) -> TimelineState:
    """What the table holds, or, with its snapshot, another version. Of an earlier one the table says it (`kept_state`),
    of a staged one the snapshot; that of another version if neither does."""
    text = table.properties[TIMELINE_PROPERTY]
    if version is not None:
        snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
        summary = snapshot.summary if snapshot is not None else None
        said = summary.get(TIMELINE_PROPERTY) if summary is not None else None
        text = table.properties.get(_of_version(version)) or said or text
    found = json.loads(text)
    return replace(TimelineState(version=0), **{**found, "definitions": tuple(found["definitions"])})


def kept_state(state: TimelineState) -> dict[str, str]:
    """Properties of the table by which a version is known when it is no longer the one that readers see: the snapshot
    that it ends with may be that of a deletion, or of another engine, which says nothing of it."""
    return {_of_version(state.version): state.text()}


def _of_version(version: int) -> str:
    return f"{TIMELINE_PROPERTY}-v{version}"


def num_buckets_of(table: Table) -> int:
    transform = table.spec().fields[0].transform
    assert isinstance(transform, BucketTransform)
    return transform.num_buckets


def arrow_schema(table: Table) -> pa.Schema:
    return schema_to_pyarrow(table.schema(), include_field_ids=False)


def arrow_schema_of(dtypes: Mapping[str, str]) -> pa.Schema:
    """Arrow's schema of columns of these dtypes."""
    fields = [NestedField(number, name, iceberg_type(dtype)) for number, (name, dtype) in enumerate(dtypes.items(), 1)]
    return schema_to_pyarrow(Schema(*fields), include_field_ids=False)


def iceberg_type(dtype: str) -> IcebergType:
    """Of a dtype of the schema, or `fixed[N]`, N bytes."""
    return FixedType(int(dtype[6:-1])) if dtype.startswith("fixed[") else _TYPES[dtype]


def dtype_of(kind: IcebergType) -> str:
    """The inverse of `iceberg_type`."""
    return f"fixed[{len(kind)}]" if isinstance(kind, FixedType) else DTYPES[kind]
