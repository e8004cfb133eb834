"""Expiry: old snapshots leave the table's metadata, and the files that only they needed leave the disk.

pyiceberg's own expiry stops at the metadata. Here the files go in the same call, since it is known which they are: what
the expired snapshots reach and no remaining one does. A run that is killed in between leaves them to `sweep_orphans`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRef, SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import RemoveSnapshotsUpdate

from reqdedup.display import counted
from reqdedup.storage.iceberg.errors import ConflictError
from reqdedup.storage.iceberg.evolve import commit_refs
from reqdedup.storage.iceberg.files import NeededFile, file_key, is_under, reachable_files

DEFAULT_AGE = timedelta(days=5)
"""Iceberg's own default: readers keep a snapshot for less."""

ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class ExpireReport:
    """What an expiry did, or with dry_run would do.

    expired: snapshot ids.  kept: how many remain.  files: freed, by kind.  bytes: of data files and manifests.
    outside: files outside the table's location, which are never deleted.
    """

    expired: tuple[int, ...]
    kept: int
    files: dict[str, int]
    bytes: int
    outside: int
    dry_run: bool


def expire_snapshots(
    table: Table,
    *,
    older_than: timedelta | datetime = DEFAULT_AGE,
    keep_last: int = 1,
    dry_run: bool = False,
) -> ExpireReport:
    """Forget snapshots older than `older_than` and delete the files that only they needed.

    older_than: an age, or a time with its zone.  keep_last: newest snapshots of every branch that stay whatever their
    age. The heads of branches and all tags always stay; a reader that is still in an expired snapshot fails.
    dry_run: change nothing and say what would go. A feature table by position needs `realign` first, if requests came
    or went in its main table.
    Raises ValueError for a bad age or count, ConflictError if others move branches all the time.
    """
    cutoff = cutoff_of(older_than)
    if keep_last < 1:
        raise ValueError(f"keep_last: at least 1 required, found {keep_last}; the newest snapshot is the table")
    for attempt in range(ATTEMPTS):
        table.refresh()
        expired = _expired(table, cutoff, keep_last)
        needed = reachable_files(table, expired)
        kept = [snapshot for snapshot in table.metadata.snapshots if snapshot not in expired]
        if dry_run or not expired:
            remaining = {file_key(path) for path in reachable_files(table, kept)}
            return _report(table, expired, needed, remaining, dry_run=dry_run)
        heads: dict[str, int | None] = {name: ref.snapshot_id for name, ref in table.metadata.refs.items()}
        update = RemoveSnapshotsUpdate(snapshot_ids=[snapshot.snapshot_id for snapshot in expired])  # type: ignore[call-arg]
        try:
            commit_refs(table, [update], expected=heads)
        except ConflictError as error:  # a branch has moved: what may go is another question now
            conflict = error
            time.sleep(0.05 * attempt)
            continue
        table.refresh()
        remaining = {file_key(path) for path in reachable_files(table)}
        report = _report(table, expired, needed, remaining, dry_run=False)
        delete_files(table, _freed(table, needed, remaining)[0])
        return report
    raise ConflictError(
        f"{'.'.join(table.name())}: branches at rest required, found them moved in {ATTEMPTS} attempts; nothing "
        "expired, run it again when others are done"
    ) from conflict


def cutoff_of(older_than: timedelta | datetime) -> datetime:
    """The time before which something is old. Raises ValueError for a negative age or a time without its zone."""
    if isinstance(older_than, timedelta):
        if older_than < timedelta(0):
            raise ValueError(f"older_than: an age of at least 0 required, found {older_than}")
        return datetime.now(UTC) - older_than
    if older_than.tzinfo is None:
        raise ValueError(f"older_than: a time with its zone required, found {older_than}; say tzinfo=UTC")
    return older_than


def delete_files(table: Table, paths: Iterable[str]) -> None:
    """Delete these files. Raises OSError, once all were tried, for those that would not go; missing ones are gone."""
    failed: list[tuple[str, Exception]] = []
    for path in paths:
        try:
            table.io.delete(path)
        except FileNotFoundError:
            continue
        except Exception as error:
            failed.append((path, error))
    if failed:
        path, cause = failed[0]
        raise OSError(
            f"{'.'.join(table.name())}: storage that deletes required, found {counted(len(failed), 'file')} that "
            f"would not go, {path} among them ({cause}); the table is whole, `sweep_orphans` removes what was left"
        ) from cause


def _expired(table: Table, cutoff: datetime, keep_last: int) -> list[Snapshot]:
    kept: set[int] = set()
    cutoff_ms = cutoff.timestamp() * 1000
    for ref in table.metadata.refs.values():
        kept.add(ref.snapshot_id)
        if ref.snapshot_ref_type == SnapshotRefType.BRANCH:
            kept |= _kept_on_branch(table, ref, keep_last)
    return [
        snapshot
        for snapshot in table.metadata.snapshots
        if snapshot.snapshot_id not in kept and snapshot.timestamp_ms < cutoff_ms
    ]


def _kept_on_branch(table: Table, ref: SnapshotRef, keep_last: int) -> set[int]:
    kept: set[int] = set()
    snapshot = table.snapshot_by_id(ref.snapshot_id)
    while snapshot is not None and len(kept) < max(keep_last, ref.min_snapshots_to_keep or 1):
        kept.add(snapshot.snapshot_id)
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    return kept


def _freed(table: Table, needed: dict[str, NeededFile], remaining: set[str]) -> tuple[list[str], int]:
    """Files that nothing needs any more and that lie under the table's location; how many lie elsewhere."""
    paths = [path for path in needed if file_key(path) not in remaining]
    inside = [path for path in paths if is_under(path, table.location())]
    return inside, len(paths) - len(inside)


def _report(
    table: Table, expired: list[Snapshot], needed: dict[str, NeededFile], remaining: set[str], *, dry_run: bool
) -> ExpireReport:
    paths, outside = _freed(table, needed, remaining)
    return ExpireReport(
        expired=tuple(snapshot.snapshot_id for snapshot in expired),
        kept=len(table.metadata.snapshots) - (len(expired) if dry_run else 0),
        files=dict(Counter(needed[path].kind for path in paths)),
        bytes=sum(needed[path].num_bytes for path in paths),
        outside=outside,
        dry_run=dry_run,
    )
