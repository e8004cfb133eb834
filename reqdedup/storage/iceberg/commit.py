"""Data files that are written but not yet part of the table, and the one commit that makes them so."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterable
from types import TracebackType

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException, ValidationException
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    DEFAULT_READ_VERSION,
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestFile,
)
from pyiceberg.table import Table
from pyiceberg.table.update import AssertDefaultSpecId, TableUpdate
from pyiceberg.table.update.snapshot import _OverwriteFiles

from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.datafile import DataFileWriter, FileSettings, verify_file
from reqdedup.storage.iceberg.layout import table_layout, table_schema

WRITE_ID = "reqdedup.write-id"
"""Snapshot property; tells whether a commit whose answer was lost has landed."""

COMMIT_ATTEMPTS = 10
"""Of a commit that may be put on top of others', each with pyiceberg's own retries inside."""

MAX_WAIT_S = 1.0

_BOUNDS = [
    position
    for position, field in enumerate(DATA_FILE_TYPE[DEFAULT_READ_VERSION].fields)
    if field.name in ("lower_bounds", "upper_bounds")
]

_OUTCOME_UNKNOWN = (ConnectionError, TimeoutError, CommitStateUnknownException)


class ConflictError(RuntimeError):
    """Another writer changed the table in a way that a commit cannot be put on top of; nothing was written."""


class StagedFiles:
    """New data files of a table, in a `with` block: deleted on the way out unless `commit` has landed.

    Nothing a reader can see changes before `commit`, and that is one atomic step of the catalog.
    schema: columns of the files, where the table carries no engagement schema.
    """

    def __init__(self, table: Table, schema: EngagementSchema | None = None) -> None:
        self.table = table
        self._schema, self._layout = schema or table_schema(table), table_layout(table)
        self._settings = FileSettings(self._layout, self._schema, table.properties)
        self._spec_id = table.metadata.default_spec_id
        self._open: DataFileWriter | None = None
        self._done: list[tuple[DataFile, int | None]] = []
        self._paths: list[str] = []
        self._keep = False
        self._reachable = True
        self.num_requests = 0

    @property
    def data_files(self) -> list[DataFile]:
        """The finished files."""
        return [data_file for data_file, _ in self._done]

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._open is not None:
            with contextlib.suppress(Exception):
                self._open.abandon()
        if not self._keep:
            for path in self._paths:
                try:
                    self.table.io.delete(path)
                except FileNotFoundError:
                    continue
                except Exception:  # the storage is away: do not wait for it once per file, the sweep removes them
                    break

    def write(self, partition: int | None, rows: pa.Table, *, target_bytes: int) -> int:
        """Write `rows` as one row group of this partition; returns their number.

        The file is closed once it holds `target_bytes` compressed, or when the next rows are of another partition.
        """
        if self._open is not None and self._open.partition != partition:
            self.close_file()
        if self._open is None:
            self._open = DataFileWriter(self.table, self._schema, self._layout, partition, self._settings)
            self._paths.append(self._open.path)
        self._open.write(rows)
        if self._open.num_bytes >= target_bytes:
            self.close_file()
        return len(rows)

    def close_file(self) -> None:
        if self._open is not None:
            writer, self._open = self._open, None
            try:
                self._done.append((writer.close(), writer.partition))
            except BaseException:
                writer.abandon()
                raise

    def verify(self, *, num_rows: int, num_requests: int | None) -> None:
        """Read the keys of all finished files back: partition, order, row and request counts.

        num_requests: distinct requests, where every request must be whole in one file; None where the layout does not
        keep them together. Raises RuntimeError where something differs.
        """
        self.close_file()
        found = 0
        for data_file, partition in self._done:
            found += verify_file(self.table, data_file.file_path, self._layout, partition, data_file.record_count)
        written = sum(data_file.record_count for data_file, _ in self._done)
        for what, required, counted in (("rows", num_rows, written), ("requests", num_requests, found)):
            if required is not None and required != counted:
                raise RuntimeError(
                    f"{'.'.join(self.table.name())}: {required} {what} required in the new files, found {counted}; "
                    "nothing was committed"
                )

    def describe(self, metadata: dict[str, str]) -> None:
        """Put these entries into the footer of the file that is being written."""
        if self._open is not None:
            self._open.metadata.update(metadata)

    def commit(
        self,
        *,
        replace: bool,
        removed: Iterable[DataFile] | None = None,
        properties: dict[str, str] | None = None,
        branch: str = "main",
        updates: tuple[TableUpdate, ...] = (),
        rebase: bool = False,
    ) -> int | None:
        """Make the files part of the table in one snapshot; its id, or None where there was nothing to do.

        replace: they take the place of `removed`, or where that is None of all files of the snapshot that `table` shows;
        else they are added.  properties: for the snapshot's summary.
        branch: which must exist, unless it is main.  updates: of the table, in the same commit.
        rebase: put the replacement on top of other writers' commits as long as every removed file is still there; for
        rewrites that leave what others added alone. Appends always are.
        Raises ConflictError where another writer was faster: nothing was changed then.
        """
        self.close_file()
        old = list(removed) if removed is not None else []
        if replace and removed is None and self.table.current_snapshot() is not None:
            old = [task.file for task in self.table.scan().plan_files()]
        if not self._done and not old:
            return None
        write_id = str(uuid.uuid4())
        summary = {**(properties or {}), WRITE_ID: write_id}
        is_all = replace and removed is None
        for attempt in range(COMMIT_ATTEMPTS):
            try:
                self._commit_once(old, replace=replace, is_all=is_all, summary=summary, branch=branch, updates=updates)
                break
            except ConflictError:
                if attempt + 1 == COMMIT_ATTEMPTS or (replace and not rebase):
                    raise
                time.sleep(random.uniform(0, min(MAX_WAIT_S, 0.1 * 2**attempt)))
                self.table.refresh()
                if (
                    replace and not self._all_there(old, branch)
                ) or self.table.metadata.default_spec_id != self._spec_id:
                    raise
            except BaseException as error:
                # The catalog may have taken the commit before its answer was lost, and may still take one that it did
                # not answer in time. Deleting the files of a landed commit would break the table, so they go only where
                # the table is known not to have it; else they stay, and the sweep of orphans removes them.
                self._keep = True
                landed = self._landed_as(write_id)
                if landed is not None and isinstance(error, Exception):
                    return landed
                self._keep = not (
                    self._reachable and isinstance(error, Exception) and not isinstance(error, _OUTCOME_UNKNOWN)
                )
                raise
        self._keep = True
        current = self.table.metadata.snapshot_by_name(branch)
        return current.snapshot_id if current is not None else None

    def _commit_once(
        self,
        old: list[DataFile],
        *,
        replace: bool,
        is_all: bool,
        summary: dict[str, str],
        branch: str,
        updates: tuple[TableUpdate, ...],
    ) -> None:
        spec_id = self.table.metadata.default_spec_id
        try:
            with self.table.transaction() as transaction:
                # A writer that began before the bucket count changed would put its files under a spec that is not theirs.
                # pyiceberg 0.12 has no public way to add a requirement to a transaction; its models are named by alias.
                transaction._stage((), (AssertDefaultSpecId(default_spec_id=spec_id),))  # type: ignore[call-arg]
                transaction._stage(updates)
                update = transaction.update_snapshot(snapshot_properties=summary, branch=branch)
                with update.overwrite() if replace else update.fast_append() as snapshot:
                    if isinstance(snapshot, _OverwriteFiles):
                        forget_removed(snapshot, deletes=is_all)
                    for data_file in old:
                        snapshot.delete_data_file(data_file)
                    for data_file, _ in self._done:
                        snapshot.append_data_file(data_file)
        except (CommitFailedException, ValidationException, ValueError) as error:
            # pyiceberg 0.12 asks for the branch's head alone: a commit to another branch, between loading the table and
            # this, shows as a stale sequence number.
            if isinstance(error, ValueError) and "older than last sequence number" not in str(error):
                raise
            raise ConflictError(
                f"{'.'.join(self.table.name())}: another writer changed the table in the meantime; nothing was written. "
                "Load the table again and repeat the write"
            ) from error

    def _all_there(self, removed: list[DataFile], branch: str) -> bool:
        snapshot = self.table.metadata.snapshot_by_name(branch)
        if snapshot is None:
            return False
        tasks = self.table.scan(snapshot_id=snapshot.snapshot_id).plan_files()
        return {file.file_path for file in removed} <= {task.file.file_path for task in tasks}

    def _landed_as(self, write_id: str) -> int | None:
        """The snapshot of this write in the newest metadata, where there is one and the catalog can be asked."""
        try:
            self.table.refresh()
        except Exception:
            self._reachable = False
            return None
        for snapshot in self.table.metadata.snapshots:
            if snapshot.summary is not None and snapshot.summary.get(WRITE_ID) == write_id:
                return snapshot.snapshot_id
        return None


def forget_removed(snapshot: _OverwriteFiles, *, deletes: bool = False) -> None:
    """Keep no values of removed files: their bounds may be the last that is known of a deleted user.

    deletes: nor delete files of another engine, which apply to nothing where every data file is replaced.
    pyiceberg 0.12 copies the bounds into the manifest of what was removed, and carries such manifests of earlier
    snapshots along for ever.
    """
    removed_of, manifests_of = snapshot._deleted_entries, snapshot._existing_manifests

    def without_bounds() -> list[ManifestEntry]:
        entries = removed_of()
        for entry in entries:
            for position in _BOUNDS:
                entry.data_file[position] = None
        return entries

    def with_files() -> list[ManifestFile]:
        kept = [one for one in manifests_of() if one.has_added_files() or one.has_existing_files()]
        return [one for one in kept if not deletes or one.content is ManifestContent.DATA]

    snapshot._deleted_entries, snapshot._existing_manifests = without_bounds, with_files  # type: ignore[method-assign]
