"""What another engine may have done to one of our tables: followed if its values can be kept, else refused by name.

types that it widened, columns that it added      followed: a rewrite keeps every value
delete files, another kind of partitioning        refused, before anything is written
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pyiceberg.table import FileScanTask, Table
from pyiceberg.types import NestedField

from reqdedup.schema import REQUEST_TS, USER_ID, Column, Level
from reqdedup.storage.iceberg.layout import DTYPES, Layout, table_layout
from reqdedup.storage.iceberg.manifests import manifests_of

BUCKET_COLUMN = "user_bucket"
"""Of a feature table by position: its partition, in no file."""


def added_columns(table: Table, own: Collection[str], level: Level) -> tuple[Column, ...]:
    """The columns of the Iceberg table that are not among `own` ones: another engine's, for a rewrite to keep.

    They are nullable.

    Raises ValueError for those that no column of ours can hold.
    """
    fields = added_fields(table, own)
    strange = [field for field in fields if field.field_type not in DTYPES or field.initial_default is not None]
    if strange:
        named = ", ".join(f"{field.name} ({field.field_type})" for field in strange)
        raise ValueError(
            f"{'.'.join(table.name())}: columns that a rewrite can keep required ({', '.join(map(str, DTYPES))}, "
            f"without a default), found {named}, which another engine added; nothing was written. Drop them there, or "
            "convert the table with `reqdedup convert`"
        )
    return tuple(Column(name=f.name, dtype=DTYPES[f.field_type], level=level, nullable=True) for f in fields)


def added_fields(table: Table, own: Collection[str]) -> list[NestedField]:
    """Fields of the Iceberg table that are not among `own` names."""
    return [field for field in table.schema().fields if field.name not in own]


def check_no_columns_added(table: Table, own: Collection[str], what: str) -> None:
    """Raise ValueError if another engine added columns, whose values `what` would leave behind."""
    names = [field.name for field in added_fields(table, own)]
    if names:
        raise ValueError(
            f"{'.'.join(table.name())}: only columns of its own required to {what}, found {', '.join(names)}, which "
            "another engine added and whose values would be lost; nothing was written. Drop them there first"
        )


def check_no_deletes(table: Table, tasks: Iterable[FileScanTask]) -> None:
    """Raise ValueError for a scan with delete files."""
    refuse_deletes(table, len({file.file_path for task in tasks for file in task.delete_files}))


def refuse_deletes(table: Table, num_files: int) -> None:
    """Raise ValueError if there are delete files, which readers of whole row groups cannot apply."""
    if num_files:
        raise ValueError(
            f"{'.'.join(table.name())}: no delete files required, found {num_files}, which another engine wrote and "
            "request-sorted row groups cannot carry; rewrite the table there so that the rows are really gone, or with "
            "`reqdedup convert`"
        )


def check_spec(table: Table) -> None:
    """Raise ValueError if the table is partitioned in another way than its layout; bucket counts may be any."""
    layout = table_layout(table)
    required = []
    if layout.is_bucketed:
        by_position = USER_ID not in table.schema().column_names
        required = [("identity", BUCKET_COLUMN)] if by_position else [("bucket[N]", USER_ID)]
    elif layout is Layout.ARRIVAL:
        required = [("day", REQUEST_TS)]
    found = [(str(f.transform), table.schema().find_column_name(f.source_id)) for f in table.spec().fields]
    if [(transform.replace("bucket[N]", "bucket"), name) for transform, name in required] != [
        (transform.partition("[")[0], name) for transform, name in found
    ]:
        said = [", ".join(f"{transform}({name})" for transform, name in fields) for fields in (required, found)]
        raise ValueError(
            f"{'.'.join(table.name())}: partition spec [{said[0]}] required, found [{said[1]}], which another engine "
            "made of it; nothing was written. Set it back there (ALTER TABLE ... PARTITION FIELD)"
        )


def check_one_spec(table: Table, what: str) -> None:
    """Raise ValueError if the files lie in other partitions than new ones would, so that `what` cannot be done.

    what: "an append" and the like; a reader needs one spec for all files.
    """
    check_spec(table)
    now, of_files = table.metadata.default_spec_id, spec_ids(table)
    if not of_files <= {now}:
        raise ValueError(
            f"{'.'.join(table.name())}: partition spec {', '.join(map(str, sorted(of_files)))} of its files required "
            f"by {what}, found the table at spec {now}, which another engine changed; compact the table first "
            "(compact(table), `reqdedup compact`)"
        )


def spec_ids(table: Table) -> set[int]:
    """Partition specs that the files of the current snapshot were written with."""
    snapshot = table.current_snapshot()
    manifests = manifests_of(table, snapshot)
    return {one.partition_spec_id for one in manifests if one.has_added_files() or one.has_existing_files()}
