"""The data files of a snapshot as the catalog knows them: partition, size, order, and which commit brought them.

Everything here comes from manifests; no data file is opened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from pyiceberg.manifest import DataFile, ManifestContent, ManifestEntry
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from reqdedup.dedup.encoding import element_type
from reqdedup.dedup.stored import has_offsets
from reqdedup.schema import ITEM_ID
from reqdedup.storage.iceberg.changes import refuse_deletes
from reqdedup.storage.iceberg.claims import KeyOrder, user_bounds
from reqdedup.storage.iceberg.layout import Layout, table_layout, table_schema
from reqdedup.storage.iceberg.manifests import entries_of, manifests_of
from reqdedup.storage.iceberg.settings import WriteSettings
from reqdedup.storage.read.feature_table import feature_schema, is_feature_table

SMALL_SHARE = 0.5
"""A file below this part of the target size is small: two of them fit into one."""


@dataclass(frozen=True)
class LiveFile:
    """One data file of a snapshot.

    partition: its bucket or day, None if the table is not partitioned.  sequence: of the commit that added it.
    users: lowest and highest user_id, as far as its bounds say.  fill: part of the target size that it has.
    is_sorted: by the keys of the table, as it says itself; of another engine's file that is not believed.
    """

    data_file: DataFile
    partition: int | None
    sequence: int
    users: tuple[int, int]
    fill: float
    is_sorted: bool

    @property
    def path(self) -> str:
        return self.data_file.file_path

    @property
    def num_rows(self) -> int:
        return self.data_file.record_count

    @property
    def num_bytes(self) -> int:
        return self.data_file.file_size_in_bytes


def live_files(table: Table, snapshot_id: int | None = None) -> list[LiveFile]:
    """The data files of a snapshot, of the current one by default, by partition and in the order they were added.

    Raises ValueError for a snapshot with delete files, which only another engine can have made.
    """
    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    files: list[LiveFile] = []
    of_schema = _Describe(table, snapshot.snapshot_id)
    for manifest in manifests_of(table, snapshot):
        entries = entries_of(table, manifest)
        if manifest.content is not ManifestContent.DATA:
            refuse_deletes(table, len(entries))
        files += map(of_schema.live_file, entries)
    return sorted(files, key=lambda file: (file.partition or 0, file.sequence, file.users, file.path))


def by_partition(files: Iterable[LiveFile]) -> dict[int | None, list[LiveFile]]:
    """Files grouped by partition, partitions in rising order."""
    groups: dict[int | None, list[LiveFile]] = defaultdict(list)
    for file in files:
        groups[file.partition].append(file)
    return dict(groups)


def is_compact(files: list[LiveFile], layout: Layout) -> bool:
    """Whether the files of one partition have the form of one write: full files, in order one after the other."""
    if len(files) > 1 and sum(file.fill < SMALL_SHARE for file in files) > 1:
        return False
    if not layout.is_bucketed:
        return True
    if not all(file.is_sorted for file in files):
        return False
    in_order = sorted(files, key=lambda file: file.users)
    for before, after in pairwise(in_order):
        # Files of one write may share a user; of two writes they may share a request.
        if before.users[1] > after.users[0] - (before.sequence != after.sequence):
            return False
    return True


class _Describe:
    """What a manifest entry means in the table's own terms."""

    def __init__(self, table: Table, snapshot_id: int) -> None:
        self.layout = table_layout(table)
        self._table, self._order = table, KeyOrder(table, snapshot_id)
        schema = feature_schema(table) if is_feature_table(table) else table_schema(table)
        self._target = WriteSettings.of(table.properties, self.layout, schema).file_bytes
        self._widths = {}
        for field in table.schema().fields:
            if field.name not in schema.names:
                continue
            kind = element_type(schema[field.name])
            leaf = getattr(field.field_type, "element_id", field.field_id)
            self._widths[leaf] = 16 if has_offsets(kind) else (kind.bit_width + 7) // 8
        names = table.schema().column_names
        self._counts_bytes = self.layout is not Layout.SORTED or ITEM_ID not in names

    def live_file(self, entry: ManifestEntry) -> LiveFile:
        file = entry.data_file
        size = file.file_size_in_bytes
        if not self._counts_bytes:  # the writer fills files of SORTED by their uncompressed Arrow bytes
            size = sum(width * (file.value_counts or {}).get(leaf, 0) for leaf, width in self._widths.items())
        return LiveFile(
            data_file=file,
            partition=_partition(file.partition),
            sequence=entry.sequence_number or 0,
            users=user_bounds(self._table, file),
            fill=size / self._target,
            is_sorted=self._order.is_ours_and_sorted(file),
        )


def _partition(record: Record) -> int | None:
    return record[0] if len(record) and isinstance(record[0], int) else None
