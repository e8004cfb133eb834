"""Data files that are written but not yet part of the table, and the one commit that makes them so."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import (
    DataFile,
)
from pyiceberg.table import StagedTable, Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AssertCurrentSchemaId,
    AssertDefaultSpecId,
    SetPropertiesUpdate,
    TableRequirement,
    TableUpdate,
)

from reqdedup.dedup.checksum import ContentChecksum
from reqdedup.schema import EngagementSchema
from reqdedup.storage.iceberg.datafile import DataFileWriter, FileForm, FileSettings, verify_file
from reqdedup.storage.iceberg.encodings import CHOICES_PROPERTY, to_json
from reqdedup.storage.iceberg.errors import ConflictError, IntegrityError, is_conflict, is_outcome_unknown
from reqdedup.storage.iceberg.evolve import MAIN
from reqdedup.storage.iceberg.form import preview, taken_back
from reqdedup.storage.iceberg.layout import file_schema, table_layout, table_schema
from reqdedup.storage.iceberg.manifest_groups import append_files, replace_files
from reqdedup.storage.iceberg.manifests import check_manifests, data_files, listed
from reqdedup.storage.iceberg.private import one_attempt, stage
from reqdedup.storage.iceberg.retries import CommitRetries
from reqdedup.storage.iceberg.written import Written

WRITE_ID = "reqdedup.write-id"
"""Snapshot property; tells whether a commit whose answer was lost has landed."""

MAY_LAND = "The catalog may have taken the commit, or take it yet: look whether the rows are there before you repeat it"
"""Note on an error, or an interrupt, after which nobody knows whether the commit has landed."""


class StagedFiles:
    """New data files of a table, in a `with` block: deleted on the way out unless `commit` has landed.

    Nothing a reader can see changes before `commit`, and that is one atomic step of the catalog.
    schema: columns of the files, if the table carries no engagement schema.
    updates: of the table, which the commit makes with the files; `target` is the table as it will be then. A commit to
    another branch than main takes them back in the same step: only its snapshot has them, until somebody publishes it.
    write_id: names the write in the snapshot and in its files' names; a task of a write elsewhere is given the write's.

    A write may be shared out: a task stages files of its own and hands them over, the one that commits adopts them.
    """

    def __init__(
        self,
        table: Table,
        schema: EngagementSchema | None = None,
        updates: tuple[TableUpdate, ...] = (),
        *,
        write_id: str | None = None,
    ) -> None:
        if table.format_version > 2:  # pyiceberg 0.12 writes no manifests of version 3, and would say so at the commit
            raise ValueError(
                f"{'.'.join(table.name())}: Iceberg format version 1 or 2 required to write, found "
                f"{table.format_version}, to which another engine has upgraded it; nothing was written. Make a table "
                "of its rows with `reqdedup convert`"
            )
        self.write_id = write_id or uuid.uuid4().hex
        self.table, self.target, self._updates = table, preview(table, updates), updates
        self._schema, self._layout = schema or table_schema(self.target), table_layout(self.target)
        self.settings = FileSettings(self._layout, self._schema, self.target.properties)
        self._spec_id = table.metadata.default_spec_id
        self._form = FileForm(self.target, self._schema, self._layout)
        self._open: DataFileWriter | None = None
        self._done: list[tuple[DataFile, int | None]] = []
        self._paths: list[str] = []
        self._keep = False
        self._reachable = True
        self._delete_manifests: Callable[[], None] = lambda: None
        self.num_requests = 0

    @property
    def updates(self) -> tuple[TableUpdate, ...]:
        """Of the table, which the commit makes."""
        return self._updates

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
            self._open = DataFileWriter(self.target, self._form, partition, self.settings, write_id=self.write_id)
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

    def verify(self, *, num_rows: int, num_requests: int | None) -> int:
        """Read the keys of all finished files back: partition, order, row and request counts; the number of requests.

        num_requests: distinct requests, if every request must be whole in one file; None if the layout does not
        keep them together. Raises IntegrityError if something differs.
        """
        self.close_file()
        found = 0
        for data_file, partition in self._done:
            found += verify_file(self.target, data_file.file_path, self._layout, partition, data_file.record_count)
        written = sum(data_file.record_count for data_file, _ in self._done)
        for what, required, counted in (("rows", num_rows, written), ("requests", num_requests, found)):
            if required is not None and required != counted:
                raise IntegrityError(
                    f"{'.'.join(self.table.name())}: {required} {what} required in the new files, found {counted}; "
                    "nothing was committed"
                )
        return found

    def describe(self, metadata: dict[str, str]) -> None:
        """Put these entries into the footer of the file that is being written."""
        if self._open is not None:
            self._open.metadata.update(metadata)

    def hand_over(self, checksum: ContentChecksum, *, num_requests: int | None = None, note: Any = None) -> Written:
        """The finished files for `adopt` elsewhere; from now on they are the receiver's to commit or delete.

        checksum: of the rows that were to be written.  num_requests: as of `verify`, which comes first: IntegrityError
        if rows are missing.  note: for whoever adopts them.
        """
        self.close_file()
        requests = self.verify(num_rows=checksum.rows, num_requests=num_requests)
        self._keep = True
        return Written(
            write_id=self.write_id,
            spec_id=self._spec_id,
            files=tuple(self._done),
            requests=requests,
            checksum=checksum,
            choices=dict(self.settings.choices),
            note=note,
        )

    def adopt(self, written: Written) -> None:
        """Take over what a task has handed over, to be committed, or deleted, with the files of this write.

        Raises IntegrityError for files of another write or partition spec, or for a partition that another task has
        written: a task that ran twice hands over two sets of files, and only one of them may be committed. Refused
        files stay: they may be another write's.
        """
        self.close_file()
        theirs = {partition for _, partition in written.files}
        twice = theirs & {partition for _, partition in self._done}
        for what, required, found in (
            ("files of write", self.write_id, written.write_id),
            ("files of partition spec", self._spec_id, written.spec_id),
            ("each partition once, of those twice", "none", ", ".join(map(str, sorted(twice, key=str))) or "none"),
        ):
            if required != found:
                raise IntegrityError(
                    f"{'.'.join(self.table.name())}: {what} {required} required, found {found}; nothing was committed. "
                    f"The files stay: once write {written.write_id} has ended, sweep_orphans(write_id=...) removes "
                    "what it left"
                )
        self._done += written.files
        self._paths += [data_file.file_path for data_file, _ in written.files]
        self.settings.choices = dict(written.choices)

    def give_up(self, partitions: Collection[int | None]) -> None:
        """Delete the finished files of these partitions, as if they had not been written."""
        gone = [data_file.file_path for data_file, partition in self._done if partition in partitions]
        self._done = [(data_file, partition) for data_file, partition in self._done if partition not in partitions]
        self._paths = [path for path in self._paths if path not in set(gone)]
        for path in gone:
            with contextlib.suppress(Exception):  # the sweep of orphans removes what stays
                self.table.io.delete(path)

    def commit(
        self,
        *,
        replace: bool,
        removed: Iterable[DataFile] | None = None,
        properties: dict[str, str] | None = None,
        branch: str = MAIN,
        rebase: bool = False,
    ) -> int | None:
        """Make the files part of the table in one snapshot; its id, or None if there was nothing to do.

        replace: they take the place of `removed`, or if that is None of all files of the snapshot that `table`
        shows; else they are added.  properties: for the snapshot's summary.
        branch: which must exist, unless it is main.
        rebase: put the replacement on top of other writers' commits as long as every removed file is still there; for
        rewrites that leave what others added alone. Appends always are.
        Raises ConflictError if another writer was faster: nothing was changed then.
        """
        self.close_file()
        old = list(removed) if removed is not None else []
        if replace and removed is None and self.table.current_snapshot() is not None:
            old = data_files(self.table)
        if not self._done and not old and not self._updates:
            return None
        summary = {**(properties or {}), WRITE_ID: self.write_id}
        is_all = replace and removed is None
        choices = to_json(self.settings.choices)
        if branch == MAIN and self.settings.choices and self.target.properties.get(CHOICES_PROPERTY) != choices:
            self._updates = (*self._updates, SetPropertiesUpdate(updates={CHOICES_PROPERTY: choices}))
        retries = CommitRetries.of(self.table.properties)
        begun = self.table.metadata.snapshot_by_name(branch)
        for attempt in range(retries.count + 1):
            self._check_still_fits()  # what does not fit now never will
            try:
                self._commit_once(old, replace=replace, is_all=is_all, summary=summary, branch=branch)
                break
            except ConflictError:
                if isinstance(self.table, StagedTable):  # its name is taken for good
                    raise
                retries.wait(attempt)
                try:
                    self.table.refresh()
                except ValueError as error:
                    if is_conflict(error):  # another table has its name
                        raise self._conflict() from error
                    raise
                if replace and not (rebase and self._all_there(old, branch)) and not self._is_at(begun, branch):
                    raise
                if attempt == retries.count:
                    raise self._conflict(f"{retries} later, others still commit faster") from None
            except BaseException as error:
                # The catalog may have taken the commit before its answer was lost, and may still take one that it did
                # not answer in time. Deleting the files of a landed commit would break the table, so they go only where
                # the table is known not to have it; else they stay, and the sweep of orphans removes them.
                self._keep = True
                landed = self._landed_as(self.write_id)
                if landed is not None and isinstance(error, Exception):
                    return landed
                self._keep = not self._reachable or not isinstance(error, Exception) or is_outcome_unknown(error)
                if self._keep:
                    error.add_note(MAY_LAND)
                else:
                    self._delete_manifests()
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
    ) -> None:
        now = self.table.metadata
        # A writer that began before the bucket count or the columns changed would add files that do not belong there.
        requirements: tuple[TableRequirement, ...] = (
            AssertDefaultSpecId(default_spec_id=self._spec_id),  # type: ignore[call-arg]
            AssertCurrentSchemaId(current_schema_id=now.current_schema_id),  # type: ignore[call-arg]
        )
        added = [data_file for data_file, _ in self._done]
        try:
            with one_attempt(self.table) as transaction:
                stage(transaction, (), requirements)
                stage(transaction, self._updates)
                if replace and (added or old):
                    self._delete_manifests = replace_files(
                        transaction, old, added, summary=summary, branch=branch, deletes=is_all
                    )
                elif added:  # else an empty table takes another form
                    self._delete_manifests = append_files(transaction, added, summary=summary, branch=branch)
                if branch != MAIN:
                    stage(transaction, taken_back(now, self._updates))
        except Exception as error:
            if is_outcome_unknown(error):
                raise
            if is_conflict(error):
                raise self._conflict() from error
            check_manifests(self.table, self.table.metadata.snapshot_by_name(branch))  # names the one that is damaged
            raise

    def _all_there(self, removed: list[DataFile], branch: str) -> bool:
        snapshot = self.table.metadata.snapshot_by_name(branch)
        if snapshot is None:
            return False
        return {file.file_path for file in removed} <= listed(self.table, snapshot, removed)

    def _is_at(self, snapshot: Snapshot | None, branch: str) -> bool:
        """Whether what others committed left the rows of the branch alone, as a change of properties does."""
        return self.table.metadata.snapshot_by_name(branch) == snapshot

    def _check_still_fits(self) -> None:
        """Raise ConflictError unless the table has the partition spec and columns that the files were made for."""
        try:
            schema = file_schema(preview(self.table, self._updates), self._schema, self._layout)
        except ValueError as error:  # a column is gone
            raise self._conflict() from error
        same_columns = schema.equals(self._form.schema, check_metadata=True)
        if not same_columns or self.table.metadata.default_spec_id != self._spec_id:
            raise self._conflict()

    def _conflict(self, how: str = "another writer changed the table in the meantime") -> ConflictError:
        if isinstance(self.table, StagedTable):
            how = "another writer made the table in the meantime"
        return ConflictError(
            f"{'.'.join(self.table.name())}: {how}; nothing was written. Load the table again and repeat the write"
        )

    def _landed_as(self, write_id: str) -> int | None:
        """The snapshot of this write in the newest metadata, if there is one and the catalog can be asked."""
        is_new = isinstance(self.table, StagedTable)
        try:
            now = self.table.catalog.load_table(self.table.name()) if is_new else self.table.refresh()
        except Exception as error:
            if is_new and isinstance(error, NoSuchTableError):
                return None
            self._reachable = False
            return None
        for snapshot in now.metadata.snapshots:
            if snapshot.summary is not None and snapshot.summary.get(WRITE_ID) == write_id:
                return snapshot.snapshot_id
        return None
