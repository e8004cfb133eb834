"""The side table of request features: one row per request, in the buckets and order of the main table.

    user_id, request_id        keys, as in the main table
    one column per feature     scalars plain, sequences and vectors as blobs

A feature added later goes here instead of into the main table: Iceberg has no column families, so a new column there
means rewriting every row, while a bucket join with this table reads as if it had always been there. The columns are
described by `Column`s, kept as JSON in the table property `reqdedup.features`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import NestedField

from reqdedup.schema import REQUEST_ID, USER_ID, Column, EngagementSchema, Kind, Level
from reqdedup.storage.buckets import check_sorted
from reqdedup.storage.decode import blob_doc, decoders
from reqdedup.storage.layout import (
    DECODE_PROPERTY,
    LAYOUT_PROPERTY,
    ZSTD_LEVEL,
    Layout,
    bucket_spec,
    iceberg_type,
    key_sort_order,
    table_buckets,
    table_schema,
)
from reqdedup.storage.reader import FileSource
from reqdedup.storage.streams import REQUEST_KEY

FEATURES_PROPERTY = "reqdedup.features"
_KEY_COLUMNS = (
    Column(name=USER_ID, dtype="int64", level=Level.KEY, doc="user of the request"),
    Column(name=REQUEST_ID, dtype="int64", level=Level.KEY, doc="the request, as in the main table"),
)


@dataclass(frozen=True)
class FeatureSchema:
    """Columns of a feature table: user_id, request_id, then the features, all request-level."""

    columns: tuple[Column, ...]

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def blobs(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.is_blob)

    @property
    def features(self) -> tuple[Column, ...]:
        return self.columns[len(_KEY_COLUMNS) :]


class FeatureSource(FileSource):
    """One snapshot of a feature table, one row per request; blobs as dictionaries.

    snapshot_id: which snapshot; None means the newest of the table as it was loaded.
    """

    def __init__(self, table: Table, *, snapshot_id: int | None = None) -> None:
        current = table.current_snapshot()
        self.snapshot_id = snapshot_id if snapshot_id is not None or current is None else current.snapshot_id
        tasks = [] if self.snapshot_id is None else list(table.scan(snapshot_id=self.snapshot_id).plan_files())
        files = sorted((task.file.partition[0], task.file.file_path) for task in tasks)
        super().__init__(
            [path for _, path in files],
            as_engagement_schema(feature_schema(table)),
            io=table.io,
            buckets=[bucket for bucket, _ in files],
            num_buckets=table_buckets(table),
        )


def as_engagement_schema(schema: FeatureSchema) -> EngagementSchema:
    """For the file reader and writer, which ask a schema for columns, names and blobs: a FeatureSchema has them.

    It cannot be an EngagementSchema, since a feature table has no items.
    """
    return cast(EngagementSchema, schema)


def is_feature_table(table: Table) -> bool:
    return FEATURES_PROPERTY in table.properties


def feature_schema(table: Table) -> FeatureSchema:
    """The columns of a feature table. Raises ValueError for any other table."""
    if not is_feature_table(table):
        raise ValueError(
            f"{'.'.join(table.name())}: table property {FEATURES_PROPERTY} required, found none; "
            "make the table with create_feature_table"
        )
    rows = json.loads(table.properties[FEATURES_PROPERTY])
    columns = [Column(**{**row, "level": Level(row["level"]), "kind": Kind(row["kind"])}) for row in rows]
    return FeatureSchema((*_KEY_COLUMNS, *columns))


def create_feature_table(
    catalog: Catalog,
    identifier: str,
    main_table: Table,
    feature_columns: Sequence[Column],
    *,
    location: str | None = None,
) -> Table:
    """The table for these features of `main_table`'s requests, with its buckets; created where it is not there yet.

    An existing table of the same features and bucket count is returned with its rows; one that differs is dropped with
    its files and created anew. Raises ValueError where `main_table` is not bucketed and sorted, where a feature is not
    request-level or has a name of the main table, and where `identifier` is no feature table.
    """
    num_buckets = check_sorted(main_table, REQUEST_KEY)
    _check_features(main_table, feature_columns)
    schema = FeatureSchema((*_KEY_COLUMNS, *feature_columns))
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(identifier.rpartition(".")[0])
    else:
        if not is_feature_table(table):
            raise ValueError(f"{identifier}: exists and is no feature table; choose another name")
        if (feature_schema(table), table_buckets(table)) == (schema, num_buckets):
            return table
        catalog.purge_table(identifier)
    fields = [
        NestedField(
            field_id,
            column.name,
            iceberg_type(column, Layout.BY_REQUEST, element_id=0),
            required=not column.nullable,
            doc=(blob_doc(column) if column.is_blob else column.doc) or None,
        )
        for field_id, column in enumerate(schema.columns, start=1)
    ]
    iceberg_schema = Schema(*fields)
    features = [{**asdict(c), "level": c.level.value, "kind": c.kind.value} for c in feature_columns]
    properties = {
        FEATURES_PROPERTY: json.dumps(features, separators=(",", ":")),
        LAYOUT_PROPERTY: Layout.BY_REQUEST.value,
        DECODE_PROPERTY: json.dumps({column.name: decoders(column) for column in schema.blobs}),
        "write.parquet.compression-codec": "zstd",
        "write.parquet.compression-level": str(ZSTD_LEVEL),
    }
    properties |= {f"write.metadata.metrics.column.{c.name}": "none" for c in feature_columns if c.is_blob}
    return catalog.create_table(
        identifier,
        iceberg_schema,
        location=location,
        partition_spec=bucket_spec(iceberg_schema, num_buckets),
        sort_order=key_sort_order(iceberg_schema),
        properties=properties,
    )


def _check_features(main_table: Table, features: Sequence[Column]) -> None:
    if not features:
        raise ValueError("feature table: at least one feature column required, found none")
    names = [column.name for column in features]
    taken = sorted({name for name in names if names.count(name) > 1} | set(names) & set(table_schema(main_table).names))
    if taken:
        raise ValueError(f"feature table: names must be new and differ, found {', '.join(taken)} taken; rename them")
    for column in features:
        if column.level is not Level.REQUEST:
            raise ValueError(f"feature {column.name}: must be request-level, found {column.level.value}")
