"""What the manifests say of a data file, its order and its users, and whether that is believed."""

from __future__ import annotations

import re
from functools import cached_property

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from reqdedup.schema import USER_ID
from reqdedup.storage.iceberg.commit import WRITE_ID
from reqdedup.storage.iceberg.layout import key_order_id
from reqdedup.storage.iceberg.manifests import entries_of, manifests_of

_OWN_NAME = re.compile(r"[0-9a-f]{32}-(all|-?\d+)-[0-9a-f]{12}\.parquet")
"""Of a file that `DataFileWriter` wrote: write id, partition, attempt."""

_NAME_OF_0_1_0 = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.parquet")
"""Of a file that version 0.1.0 wrote, and maybe others."""


class KeyOrder:
    """Which files of a snapshot, of the current one by default, have their rows in the order of the table's keys.

    A file says so itself by its sort order, which is believed if we wrote it: another engine may claim the table's
    default order for rows that it did not sort.
    """

    def __init__(self, table: Table, snapshot_id: int | None = None) -> None:
        self._table, self._order_id = table, key_order_id(table)
        self._snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)

    def is_ours_and_sorted(self, file: DataFile) -> bool:
        if self._order_id is None or file.sort_order_id != self._order_id:
            return False
        name = file.file_path.rpartition("/")[2]
        if _OWN_NAME.fullmatch(name):
            return True
        return bool(_NAME_OF_0_1_0.fullmatch(name)) and file.file_path in self._added_by_us

    @cached_property
    def _added_by_us(self) -> set[str]:
        """Files that snapshots of ours added, as far as these have not expired."""
        summaries = {one.snapshot_id: one.summary for one in self._table.snapshots()}
        ours = {id_ for id_, summary in summaries.items() if summary is not None and summary.get(WRITE_ID)}
        entries = [e for m in manifests_of(self._table, self._snapshot) for e in entries_of(self._table, m)]
        return {entry.data_file.file_path for entry in entries if entry.snapshot_id in ours}


def user_bounds(table: Table, file: DataFile) -> tuple[int, int]:
    """Lowest and highest user_id of a file, as far as its bounds say."""
    if USER_ID not in table.schema().column_names:
        return -(2**63), 2**63 - 1
    field_id = table.schema().find_field(USER_ID).field_id
    low, high = ((bounds or {}).get(field_id) for bounds in (file.lower_bounds, file.upper_bounds))
    return (
        int.from_bytes(low, "little", signed=True) if low else -(2**63),
        int.from_bytes(high, "little", signed=True) if high else 2**63 - 1,
    )
