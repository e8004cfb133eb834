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
import json

import numpy as np
import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER, NullOrder, SortDirection, SortField, SortOrder
from pyiceberg.transforms import BucketTransform, DayTransform, IdentityTransform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from reqdedup.dedup.encoding import BLOB_TYPE, element_type
from reqdedup.schema import KEYS, REQUEST_TS, USER_ID, Column, EngagementSchema
from reqdedup.storage.iceberg.decode import blob_doc, decoders
from reqdedup.storage.iceberg.names import check_free_name

SCHEMA_PROPERTY, LAYOUT_PROPERTY, DECODE_PROPERTY = "reqdedup.schema", "reqdedup.layout", "reqdedup.decode"

ZSTD_LEVEL = 6
"""Of our own layouts: a tenth fewer bytes than level 3 at 16K tokens for some tenths of a CPU second (docs/decisions/0008)."""

LARGE_PAGE_BYTES = 128 * 2**20

_ICEBERG_TYPES: dict[str, IcebergType] = {
    "bool": BooleanType(),
    "int32": IntegerType(),
    "int64": LongType(),
    "float32": FloatType(),
    "float64": DoubleType(),
    "string": StringType(),
    "timestamp": TimestamptzType(),
}


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
) -> Table:
    """The table `identifier` in this layout, created where it is not there yet.

    num_buckets: partitions of the bucketed layouts, by hash of user_id.  location: of a new table; else the catalog's.
    An existing table of the same schema, layout and bucket count is returned with its rows. One that differs is dropped
    with its files and created anew. Raises ValueError if `identifier` is a table that reqdedup did not make, or the name
    of the rejected rows.
    """
    if num_buckets < 1:
        raise ValueError(f"{identifier}: num_buckets must be positive, found {num_buckets}")
    namespace = check_free_name(identifier)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(namespace)
    else:
        if LAYOUT_PROPERTY not in table.properties:
            raise ValueError(f"{identifier}: exists and is not a reqdedup table; choose another name")
        wanted = (schema, layout, num_buckets if layout.is_bucketed else None)
        if (table_schema(table), table_layout(table), table_buckets(table)) == wanted:
            return table
        catalog.purge_table(identifier)
    iceberg_schema = engagement_iceberg_schema(schema, layout)
    return catalog.create_table(
        identifier,
        iceberg_schema,
        location=location,
        partition_spec=_partition_spec(iceberg_schema, layout, num_buckets),
        sort_order=key_sort_order(iceberg_schema) if layout.is_bucketed else UNSORTED_SORT_ORDER,
        properties=table_properties(schema, layout),
    )


def table_schema(table: Table, snapshot_id: int | None = None) -> EngagementSchema:
    """The engagement schema that the table carries, or the columns it had at a snapshot; ValueError where it has none.

    A snapshot says its columns itself where `promote` added some; else they are those of its Iceberg schema.
    """
    schema = EngagementSchema.from_json(_property(table, SCHEMA_PROPERTY))
    snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
    if snapshot is None:
        return schema
    text = snapshot.summary.get(SCHEMA_PROPERTY) if snapshot.summary is not None else None
    if text is not None:
        return EngagementSchema.from_json(text)
    found = table.schemas().get(snapshot.schema_id) if snapshot.schema_id is not None else None
    return schema if found is None else schema.select(set(found.column_names) & set(schema.names))


def table_layout(table: Table) -> Layout:
    """The layout that the table was created for. Raises ValueError where it is not a reqdedup table."""
    return Layout(_property(table, LAYOUT_PROPERTY))


def table_buckets(table: Table, spec_id: int | None = None) -> int | None:
    """N of the table's partition spec bucket(N, user_id), or of an earlier spec; None where it is of another kind."""
    fields = (table.spec() if spec_id is None else table.specs()[spec_id]).fields
    if len(fields) != 1 or not isinstance(fields[0].transform, BucketTransform):
        return None
    if table.schema().find_column_name(fields[0].source_id) != USER_ID:
        return None
    return fields[0].transform.num_buckets


def buckets_of(user_id: np.ndarray, num_buckets: int) -> np.ndarray:
    """The Iceberg bucket of each user, [N] int32: murmur3 of the id modulo num_buckets, as every engine computes it."""
    transform = BucketTransform(num_buckets).pyarrow_transform(LongType())
    return np.asarray(transform(pa.array(user_id, pa.int64())).to_numpy(zero_copy_only=False), np.int32)


def engagement_iceberg_schema(schema: EngagementSchema, layout: Layout) -> Schema:
    """Iceberg schema of these columns in this layout, with a doc per column."""
    fields = []
    for field_id, column in enumerate(schema.columns, start=1):
        field_type, doc = iceberg_type(column, layout, element_id=len(schema.columns) + field_id), column.doc
        if column.is_blob and layout.has_blobs:
            doc = blob_doc(column)
        fields.append(NestedField(field_id, column.name, field_type, required=not column.nullable, doc=doc or None))
    return Schema(*fields)


def iceberg_type(column: Column, layout: Layout, *, element_id: int) -> IcebergType:
    """Iceberg type of one column; `element_id` is used where it is a plain list."""
    if not column.is_blob:
        return _ICEBERG_TYPES[column.dtype]
    if layout.has_blobs:
        return BinaryType()
    return ListType(element_id=element_id, element_type=_ICEBERG_TYPES[column.dtype], element_required=True)


def file_schema(table: Table, schema: EngagementSchema, layout: Layout) -> pa.Schema:
    """Arrow schema of the table's data files, with the Iceberg field ids that Parquet needs.

    Raises ValueError for columns that the Iceberg table does not have (any more), or not in the layout's form.
    """
    fields = []
    gone = [name for name in schema.names if name not in table.schema().column_names]
    if gone:
        raise ValueError(
            f"{'.'.join(table.name())}: columns {', '.join(gone)} required, found {', '.join(table.schema().column_names)}; another "
            "engine renamed or dropped them: give them their names back there"
        )
    for column in schema.columns:
        field = table.schema().find_field(column.name)
        if not column.is_blob:
            arrow_type = element_type(column)
        elif layout.has_blobs:
            arrow_type = BLOB_TYPE
        else:
            element = pa.field("element", element_type(column), nullable=False)
            if not isinstance(field.field_type, ListType):
                raise ValueError(f"{table.name()}: column {column.name} must be a list, found {field.field_type}")
            arrow_type = pa.list_(element.with_metadata(_field_id(field.field_type.element_id)))
        fields.append(pa.field(column.name, arrow_type, nullable=column.nullable, metadata=_field_id(field.field_id)))
    return pa.schema(fields)


def key_sort_order(schema: Schema) -> SortOrder:
    """Sort order (user_id, request_id, item_id), all ascending; the columns that are there."""
    names = [name for name in KEYS if name in schema.column_names]
    return SortOrder(
        *[
            SortField(schema.find_field(name).field_id, IdentityTransform(), SortDirection.ASC, NullOrder.NULLS_FIRST)
            for name in names
        ]
    )


def bucket_spec(schema: Schema, num_buckets: int) -> PartitionSpec:
    """Partition spec bucket(num_buckets, user_id)."""
    source = schema.find_field(USER_ID).field_id
    return PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, BucketTransform(num_buckets), "user_bucket"))


def table_properties(schema: EngagementSchema, layout: Layout) -> dict[str, str]:
    """What the table says about itself, and the settings another writer needs to come close to ours."""
    properties = {SCHEMA_PROPERTY: schema.to_json(), LAYOUT_PROPERTY: layout.value}
    if layout.has_blobs:
        properties[DECODE_PROPERTY] = json.dumps({column.name: decoders(column) for column in schema.blobs})
    if layout.has_writer_defaults:
        return properties
    properties |= {
        "write.parquet.compression-codec": "zstd",
        "write.parquet.compression-level": str(ZSTD_LEVEL),
    }
    if layout is Layout.SORTED_LARGE_PAGES:
        properties["write.parquet.page-size-bytes"] = str(LARGE_PAGE_BYTES)
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


def _property(table: Table, name: str) -> str:
    if name not in table.properties:
        raise ValueError(
            f"{'.'.join(table.name())}: table property {name} required, found none; only tables made by "
            "reqdedup.storage.create_table carry it (`reqdedup convert` rewrites others)"
        )
    return table.properties[name]


def _field_id(field_id: int) -> dict[bytes, bytes]:
    return {b"PARQUET:field_id": str(field_id).encode()}
