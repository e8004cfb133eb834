"""Changes to a table's columns and references, each one explicit commit of the catalog.

A column that is added takes two steps. `add_columns` registers a schema with it, which gives it its field id; no reader
sees that schema. Whoever publishes rows that have the column makes the schema current in the same commit, so that
columns and rows appear together. pyiceberg 0.12's own `update_schema` would show an empty column at once, and its
transactions keep only the first of several requirements of one type, hence `commit_refs`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from pyiceberg.exceptions import CommitFailedException
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.update import (
    AddSchemaUpdate,
    AssertLastAssignedFieldId,
    AssertRefSnapshotId,
    AssertTableUUID,
    RemoveSnapshotRefUpdate,
    SetCurrentSchemaUpdate,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
)
from pyiceberg.types import ListType, NestedField

from reqdedup.schema import Column
from reqdedup.storage.iceberg.decode import blob_doc
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.layout import Layout, iceberg_type
from reqdedup.storage.iceberg.retries import CommitRetries

MAIN = "main"
"""The branch that readers see."""

OWN_REFS = "reqdedup-"
"""What names of our own branches begin with, so that they are apart from those of the user."""


def add_columns(table: Table, columns: Sequence[Column], layout: Layout) -> tuple[TableUpdate, ...]:
    """The update that puts these columns behind the table's own, for `StagedFiles`; readers see
    them once it is committed.

    Iceberg calls for optional columns where older files lack them. A schema that an earlier run left is used again.
    Raises ConflictError if others keep changing the schema meanwhile.
    """
    if not columns:
        return ()
    retries = CommitRetries.of(table.properties)
    for attempt in range(retries.count + 1):
        table.refresh()
        wanted, num_own = _with_columns(table, columns, layout), len(table.schema().fields)
        for schema in table.metadata.schemas:
            if _shape(schema, num_own) == _shape(wanted, num_own):
                return (SetCurrentSchemaUpdate(schema_id=schema.schema_id),)  # type: ignore[call-arg]
        requirements = (
            AssertTableUUID(uuid=table.metadata.table_uuid),
            AssertLastAssignedFieldId(last_assigned_field_id=table.metadata.last_column_id),  # type: ignore[call-arg]
        )
        try:
            table.catalog.commit_table(table, requirements, (AddSchemaUpdate(schema_=wanted),))  # type: ignore[call-arg]
        except CommitFailedException:
            retries.wait(attempt)
    raise ConflictError(
        f"{'.'.join(table.name())}: columns {', '.join(c.name for c in columns)} could not be added with "
        f"{retries}, since others changed the table each time; run it again when they are done"
    )


# pyiceberg's models take field names, as here, but declare their aliases ("ref-name") to the type checker.


def move_ref(name: str, snapshot_id: int, kind: SnapshotRefType = SnapshotRefType.BRANCH) -> TableUpdate:
    """A branch or tag comes to be at this snapshot."""
    return SetSnapshotRefUpdate(ref_name=name, snapshot_id=snapshot_id, type=kind)  # type: ignore[call-arg]


def remove_ref(name: str) -> TableUpdate:
    """A branch or tag goes."""
    return RemoveSnapshotRefUpdate(ref_name=name)  # type: ignore[call-arg]


def commit_refs(table: Table, updates: Sequence[TableUpdate], *, expected: Mapping[str, int | None]) -> None:
    """Commit `updates` in one step, given that each reference still is at its expected snapshot (None: not there).

    A commit that lost to an unrelated one is repeated. Raises ConflictError naming the reference that has moved.
    """
    requirements: tuple[TableRequirement, ...] = (AssertTableUUID(uuid=table.metadata.table_uuid),)
    for ref, snapshot_id in expected.items():
        requirements += (AssertRefSnapshotId(ref=ref, snapshot_id=snapshot_id),)  # type: ignore[call-arg]
    retries = CommitRetries.of(table.properties)
    for attempt in range(retries.count + 1):
        table.refresh()
        for ref, snapshot_id in expected.items():
            found = ref_snapshot(table, ref)
            if found != snapshot_id:
                raise ConflictError(
                    f"{'.'.join(table.name())}: {ref} at snapshot {snapshot_id} required, found {found}: another "
                    "writer was faster. Nothing was changed; start again from the table as it is now"
                )
        try:
            table.catalog.commit_table(table, requirements, tuple(updates))
        except CommitFailedException:
            retries.wait(attempt)
        else:
            table.refresh()
            return
    raise ConflictError(
        f"{'.'.join(table.name())}: no turn to commit with {retries}; run it again when others are done"
    )


def ref_snapshot(table: Table, ref: str) -> int | None:
    """Snapshot of a branch or tag in the metadata as loaded; None if there is none of this name."""
    found = table.metadata.refs.get(ref)
    return found.snapshot_id if found is not None else None


def _with_columns(table: Table, columns: Sequence[Column], layout: Layout) -> Schema:
    fields, ids = list(table.schema().fields), itertools.count(table.metadata.last_column_id + 1)
    for column in columns:
        field_id = next(ids)
        field_type = iceberg_type(column, layout, next_id=ids.__next__)
        doc = blob_doc(column) if column.is_blob and layout.has_blobs else column.doc
        fields.append(NestedField(field_id, column.name, field_type, required=False, doc=doc or None))
    return Schema(*fields, schema_id=max(schema.schema_id for schema in table.metadata.schemas) + 1)


def _shape(schema: Schema, num_own: int) -> list[tuple[int | None, str, str, bool, str | None]]:
    """What tells two schemas apart; the ids of the table's own fields too, while those of new ones may be any."""
    shape = []
    for position, field in enumerate(schema.fields):
        kind = field.field_type
        name = f"list<{kind.element_type}>" if isinstance(kind, ListType) else str(kind)
        shape.append((field.field_id if position < num_own else None, field.name, name, field.required, field.doc))
    return shape
