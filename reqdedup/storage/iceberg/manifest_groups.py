"""Manifests of consecutive buckets: a commit reads and writes those that list what it replaces, and no others.

    one write            | buckets 0, 1, 2 | 3, 4 | ... | 998, 999 |    at most FILES_PER_MANIFEST files each
    bucket 4 replaced    |        =        | 3, 4 | ... |    =     |    one is written again, the others stay

pyiceberg 0.12 writes all files of a commit into one manifest, so that replacing a bucket would read and write the list
of all files. What a touched manifest still lists is grouped again with the files that come: a manifest of another
engine, or of many appends, which covers many buckets, is read once and then no more. Appends leave what is there alone.
docs/decisions/0080.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    DEFAULT_READ_VERSION,
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
)
from pyiceberg.table import Transaction
from pyiceberg.table.update.snapshot import _SnapshotProducer
from pyiceberg.utils.concurrent import ExecutorFactory

from reqdedup.storage.iceberg.manifests import Lookup, with_sources
from reqdedup.storage.iceberg.same_requests import REQUESTS_OF, brings_no_requests, same_requests

Producer = TypeVar("Producer", bound=_SnapshotProducer[Any])

FILES_PER_MANIFEST = 256
"""Data files that a manifest lists, at most: some 50 kB, which a commit reads and writes in a few hundredths of a
second. A bucket with fewer is in one manifest."""

_BOUNDS = [
    position
    for position, field in enumerate(DATA_FILE_TYPE[DEFAULT_READ_VERSION].fields)
    if field.name in ("lower_bounds", "upper_bounds")
]


def append_files(
    transaction: Transaction, added: Iterable[DataFile], *, summary: dict[str, str], branch: str = "main"
) -> Callable[[], None]:
    """Put the snapshot into the transaction that has `added` beside what there is; what deletes its manifests again."""
    update = transaction.update_snapshot(snapshot_properties=summary, branch=branch)
    with _grouped(update.fast_append()) as snapshot:
        for data_file in added:
            snapshot.append_data_file(data_file)
    return snapshot._clean_all_uncommitted


def replace_files(
    transaction: Transaction,
    removed: Iterable[DataFile],
    added: Iterable[DataFile],
    *,
    summary: dict[str, str],
    branch: str = "main",
    deletes: bool = False,
) -> Callable[[], None]:
    """Put the snapshot into the transaction that has `added` in place of `removed`; what deletes its manifests again.

    It keeps no values of the removed files, since their bounds may be the last that is known of a deleted user.
    deletes: nor delete files of another engine, which apply to nothing if every data file is replaced.
    """
    update = transaction.update_snapshot(snapshot_properties=summary, branch=branch)
    with _grouped(update.overwrite(), deletes=deletes) as snapshot:
        for data_file in removed:
            snapshot.delete_data_file(data_file)
        for data_file in added:
            snapshot.append_data_file(data_file)
    return snapshot._clean_all_uncommitted


@contextmanager
def _grouped(producer: Producer, *, deletes: bool = False) -> Iterator[Producer]:
    """A snapshot with manifests in groups; if they cannot be written, on a full disk, none of them stays."""
    try:
        with producer as snapshot:
            _group(snapshot, deletes=deletes)
            yield snapshot
    except BaseException:  # nothing was offered to the catalog yet
        producer._clean_all_uncommitted()
        raise


def _group(snapshot: _SnapshotProducer[Any], *, deletes: bool = False) -> None:
    """Have the snapshot write its manifests in groups."""
    noted = snapshot.snapshot_properties
    schema = with_sources(snapshot._transaction.table_metadata)

    def manifests() -> list[ManifestFile]:
        # Here and not before: pyiceberg may try again on top of another parent.
        metadata = snapshot._transaction.table_metadata
        if brings_no_requests(noted):
            _, first = same_requests(metadata, snapshot._parent_snapshot_id)
            snapshot.snapshot_properties = {**noted, REQUESTS_OF: str(first)} if first is not None else noted
        kept, staying, removed = _parted(snapshot, deletes=deletes)
        added = [_entry(snapshot, file, metadata.default_spec_id) for file in snapshot._added_data_files]
        return [*_written(snapshot, [*staying, *added]), *_written(snapshot, removed), *kept]

    snapshot._manifests, snapshot.schema = manifests, lambda: schema  # type: ignore[method-assign]  # meant


def _parted(
    snapshot: _SnapshotProducer[Any], *, deletes: bool
) -> tuple[list[ManifestFile], list[ManifestEntry], list[ManifestEntry]]:
    """Manifests of the parent that stay as they are; of the others what goes on, and what is removed."""
    metadata, files = snapshot._transaction.table_metadata, list(snapshot._deleted_data_files)
    parent = snapshot._parent_snapshot_id
    before = metadata.snapshot_by_id(parent) if parent is not None else None
    lookup, gone = Lookup(metadata, files), {file.file_path for file in files}
    kept: list[ManifestFile] = []
    touched: list[ManifestFile] = []
    for manifest in before.manifests(snapshot._io) if before is not None else []:
        if not (manifest.has_added_files() or manifest.has_existing_files()):
            continue  # what was removed once is carried along by nobody
        if manifest.content is not ManifestContent.DATA:
            kept += [] if deletes else [manifest]
        else:
            (touched if lookup.may_list(manifest) else kept).append(manifest)
    staying: list[ManifestEntry] = []
    removed: list[ManifestEntry] = []
    read = ExecutorFactory.get_or_create().map(snapshot.fetch_manifest_entry, touched)
    for manifest, entries in zip(touched, read, strict=True):
        of_it = [entry for entry in entries if entry.data_file.file_path in gone]
        if not of_it:
            kept.append(manifest)
            continue
        removed += [_again(snapshot, entry, ManifestEntryStatus.DELETED) for entry in of_it]
        others = (entry for entry in entries if entry.data_file.file_path not in gone)
        staying += [_again(snapshot, entry, ManifestEntryStatus.EXISTING) for entry in others]
    missing = gone - {entry.data_file.file_path for entry in removed}
    if missing:
        raise ValidationException(f"Missing required files to delete: {', '.join(sorted(missing)[:8])}")
    for entry in removed:
        for position in _BOUNDS:
            entry.data_file[position] = None
    return kept, staying, removed


def _entry(snapshot: _SnapshotProducer[Any], file: DataFile, spec_id: int) -> ManifestEntry:
    """Of a file that comes; the manifest list gives it its sequence number."""
    file.spec_id = spec_id  # pyiceberg's own writer of rows leaves it out
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED,
        snapshot_id=snapshot._snapshot_id,
        sequence_number=None,
        file_sequence_number=None,
        data_file=file,
    )


def _again(snapshot: _SnapshotProducer[Any], entry: ManifestEntry, status: ManifestEntryStatus) -> ManifestEntry:
    """Of a file of the parent: it keeps who added it and when; one that goes is noted as this snapshot's removal."""
    return ManifestEntry.from_args(
        status=status,
        snapshot_id=snapshot._snapshot_id if status is ManifestEntryStatus.DELETED else entry.snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=entry.data_file,
    )


def _written(snapshot: _SnapshotProducer[Any], entries: Sequence[ManifestEntry]) -> list[ManifestFile]:
    """The manifests of these entries, written side by side."""
    groups: list[list[ManifestEntry]] = []
    for _, of_spec in groupby(sorted(entries, key=_spec_id), key=_spec_id):
        groups += consecutive(list(of_spec))
    return list(ExecutorFactory.get_or_create().map(partial(_write, snapshot), groups))


def consecutive(entries: Sequence[ManifestEntry]) -> list[list[ManifestEntry]]:
    """The entries by partition, in groups of whole partitions; one with more than a manifest lists is cut."""
    groups: list[list[ManifestEntry]] = []
    for _, of_one in groupby(sorted(entries, key=_place), key=_place):
        together = list(of_one)
        if groups and len(groups[-1]) + len(together) <= FILES_PER_MANIFEST:
            groups[-1] += together
            continue
        starts = range(0, len(together), FILES_PER_MANIFEST)
        groups += [together[start : start + FILES_PER_MANIFEST] for start in starts]
    return groups


def _spec_id(entry: ManifestEntry) -> int:
    return entry.data_file.spec_id


def _place(entry: ManifestEntry) -> tuple[tuple[bool, Any], ...]:
    """The partition's values, in an order that takes nulls."""
    record = entry.data_file.partition
    return tuple((record[index] is not None, record[index]) for index in range(len(record)))


def _write(snapshot: _SnapshotProducer[Any], entries: Sequence[ManifestEntry]) -> ManifestFile:
    spec = snapshot.spec(_spec_id(entries[0]))
    with snapshot.new_manifest_writer(spec) as writer:
        # As one block: pyiceberg makes a block of each entry, and so compresses each alone.
        block: list[ManifestEntry] = []
        write_block = writer._writer.write_block
        writer._writer.write_block = block.extend  # type: ignore[method-assign, assignment]  # meant
        for entry in entries:
            writer.add_entry(entry)
        write_block(block)
    return writer.to_manifest_file()
