"""The side table of request features: one row per request, in the buckets and order of the main table.

    user_id, request_id        keys, as in the main table; a table by position leaves them out
    one column per feature     scalars plain, sequences and vectors as blobs

A feature added later goes here instead of into the main table: Iceberg has no column families, so a new column there
means rewriting every row, while a bucket join with this table reads as if it had always been there. The columns are
described by `Column`s, kept as JSON in the table property `reqdedup.features` and in the summary of every snapshot, so
that a staged or older snapshot describes itself.

Beside one small number per request the keys are most of the file. A table *by position* stores the values alone, row i
of a bucket for its i-th request, with hashes of the keys in the file's footer (`feature_positions`,
docs/decisions/0011). It costs 1.0 instead of 5 to 16 times the values, and only reqdedup can join it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import IntegerType, NestedField

from reqdedup.dedup.streams import REQUEST_KEY
from reqdedup.display import counted
from reqdedup.schema import REQUEST_ID, USER_ID, Column, EngagementSchema, Level, columns_of_json, json_of_columns
from reqdedup.storage.iceberg.changes import BUCKET_COLUMN, check_no_deletes
from reqdedup.storage.iceberg.decode import blob_doc, decoders
from reqdedup.storage.iceberg.form import TableForm
from reqdedup.storage.iceberg.layout import (
    DECODE_PROPERTY,
    FORMAT,
    FORMAT_PROPERTY,
    LAYOUT_PROPERTY,
    Layout,
    bucket_spec,
    check_table_format,
    column_differences,
    iceberg_type,
    key_sort_order,
    make_table,
    table_buckets,
    table_schema,
    widened,
)
from reqdedup.storage.iceberg.manifests import scan_tasks
from reqdedup.storage.iceberg.names import check_free_name
from reqdedup.storage.iceberg.settings import default_settings
from reqdedup.storage.read.buckets import check_sorted
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.read.table_source import column_ids, known_fields

FEATURES_PROPERTY = "reqdedup.features"
BUCKETS_PROPERTY = "reqdedup.buckets"
"""Bucket count of a table by position, whose partition spec cannot say it; other feature tables
have no such property."""

MAIN_TABLE_PROPERTY, MAIN_UUID_PROPERTY = "reqdedup.main-table", "reqdedup.main-uuid"
"""The table whose requests the features are of: its name, and the id that tells it from a later one of that name."""

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
        return tuple(column for column in self.columns if column.level is not Level.KEY)


class FeatureSource(FileSource):
    """The files of one snapshot of a feature table, one row per request; blobs as dictionaries.

    snapshot_id: which snapshot, staged ones too; None means the newest of the table as it was loaded.
    feature_schema: its columns. The keys are among those that can be read unless the table is by position.
    """

    def __init__(self, table: Table, *, snapshot_id: int | None = None) -> None:
        current = table.current_snapshot()
        self.snapshot_id = snapshot_id if snapshot_id is not None or current is None else current.snapshot_id
        self.feature_schema = feature_schema(table, self.snapshot_id)
        files = feature_files(table, self.snapshot_id)
        placed = sorted((file.partition[0], file.file_path) for file in files)
        stored = as_engagement_schema(stored_schema(table, self.feature_schema))
        super().__init__(
            [path for _, path in placed],
            stored,
            io=table.io,
            buckets=[bucket for bucket, _ in placed],
            num_buckets=buckets_of_files(table, files),
            known_columns=stored.names,
            field_ids=column_ids(table, self.snapshot_id),
            known_fields=known_fields(table),
        )


def feature_files(table: Table, snapshot_id: int | None) -> list[DataFile]:
    """The data files of a snapshot of a feature table; none if there is no snapshot.

    Raises ValueError for delete files, which another engine wrote.
    """
    if snapshot_id is None:
        return []
    tasks = scan_tasks(table, snapshot_id)
    check_no_deletes(table, tasks)
    return [task.file for task in tasks]


def buckets_of_files(table: Table, files: Sequence[DataFile]) -> int | None:
    """Bucket count of these files, which may lie in an earlier spec of the table than the one it has now."""
    spec_ids = {file.spec_id for file in files} or {table.metadata.default_spec_id}
    if len(spec_ids) > 1:
        raise ValueError(
            f"{'.'.join(table.name())}: files of one partition spec required, found {len(spec_ids)}; another engine "
            "changed the partitioning without rewriting: roll the table back to a tag, or compute the features again"
        )
    return feature_buckets(table) if is_by_position(table) else table_buckets(table, spec_ids.pop())


def as_engagement_schema(schema: FeatureSchema) -> EngagementSchema:
    """For the file reader and writer, which ask a schema for columns, names and blobs: a FeatureSchema has them.

    It cannot be an EngagementSchema, since a feature table has no items.
    """
    return cast(EngagementSchema, schema)


def is_feature_table(table: Table) -> bool:
    return FEATURES_PROPERTY in table.properties


def is_by_position(table: Table) -> bool:
    """Whether the feature table stores values alone, in the order of the main table's requests."""
    return BUCKETS_PROPERTY in table.properties


def feature_schema(table: Table, snapshot_id: int | None = None) -> FeatureSchema:
    """The columns of a feature table, or of one snapshot of it. Raises ValueError for any other table."""
    if not is_feature_table(table):
        raise ValueError(
            f"{'.'.join(table.name())}: table property {FEATURES_PROPERTY} required, found none; "
            "make the table with create_feature_table"
        )
    check_table_format(table)
    text = table.properties[FEATURES_PROPERTY]
    snapshot = table.snapshot_by_id(snapshot_id) if snapshot_id is not None else None
    if snapshot is not None and snapshot.summary is not None:
        text = snapshot.summary.get(FEATURES_PROPERTY) or text
    columns = columns_of_json(text, where=f"{'.'.join(table.name())}: table property {FEATURES_PROPERTY}")
    found = table.schema()
    if snapshot is not None and snapshot.schema_id is not None:
        found = table.schemas().get(snapshot.schema_id, found)
    return FeatureSchema((*_KEY_COLUMNS, *widened(columns, found)))


def feature_properties(schema: FeatureSchema) -> dict[str, str]:
    """The table properties that follow from the columns."""
    return {
        FORMAT_PROPERTY: str(FORMAT),
        FEATURES_PROPERTY: features_json(schema),
        DECODE_PROPERTY: json.dumps({column.name: decoders(column) for column in schema.blobs}),
        **{f"write.metadata.metrics.column.{column.name}": "none" for column in schema.blobs},
    }


def features_json(schema: FeatureSchema) -> str:
    return json_of_columns(schema.features)


def stored_schema(table: Table, schema: FeatureSchema) -> FeatureSchema:
    """The columns that lie in the table's files."""
    return FeatureSchema(schema.features) if is_by_position(table) else schema


def feature_buckets(table: Table) -> int | None:
    """Bucket count of a feature table."""
    return int(table.properties[BUCKETS_PROPERTY]) if is_by_position(table) else table_buckets(table)


def create_feature_table(
    catalog: Catalog,
    identifier: str,
    main_table: Table,
    feature_columns: Sequence[Column],
    *,
    by_position: bool = False,
    location: str | None = None,
) -> Table:
    """The table for these features of `main_table`'s requests: as it is with its rows if it is there, else a new one.

    by_position: store the values without the keys, for features of a few bytes; see `feature_positions`.
    An existing table must have these features, maybe among others, in the same form and buckets; nothing is ever
    dropped (`add_request_feature(columns=...)` adds a column, `replace_feature_table` changes the form with the
    values). Raises ValueError if it differs, naming the difference, if `main_table` is not bucketed and sorted, if a
    feature is not request-level or has a name of the main table, and if `identifier` is no feature table.
    """
    check_free_name(identifier)
    form = feature_form(main_table, feature_columns, by_position=by_position)
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        return make_table(catalog, identifier, form, location=location)
    check_feature_form(table, main_table, feature_columns, by_position=by_position)
    return table


def check_feature_form(table: Table, main_table: Table, features: Sequence[Column], *, by_position: bool) -> None:
    """Raise ValueError unless a table has these features in the form that `main_table` asks for; the difference is
    named."""
    if differences := feature_differences(table, main_table, features, by_position=by_position):
        raise ValueError(
            f"{'.'.join(table.name())}: is there in another form ({'; '.join(differences)}). Nothing was changed: "
            "choose another name, or ask for the replacement (storage.replace_feature_table)"
        )


def feature_differences(table: Table, main_table: Table, features: Sequence[Column], *, by_position: bool) -> list[str]:
    """In which points a table differs from one of these features. Raises ValueError if it is no feature table."""
    if not is_feature_table(table):
        raise ValueError(f"{'.'.join(table.name())}: exists and is no feature table; choose another name")
    names, differences = ("with keys", "by position"), []
    if is_by_position(table) != by_position:
        differences.append(f"a table {names[by_position]} required, found one {names[not by_position]}")
    if feature_buckets(table) != table_buckets(main_table):
        differences.append(
            f"{counted(table_buckets(main_table) or 0, 'bucket')} required, found {feature_buckets(table)}"
        )
    if by_position and table.properties.get(MAIN_UUID_PROPERTY) != str(main_table.metadata.table_uuid):
        differences.append("the same main table required, found another one of that name")
    own = {column.name: column for column in feature_schema(table).features}
    return differences + column_differences(features, [own[name.name] for name in features if name.name in own])


def feature_form(main_table: Table, features: Sequence[Column], *, by_position: bool) -> TableForm:
    """The form of a table of these features. Raises ValueError if they cannot be features of `main_table`."""
    num_buckets = check_sorted(main_table, REQUEST_KEY)
    check_features(main_table, features)
    schema = FeatureSchema((*_KEY_COLUMNS, *features))
    iceberg_schema = _iceberg_schema(schema, by_position)
    properties = {
        LAYOUT_PROPERTY: Layout.BY_REQUEST.value,
        MAIN_TABLE_PROPERTY: ".".join(main_table.name()),
        MAIN_UUID_PROPERTY: str(main_table.metadata.table_uuid),
        **default_settings(Layout.BY_REQUEST, schema).properties(),
        **feature_properties(schema),
    }
    if by_position:
        properties[BUCKETS_PROPERTY] = str(num_buckets)
        source = iceberg_schema.find_field(BUCKET_COLUMN).field_id
        # Unlike bucket(N, user_id) it does not claim that rows are found by user_id, which no file has.
        spec = PartitionSpec(PartitionField(source, PARTITION_FIELD_ID_START, IdentityTransform(), BUCKET_COLUMN))
    else:
        spec = bucket_spec(iceberg_schema, num_buckets)
    order = UNSORTED_SORT_ORDER if by_position else key_sort_order(iceberg_schema)
    return TableForm(schema=iceberg_schema, spec=spec, sort_order=order, properties=properties)


def own_properties(table: Table) -> dict[str, str]:
    """The properties that follow from the form which a feature table has now."""
    names = {BUCKETS_PROPERTY, LAYOUT_PROPERTY, *feature_properties(feature_schema(table))}
    names |= {MAIN_TABLE_PROPERTY, MAIN_UUID_PROPERTY}
    return {name: table.properties[name] for name in names if name in table.properties}


def _iceberg_schema(schema: FeatureSchema, by_position: bool) -> Schema:
    columns = schema.features if by_position else schema.columns
    fields = [
        NestedField(
            field_id,
            column.name,
            iceberg_type(column, Layout.BY_REQUEST, next_id=lambda: 0),
            required=not column.nullable,
            doc=(blob_doc(column) if column.is_blob else column.doc) or None,
        )
        for field_id, column in enumerate(columns, start=1)
    ]
    if by_position:
        doc = "bucket of the request's user; row i of it is of the i-th request of that bucket of the main table"
        fields.append(NestedField(len(fields) + 1, BUCKET_COLUMN, IntegerType(), required=False, doc=doc))
    return Schema(*fields)


def check_features(main_table: Table, features: Sequence[Column]) -> None:
    """Raise ValueError unless these can be features of `main_table`: request-level, with names of their own."""
    if not features:
        raise ValueError("feature table: at least one feature column required, found none")
    names = [column.name for column in features]
    reserved = {*table_schema(main_table).names, BUCKET_COLUMN}
    taken = sorted({name for name in names if names.count(name) > 1} | set(names) & reserved)
    if taken:
        raise ValueError(f"feature table: names must be new and differ, found {', '.join(taken)} taken; rename them")
    for column in features:
        if column.level is not Level.REQUEST:
            raise ValueError(f"feature {column.name}: must be request-level, found {column.level.value}")
