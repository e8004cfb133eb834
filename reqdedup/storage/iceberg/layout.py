"""The physical forms of an engagement table, and the Iceberg table that each of them lives in.

    layout               partition           order                        sequences             Parquet settings
    ARRIVAL              day(request_ts)     as it arrived                blobs, dictionary     ours
    SHUFFLED             none                random (seeded)              plain lists           pyiceberg's defaults
    SORTED               bucket(N, user_id)  user_id, request_id, item_id plain lists           pyiceberg's defaults
    SORTED_LARGE_PAGES   bucket(N, user_id)  user_id, request_id, item_id plain lists           128 MB pages, zstd 6
    BY_REQUEST           bucket(N, user_id)  user_id, request_id, item_id blobs, dictionary     ours

A table describes itself: the properties `reqdedup.schema`, `reqdedup.layout` and `reqdedup.decode`, column docs,
partition spec and sort order are all that a reader needs.
"""

from __future__ import annotations

import enum
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError, TableAlreadyExistsError
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER, NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform
from pyiceberg.types import (
    BinaryType,
    IcebergType,
    ListType,
    LongType,
    NestedField,
)

from reqdedup.dedup.encoding import BLOB_TYPE, element_type
from reqdedup.display import counted
from reqdedup.schema import KEYS, REQUEST_TS, SCALAR_TYPES, USER_ID, Column, EngagementSchema
from reqdedup.storage.iceberg.decode import blob_doc, decoders
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.form import FORM_SINCE_PROPERTY, TableForm
from reqdedup.storage.iceberg.names import check_free_name, check_location, make_namespace
from reqdedup.storage.iceberg.private import staged_table
from reqdedup.storage.iceberg.settings import WriteSettings, default_settings
from reqdedup.storage.iceberg.stored_types import ICEBERG_TYPES, arrow_of, field_id, iceberg_type_of

SCHEMA_PROPERTY, LAYOUT_PROPERTY, DECODE_PROPERTY = "reqdedup.schema", "reqdedup.layout", "reqdedup.decode"

FORMAT_PROPERTY, FORMAT = "reqdedup.format", 1
"""Number of what the properties named reqdedup.* hold, and how; a table of version 0.1.0 has none and is read as 1."""

MAX_NAMED = 8
"""Columns or differences that an error names."""

DTYPES = {ICEBERG_TYPES[dtype]: dtype for dtype in SCALAR_TYPES}

PROMOTIONS = {("int32", "int64"), ("float32", "float64")}  # that other engines may make


class Layout(enum.Enum):
    """Physical form of an engagement table; all of them hold the same rows and values."""

    ARRIVAL = "arrival"
    SHUFFLED = "shuffled"
    SORTED = "sorted"
    SORTED_LARGE_PAGES = "sorted_large_pages"
    BY_REQUEST = "by_request"

    @property
    def has_blobs(self) -> bool:
        """Sequences are one binary value per row, dictionary-encoded; else plain lists."""
        return self in (Layout.ARRIVAL, Layout.BY_REQUEST)

    @property
    def is_bucketed(self) -> bool:
        """Partitioned by bucket(N, user_id) and in (user_id, request_id, item_id) order inside each file."""
        return self in (Layout.SORTED, Layout.SORTED_LARGE_PAGES, Layout.BY_REQUEST)

    @property
    def has_writer_defaults(self) -> bool:
        """Written exactly as pyiceberg would: the control tables."""
        return self in (Layout.SHUFFLED, Layout.SORTED)


def create_table(
    catalog: Catalog,
    identifier: str,
    schema: EngagementSchema,
    layout: Layout,
    *,
    num_buckets: int = 16,
    location: str | None = None,
    settings: WriteSettings | None = None,
) -> Table:
    """The table `identifier` of this form: as it is with its rows if it is there, else a new one without rows.

    num_buckets: partitions of the bucketed layouts, by hash of user_id.  location: of a new table; else the catalog's.
    settings: how the files of a new table are written; else the defaults of its layout.
    Nothing is ever dropped. Raises ValueError if a table of this name has another form, naming the difference, or if
    reqdedup did not make it; `replace_table` gives it another form together with its new rows.
    """
    check_new_form(identifier, num_buckets)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return make_table(
            catalog, identifier, engagement_form(schema, layout, num_buckets, settings), location=location
        )
    check_same_form(table, schema, layout, num_buckets)
    return table


def check_new_form(identifier: str, num_buckets: int) -> None:
    """Raise ValueError unless a table can have this name and this bucket count."""
    if num_buckets < 1:
        raise ValueError(f"{identifier}: num_buckets must be positive, found {num_buckets}")
    check_free_name(identifier)


def check_same_form(table: Table, schema: EngagementSchema, layout: Layout, num_buckets: int | None) -> None:
    """Raise ValueError unless an engagement table has this form; the difference is named. num_buckets: None for any."""
    differences = form_differences(table, schema, layout, num_buckets)
    if differences:
        raise ValueError(
            f"{'.'.join(table.name())}: is there in another form ({'; '.join(differences)}). Nothing was changed: "
            "choose another name, or ask for the replacement (storage.replace_table, --replace)"
        )


def form_differences(table: Table, schema: EngagementSchema, layout: Layout, num_buckets: int | None) -> list[str]:
    """In which points an engagement table differs from a form. Raises ValueError if reqdedup did not make it."""
    check_engagement_table(table)
    differences = []
    if table_layout(table) is not layout:
        differences.append(f"layout {layout.value} required, found {table_layout(table).value}")
    found = table_buckets(table)
    if layout.is_bucketed and (found is None or found != (num_buckets or found)):
        differences.append(f"{counted(num_buckets or 1, 'bucket')} required, found {found or 'none'}")
    return differences + column_differences(schema.columns, table_schema(table).columns)


def check_engagement_table(table: Table) -> None:
    """Raise ValueError if the table is not one of engagements that reqdedup made."""
    if SCHEMA_PROPERTY not in table.properties or LAYOUT_PROPERTY not in table.properties:
        raise ValueError(f"{'.'.join(table.name())}: exists and is not a reqdedup table; choose another name")


def column_differences(required: Sequence[Column], found: Sequence[Column]) -> list[str]:
    """In which points two lists of columns differ, the first few of them."""
    wanted, own = ({column.name: column for column in columns} for columns in (required, found))
    differences = []
    if missing := [name for name in wanted if name not in own]:
        differences.append(f"columns {', '.join(missing[:MAX_NAMED])} required, found none")
    if more := [name for name in own if name not in wanted]:
        differences.append(f"columns {', '.join(more[:MAX_NAMED])} found, not required")
    for name in [name for name in wanted if name in own]:
        for field in fields(Column):
            one, other = getattr(wanted[name], field.name), getattr(own[name], field.name)
            if one != other:
                one, other = getattr(one, "value", one), getattr(other, "value", other)
                differences.append(f"{field.name} of column {name}: {one!r} required, found {other!r}")
    if not differences and list(wanted) != list(own):
        differences.append(f"columns in the order {', '.join(wanted)} required, found {', '.join(own)}")
    return differences[:MAX_NAMED]


def make_table(catalog: Catalog, identifier: str, form: TableForm, *, location: str | None = None) -> Table:
    """A new table of this form without rows, its namespace made if it is not there.

    Raises ConflictError if another process has made it meanwhile, ValueError for a location with credentials.
    """
    check_location(identifier, location or catalog.properties.get("warehouse"))
    make_namespace(catalog, check_free_name(identifier))
    try:
        return catalog.create_table(
            identifier,
            form.schema,
            location=location,
            partition_spec=form.spec,
            sort_order=form.sort_order,
            properties=form.properties,
        )
    except TableAlreadyExistsError as error:
        raise ConflictError(
            f"{identifier}: another process made this table in the meantime; nothing was changed. Repeat the call, "
            "which then meets that table"
        ) from error


def stage_table(catalog: Catalog, identifier: str, form: TableForm, *, location: str | None = None) -> Table:
    """A table of this form that its first commit makes: a killed process leaves none. Its namespace is made here."""
    check_location(identifier, location or catalog.properties.get("warehouse"))
    make_namespace(catalog, check_free_name(identifier))
    return staged_table(
        catalog.create_table_transaction(
            identifier,
            form.schema,
            location=location,
            partition_spec=form.spec,
            sort_order=form.sort_order,
            properties=form.properties,
        )
    )


def engagement_form(
    schema: EngagementSchema, layout: Layout, num_buckets: int, write_settings: WriteSettings | None = None
) -> TableForm:
    """The form of an engagement table of these columns in this layout."""
    settings: dict[str, str] = {}
    if write_settings is not None or not layout.has_writer_defaults:
        settings = (write_settings or default_settings(layout, schema)).properties()
    iceberg_schema = engagement_iceberg_schema(schema, layout)
    return TableForm(
        schema=iceberg_schema,
        spec=_partition_spec(iceberg_schema, layout, num_buckets),
        sort_order=key_sort_order(iceberg_schema) if layout.is_bucketed else UNSORTED_SORT_ORDER,
        properties=table_properties(schema, layout) | settings,
    )


def table_schema(table: Table, snapshot_id: int | None = None) -> EngagementSchema:
    """The engagement schema that the table carries, or the columns it had at a snapshot; ValueError if it has none.

    A snapshot says its columns itself if `promote` added some; else they are those of its Iceberg schema. Types are the
    wider ones that another engine may have given them.
    """
    where = f"{'.'.join(table.name())}: table property {SCHEMA_PROPERTY}"
    own = EngagementSchema.from_json(_property(table, SCHEMA_PROPERTY), where=where)
    snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
    if snapshot is None:
        return EngagementSchema(widened(own.columns, table.schema()))
    if (snapshot.sequence_number or 0) < int(table.properties.get(FORM_SINCE_PROPERTY, 0)):
        raise ValueError(
            f"{'.'.join(table.name())}: a snapshot in the form that the table has now required, found {snapshot_id} "
            "from before its columns or layout were replaced; read it with `table.scan(snapshot_id=...)` of pyiceberg"
        )
    found = table.schemas().get(snapshot.schema_id) if snapshot.schema_id is not None else None
    text = snapshot.summary.get(SCHEMA_PROPERTY) if snapshot.summary is not None else None
    if text is not None:
        own = EngagementSchema.from_json(text, where=f"{where} of snapshot {snapshot_id}")
    elif found is not None:
        own = own.select(set(found.column_names) & set(own.names))
    return EngagementSchema(widened(own.columns, found or table.schema()))


def widened(columns: Sequence[Column], schema: Schema) -> tuple[Column, ...]:
    """The columns with the wider types that Iceberg's schema may give them meanwhile: long for int,
    double for float."""
    types = {field.name: DTYPES.get(field.field_type, "") for field in schema.fields}
    scalars = [column for column in columns if not column.is_blob]
    wider = {c.name for c in scalars if (c.dtype, types.get(c.name)) in PROMOTIONS}
    return tuple(replace(column, dtype=types[column.name]) if column.name in wider else column for column in columns)


def table_layout(table: Table) -> Layout:
    """The layout that the table was created for. Raises ValueError if it is not a reqdedup table."""
    return Layout(_property(table, LAYOUT_PROPERTY))


def table_buckets(table: Table, spec_id: int | None = None) -> int | None:
    """N of the table's partition spec bucket(N, user_id), or of an earlier spec; None if it is of another kind."""
    parts = (table.spec() if spec_id is None else table.specs()[spec_id]).fields
    if len(parts) != 1 or not isinstance(parts[0].transform, BucketTransform):
        return None
    if table.schema().find_column_name(parts[0].source_id) != USER_ID:
        return None
    return parts[0].transform.num_buckets


def buckets_of(user_id: np.ndarray, num_buckets: int) -> np.ndarray:
    """The Iceberg bucket of each user, [N] int32: murmur3 of the id modulo num_buckets, as every engine computes it."""
    transform = BucketTransform(num_buckets).pyarrow_transform(LongType())
    return np.asarray(transform(pa.array(user_id, pa.int64())).to_numpy(zero_copy_only=False), np.int32)


def engagement_iceberg_schema(schema: EngagementSchema, layout: Layout) -> Schema:
    """Iceberg schema of these columns in this layout, with a doc per column."""
    iceberg_fields, ids = [], itertools.count(len(schema.columns) + 1)
    for number, column in enumerate(schema.columns, start=1):
        field_type, doc = iceberg_type(column, layout, next_id=ids.__next__), column.doc
        if column.is_blob and layout.has_blobs:
            doc = blob_doc(column)
        iceberg_fields.append(
            NestedField(number, column.name, field_type, required=not column.nullable, doc=doc or None)
        )
    return Schema(*iceberg_fields)


def iceberg_type(column: Column, layout: Layout, *, next_id: Callable[[], int]) -> IcebergType:
    """Iceberg type of one column; next_id: gives the ids of what is inside."""
    if not column.is_blob:
        return iceberg_type_of(column.dtype, next_id)
    if layout.has_blobs:
        return BinaryType()
    return ListType(element_id=next_id(), element_type=ICEBERG_TYPES[column.dtype], element_required=True)


def file_schema(table: Table, schema: EngagementSchema, layout: Layout) -> pa.Schema:
    """Arrow schema of the table's data files, with the Iceberg field ids that Parquet needs.

    Raises ValueError for columns that the Iceberg table does not have (any more), or not in the layout's form.
    """
    arrow_fields = []
    gone = sorted({*schema.names} - {*table.schema().column_names}, key=schema.names.index)
    if gone:
        raise ValueError(
            f"{'.'.join(table.name())}: columns {', '.join(gone)} required, found "
            f"{', '.join(table.schema().column_names)}; another engine renamed or dropped them: give them their names "
            "back there, or add them again (their values are null then)"
        )
    for column in schema.columns:
        field = table.schema().find_field(column.name)
        if not column.is_blob:
            arrow_type = arrow_of(field.field_type) if column.is_stored else element_type(column)
        elif layout.has_blobs:
            arrow_type = BLOB_TYPE
        else:
            element = pa.field("element", element_type(column), nullable=False)
            if not isinstance(field.field_type, ListType):
                raise ValueError(f"{table.name()}: column {column.name} must be a list, found {field.field_type}")
            arrow_type = pa.list_(element.with_metadata(field_id(field.field_type.element_id)))
        arrow_fields.append(
            pa.field(column.name, arrow_type, nullable=column.nullable, metadata=field_id(field.field_id))
        )
    return pa.schema(arrow_fields)


def key_sort_order(schema: Schema) -> SortOrder:
    """Sort order (user_id, request_id, item_id), all ascending; the columns that are there."""
    names = [name for name in KEYS if name in schema.column_names]
    return SortOrder(
        *[
            SortField(schema.find_field(name).field_id, IdentityTransform(), SortDirection.ASC, NullOrder.NULLS_FIRST)
            for name in names
        ]
    )


def key_order_id(table: Table) -> int | None:
    """The id that the table gives the order of its keys; None if no order that it knows is this one."""
    wanted = key_sort_order(table.schema()).fields
    found = [order.order_id for order in table.sort_orders().values() if order.fields == wanted]
    return max(found, default=None)


def bucket_spec(schema: Schema, num_buckets: int) -> PartitionSpec:
    """Partition spec bucket(num_buckets, user_id)."""
    source = schema.find_field(USER_ID).field_id
    return PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, BucketTransform(num_buckets), "user_bucket"))


def table_properties(schema: EngagementSchema, layout: Layout) -> dict[str, str]:
    """What the table says about itself; how its files are written, `WriteSettings` says."""
    properties = {
        FORMAT_PROPERTY: str(FORMAT),
        SCHEMA_PROPERTY: schema.to_json(),
        LAYOUT_PROPERTY: layout.value,
    }
    if layout.has_blobs:
        properties[DECODE_PROPERTY] = json.dumps({column.name: decoders(column) for column in schema.blobs})
    if layout.has_writer_defaults:
        return properties
    # Bounds of blobs and of whole sequences say nothing, and would put kilobytes of them into every footer.
    for column in schema.blobs:
        name = column.name if layout.has_blobs else f"{column.name}.element"
        properties[f"write.metadata.metrics.column.{name}"] = "none"
    return properties


def _partition_spec(schema: Schema, layout: Layout, num_buckets: int) -> PartitionSpec:
    if layout.is_bucketed:
        return bucket_spec(schema, num_buckets)
    if layout is Layout.ARRIVAL:
        source = schema.find_field(REQUEST_TS).field_id
        return PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, DayTransform(), "request_day"))
    return PartitionSpec()


def check_table_format(table: Table) -> None:
    """Raise ValueError if the table's own properties are those of a newer version."""
    found = table.properties.get(FORMAT_PROPERTY, str(FORMAT))
    if found != str(FORMAT):
        raise ValueError(
            f"{'.'.join(table.name())}: table property {FORMAT_PROPERTY} = {FORMAT} required, found {found}; a newer "
            "reqdedup made the table: read it with that one"
        )


def _property(table: Table, name: str) -> str:
    check_table_format(table)
    if name not in table.properties:
        raise ValueError(
            f"{'.'.join(table.name())}: table property {name} required, found none; only tables made by "
            "reqdedup.storage.create_table carry it (`reqdedup convert` rewrites others)"
        )
    return table.properties[name]
