"""The form of a table: columns, partition spec, sort order and properties; and how a table gets another one.

A table takes another form only together with rows that lie in it: `updates_to` goes into the commit that replaces all
its files, so that every reader sees old columns with old files or new ones with new. Its history, branches and tags
stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.sorting import SortField, SortOrder
from pyiceberg.table.update import (
    AddPartitionSpecUpdate,
    AddSchemaUpdate,
    AddSortOrderUpdate,
    RemovePropertiesUpdate,
    SetCurrentSchemaUpdate,
    SetDefaultSortOrderUpdate,
    SetDefaultSpecUpdate,
    SetPropertiesUpdate,
    TableUpdate,
    update_table_metadata,
)
from pyiceberg.types import NestedField

from reqdedup.storage.iceberg.encodings import CHOICES_PROPERTY
from reqdedup.storage.iceberg.settings import ROWS_BEFORE
from reqdedup.storage.iceberg.stored_types import with_new_ids, without_ids

# `type: ignore[call-arg]` below: mypy does not see that pyiceberg's updates have a default for their `action`.

FORM_SINCE_PROPERTY = "reqdedup.form-since"
"""Sequence number of the first snapshot in the table's form; earlier ones have other columns or another layout."""


@dataclass(frozen=True, kw_only=True)
class TableForm:
    """What a new table is made with: Iceberg schema, partition spec, sort order, properties."""

    schema: Schema
    spec: PartitionSpec
    sort_order: SortOrder
    properties: dict[str, str]


def preview(table: Table, updates: tuple[TableUpdate, ...]) -> Table:
    """`table` as a commit of these updates would leave it: to write files for, not to commit through."""
    if not updates:
        return table
    metadata = update_table_metadata(table.metadata, updates)
    return Table(table.name(), metadata, table.metadata_location, table.io, table.catalog, dict(table.config))


def taken_back(metadata: TableMetadata, updates: tuple[TableUpdate, ...]) -> tuple[TableUpdate, ...]:
    """What undoes these updates of the current schema and of properties, given the metadata before them."""
    undo: list[TableUpdate] = []
    for update in updates:
        if isinstance(update, SetCurrentSchemaUpdate):
            undo.append(SetCurrentSchemaUpdate(schema_id=metadata.current_schema_id))  # type: ignore[call-arg]
        elif isinstance(update, SetPropertiesUpdate):
            before = {name: metadata.properties[name] for name in update.updates if name in metadata.properties}
            undo.append(SetPropertiesUpdate(updates=before))
            undo.append(RemovePropertiesUpdate(removals=[name for name in update.updates if name not in before]))
        else:
            raise ValueError(f"updates of a branch: schema and properties required, found {type(update).__name__}")
    return tuple(undo)


def updates_to(table: Table, form: TableForm, own_properties: Mapping[str, str]) -> tuple[TableUpdate, ...]:
    """What gives `table` this form, in the commit that replaces all its files.

    own_properties: those that follow from its form now; a setting that somebody chose for the table is none of them and
    stays. A column keeps its field id while name and type are the same.
    """
    schema = _with_field_ids(table, form.schema)
    ids = {field.field_id: schema.find_field(field.name).field_id for field in form.schema.fields}
    updates: list[TableUpdate] = []
    known = [one for one in table.metadata.schemas if one.as_struct() == schema.as_struct()]
    schema_id = known[0].schema_id if known else max(one.schema_id for one in table.metadata.schemas) + 1
    if not known:
        updates.append(AddSchemaUpdate(schema_=Schema(*schema.fields, schema_id=schema_id)))  # type: ignore[call-arg]
    if schema_id != table.metadata.current_schema_id:
        updates.append(SetCurrentSchemaUpdate(schema_id=schema_id))  # type: ignore[call-arg]
    updates += _spec_updates(table, form.spec, ids)
    updates += _sort_order_updates(table, form.sort_order, ids)
    changed = dict(form.properties)
    if schema_id != table.metadata.current_schema_id or form.properties != dict(own_properties):
        changed[FORM_SINCE_PROPERTY] = str(table.last_sequence_number + 1)
    now = table.properties
    chosen = {
        name
        for name in own_properties
        if name in now and now[name] not in (own_properties[name], ROWS_BEFORE.get(name))
    }
    changed = {name: value for name, value in changed.items() if name not in chosen and now.get(name) != value}
    removed = [name for name in own_properties if name not in form.properties and name in now and name not in chosen]
    if CHOICES_PROPERTY in now:  # the new rows are tried
        removed.append(CHOICES_PROPERTY)
    if changed:
        updates.append(SetPropertiesUpdate(updates=changed))
    if removed:
        updates.append(RemovePropertiesUpdate(removals=removed))
    return tuple(updates)


def spec_updates(table: Table, spec: PartitionSpec) -> tuple[TableUpdate, ...]:
    """What partitions a table like this; one of its earlier specs if that is the same."""
    return tuple(_spec_updates(table, spec, {field.source_id: field.source_id for field in spec.fields}))


def _with_field_ids(table: Table, wanted: Schema) -> Schema:
    """The wanted columns with the table's field ids where name and type are the same, with unused ones elsewhere."""
    now = {field.name: field for field in table.schema().fields}
    ids, fields = itertools.count(table.metadata.last_column_id + 1), []
    for field in wanted.fields:
        kind, own = field.field_type, now.get(field.name)
        if own is not None and without_ids(kind) == without_ids(own.field_type):
            field_id, kind = own.field_id, own.field_type
        else:
            field_id = next(ids)
            kind = with_new_ids(kind, ids.__next__)
        fields.append(NestedField(field_id, field.name, kind, required=field.required, doc=field.doc))
    return Schema(*fields)


def _spec_updates(table: Table, wanted: PartitionSpec, ids: Mapping[int, int]) -> list[TableUpdate]:
    shape = [(ids[field.source_id], field.transform) for field in wanted.fields]
    for spec_id, spec in table.specs().items():
        if [(field.source_id, field.transform) for field in spec.fields] == shape:
            found = spec_id
            updates: list[TableUpdate] = []
            break
    else:
        found, last = max(table.specs()) + 1, table.metadata.last_partition_id or PARTITION_FIELD_ID_START - 1
        # Fields of all specs share one space of names, as columns of the table's metadata tables.
        taken = {field.name for spec in table.specs().values() for field in spec.fields}
        fields = []
        for number, field in enumerate(wanted.fields, start=1):
            name = field.name if field.name not in taken else f"{field.name}_{last + number}"
            fields.append(PartitionField(ids[field.source_id], last + number, field.transform, name))
        updates = [AddPartitionSpecUpdate(spec=PartitionSpec(*fields, spec_id=found))]
    if found != table.metadata.default_spec_id:
        updates.append(SetDefaultSpecUpdate(spec_id=found))  # type: ignore[call-arg]
    return updates


def _sort_order_updates(table: Table, wanted: SortOrder, ids: Mapping[int, int]) -> list[TableUpdate]:
    fields = [SortField(ids[one.source_id], one.transform, one.direction, one.null_order) for one in wanted.fields]
    updates: list[TableUpdate] = []
    for order_id, order in table.sort_orders().items():
        if list(order.fields) == fields:
            found = order_id
            break
    else:
        found = max([0, *table.sort_orders()]) + 1 if fields else 0
        updates.append(AddSortOrderUpdate(sort_order=SortOrder(*fields, order_id=found)))  # type: ignore[call-arg]
    if found != table.metadata.default_sort_order_id:
        updates.append(SetDefaultSortOrderUpdate(sort_order_id=found))  # type: ignore[call-arg]
    return updates
