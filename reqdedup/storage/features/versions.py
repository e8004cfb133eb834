"""Names for versions of a table, and the way back to one.

A tag keeps its version from expiring, files and all. Going back restores the version's rows and columns in one commit;
the versions in between stay until they expire, so that one can go forward again to a tag.
"""

from __future__ import annotations

from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.update import (
    SetCurrentSchemaUpdate,
    SetPropertiesUpdate,
    TableUpdate,
)

from reqdedup.storage.iceberg.evolve import MAIN, OWN_REFS, commit_refs, move_ref, ref_snapshot, remove_ref
from reqdedup.storage.iceberg.layout import SCHEMA_PROPERTY, table_schema
from reqdedup.storage.read.feature_table import feature_properties, feature_schema, is_feature_table


def tag(table: Table, name: str, *, snapshot_id: int | None = None) -> int:
    """Give a version a name; its snapshot id. snapshot_id: None means the newest.

    Raises ValueError if the table has no such version or the name is one of ours, ConflictError if
    it is taken by another version.
    """
    check_tag_name(name)
    table.refresh()
    wanted = snapshot_id if snapshot_id is not None else ref_snapshot(table, MAIN)
    if wanted is None or table.snapshot_by_id(wanted) is None:
        raise ValueError(f"{_name(table)}: snapshot {wanted} required, found none; write the table first")
    if tags(table).get(name) == wanted:
        return wanted
    update = move_ref(name, wanted, SnapshotRefType.TAG)
    commit_refs(table, [update], expected={name: None})
    return wanted


def check_tag_name(name: str) -> None:
    """Raise ValueError for a name that cannot be a tag's: an empty one, or one of ours."""
    if not name.strip() or name.startswith(OWN_REFS) or name == MAIN:
        raise ValueError(f"tag: a name that is not {MAIN} and does not begin with {OWN_REFS} required, found {name!r}")


def tags(table: Table) -> dict[str, int]:
    """Snapshot ids of the table's tags, as loaded."""
    refs = table.metadata.refs
    return {name: ref.snapshot_id for name, ref in refs.items() if ref.snapshot_ref_type == SnapshotRefType.TAG}


def drop_tag(table: Table, name: str) -> None:
    """Remove a tag, so that its version may expire. Raises ValueError if there is none of this name."""
    target = _tagged(table, name)
    commit_refs(table, [remove_ref(name)], expected={name: target})


def rollback_to(table: Table, name: str) -> int:
    """Make the tagged version the one that readers see, rows and columns, in one commit; its snapshot id.

    Raises ValueError if there is no such tag, ConflictError if another writer was faster.
    """
    target = _tagged(table, name)
    updates: list[TableUpdate] = [
        SetPropertiesUpdate(updates=_properties_at(table, target)),
        move_ref(MAIN, target),
    ]
    snapshot = table.snapshot_by_id(target)
    if snapshot is not None and snapshot.schema_id is not None:
        updates.append(SetCurrentSchemaUpdate(schema_id=snapshot.schema_id))  # type: ignore[call-arg]
    commit_refs(table, updates, expected={MAIN: ref_snapshot(table, MAIN), name: target})
    return target


def _properties_at(table: Table, snapshot_id: int) -> dict[str, str]:
    if is_feature_table(table):
        return feature_properties(feature_schema(table, snapshot_id))
    return {SCHEMA_PROPERTY: table_schema(table, snapshot_id).to_json()}


def _tagged(table: Table, name: str) -> int:
    table.refresh()
    found = tags(table)
    if name not in found:
        raise ValueError(
            f"{_name(table)}: tag {name!r} required, found {', '.join(found) or 'none'}; tag a version first"
        )
    return found[name]


def _name(table: Table) -> str:
    return ".".join(table.name())
