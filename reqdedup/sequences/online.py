"""Sequences as a server reads them: a batch view up to its watermark, and what was delivered since, side by side.

    BatchView [0, W) ++ SpeedView [W, now)      split by position: nothing is in both, nothing is deduplicated at read

    folder/CURRENT         name of the view that is served
    folder/view-<n>/       views, see `view`
    folder/delivered.wal   what was put since, see `speed`
    folder/taken           position up to which all was put when users were deleted, whose events may have been the last
    folder/open.lock       shared by processes that have it open; who deletes users from outside needs it alone

One process writes, from any of its threads; a read is of one moment. `naive.sequence_at` is the definition of what
`fetch` answers.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from pyiceberg.catalog import Catalog

from reqdedup.sequences.definition import ARRIVAL_TS, USER, SequenceDefinition, enrichments_of
from reqdedup.sequences.lookups import load_lookups
from reqdedup.sequences.naive import HORIZON_US
from reqdedup.sequences.speed import SpeedView, WriteAheadFile, batches_of
from reqdedup.sequences.store import WindowError
from reqdedup.sequences.tables import POSITION
from reqdedup.sequences.timeline_builder import TimelineBuilder
from reqdedup.sequences.view import BatchView, build_view
from reqdedup.sequences.windows import window_limits

CURRENT, WAL, TAKEN, LOCK = "CURRENT", "delivered.wal", "taken", "open.lock"


class OnlineStore:
    """The sequences of a namespace in one folder. Made by `open_online`."""

    def __init__(self, folder: Path, catalog: Catalog, namespace: str, lock: IO[str] | None = None) -> None:
        self._folder, self._catalog, self._namespace = folder, catalog, namespace
        self._lock = lock or (folder / LOCK).open("w")
        if lock is None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._guard, self._refreshing = threading.RLock(), threading.RLock()
        self._wal = WriteAheadFile(folder / WAL)
        self._use(BatchView(folder / (folder / CURRENT).read_text()))

    def _use(self, view: BatchView) -> None:
        definitions = view.state.parsed()
        tables = load_lookups(self._catalog, enrichments_of(definitions))
        builder = TimelineBuilder(view.log, definitions, tables, horizon_us=view.horizon_us)
        speed = SpeedView(builder, view.ends, view.recent(), position=view.state.position, version=view.state.version)
        for events in self._wal.batches():
            speed.put(events)
        if (self._folder / TAKEN).exists():
            speed.position = max(speed.position, int((self._folder / TAKEN).read_text()))
        self.view, self.speed = view, speed
        self._definitions = {one.name: one for one in definitions}

    @property
    def position(self) -> int:
        """Number of the next event to be put."""
        return self.speed.position

    def put(self, events: pl.DataFrame) -> int:
        """Take numbered events; those that were put before are left out. How many were new.

        On disk before they are taken: after a kill, what was confirmed is there, and putting the batch again is safe.
        Not on disk before the builder has made rows of them: what it refuses would keep the store from opening again.
        Raises ValueError for that, OSError if the disk does not take them; then nothing has changed.
        """
        with self._guard:
            events = events.filter(pl.col(POSITION) >= self.speed.position)
            return self.speed.put(events, before=lambda: self._wal.append(events))

    def fetch(
        self, user_id: int, sequence: str, columns: Sequence[str] | None = None, *, at_us: int | None = None
    ) -> dict[str, np.ndarray]:
        """A sequence of a user, oldest event first: columns [length] each, missing values as `columns` says.

        columns: of the definition's, by default all; the others are not read.  at_us: what had arrived before this
        time, microseconds since 1970; None: all, with the definition's window back from the latest arrival.
        Raises ValueError if there is no such sequence or column.
        """
        definition = self.definition(sequence)
        names = definition.chosen(columns)
        with self._guard:
            num, num_since = self._arrived(user_id, at_us)
            last = self._rank(user_id, definition.rank_column, num, num_since)
            latest = at_us if at_us is not None else max(self.speed.arrival_us, self.view.state.arrival_us) + 1
            first, oldest_us = window_limits(definition, last, latest, self.view.state.kept_from_us)
            return self._read(user_id, definition.rank_column, names, first, num, num_since, oldest_us)

    def window(
        self, user_id: int, sequence: str, columns: Sequence[str] | None, first: int, last: int | None = None
    ) -> tuple[dict[str, np.ndarray], int]:
        """The sequence's events number `first` to before `last` (None: all), from 0 on, and how many there are; those
        beyond the retention are left out.

        columns: of the definition, by default all, and `arrival_ts`. Raises ValueError if there are fewer than `last`,
        or no such sequence or column.
        """
        definition = self.definition(sequence)
        own = None if columns is None else [name for name in columns if name != ARRIVAL_TS]
        names, rank = definition.chosen(own), definition.rank_column
        if columns is not None and ARRIVAL_TS in columns:
            names = [*names, ARRIVAL_TS]
        with self._guard:
            num, num_since = self._arrived(user_id, None)
            end = self._rank(user_id, rank, num, num_since)
            if last is not None and not 0 <= last <= end:
                raise WindowError("at", f"0 to {end}, the end of the timeline,", str(last))
            if last is not None:
                of_view, since = self.view.of_user(user_id), self.speed.of_user(user_id)
                num = int(np.searchsorted(self.view.columns[rank][of_view.start : of_view.end], last, "right"))
                num_since = int(np.searchsorted(since[rank], last, "right")) if since is not None else 0
            return self._read(user_id, rank, names, first, num, num_since, self.view.state.kept_from_us), end

    def _arrived(self, user_id: int, at_us: int | None) -> tuple[int, int]:
        """How many of the user's events in the view, and of those since, had arrived before this time."""
        of_view, since = self.view.of_user(user_id), self.speed.of_user(user_id)
        num, num_since = of_view.end - of_view.start, len(since[ARRIVAL_TS]) if since is not None else 0
        if at_us is not None:
            if since is not None:
                num_since = int(np.searchsorted(since[ARRIVAL_TS], at_us))
            if not num_since:
                num = int(np.searchsorted(self.view.columns[ARRIVAL_TS][of_view.start : of_view.end], at_us))
        return num, num_since

    def _rank(self, user_id: int, rank: str, num: int, num_since: int) -> int:
        """How many of the sequence's events are among the first of the view and of those since."""
        since = self.speed.of_user(user_id)
        if num_since and since is not None:
            return int(since[rank][num_since - 1])
        return int(self.view.columns[rank][self.view.of_user(user_id).start + num - 1]) if num else 0

    def _read(
        self, user_id: int, rank: str, names: Sequence[str], first: int, num: int, num_since: int, oldest_us: int
    ) -> dict[str, np.ndarray]:
        """The sequence's events from number `first` on that had arrived, and not before `oldest_us`."""
        of_view, since = self.view.of_user(user_id), self.speed.of_user(user_id)
        ranks, end = self.view.columns[rank], of_view.start + num
        start = of_view.start + int(np.searchsorted(ranks[of_view.start : end], first, "right"))
        first_since = 0
        if num_since and since is not None:
            first_since = int(np.searchsorted(since[rank][:num_since], first, "right"))
        if oldest_us:
            start += int(np.searchsorted(self.view.columns[ARRIVAL_TS][start:end], oldest_us))
            if num_since and since is not None:
                first_since += int(np.searchsorted(since[ARRIVAL_TS][first_since:num_since], oldest_us))
        chosen = _members(ranks[start:end], int(ranks[start - 1]) if start > of_view.start else 0)
        chosen_since = None
        if num_since > first_since and since is not None:
            whole = int(ranks[of_view.end - 1]) if of_view.end > of_view.start else 0
            before = int(since[rank][first_since - 1]) if first_since else whole
            chosen_since = _members(since[rank][first_since:num_since], before)
        found = {}
        for name in names:
            values = self.view.read(name, start, end)
            if chosen is not None:
                values = values[chosen]
            if num_since > first_since and since is not None:
                new = since[name][first_since:num_since]
                values = np.concatenate([values, new if chosen_since is None else new[chosen_since]])
            found[name] = values
        return found

    def definition(self, sequence: str) -> SequenceDefinition:
        if sequence not in self._definitions:
            raise ValueError(f"fetch: a sequence of {', '.join(self._definitions)} required, found {sequence!r}")
        return self._definitions[sequence]

    def refresh(self) -> None:
        """Serve the timeline as it is now: a new view, and of what was put only what came after its watermark."""
        with self._refreshing:  # of two at once, each would remove the other's view
            number = int((self._folder / CURRENT).read_text().removeprefix("view-")) + 1
            view = _built(self._catalog, self._namespace, self._folder, number, self.view.horizon_us)
            with self._guard:
                self._use(view)
                rest = (one.filter(pl.col(POSITION) >= view.state.position) for one in list(self._wal.batches()))
                self._wal.keep(rest)
            for old in self._folder.glob("view-*"):  # one that was killed here has left several
                if old.name != view.folder.name:
                    shutil.rmtree(old, ignore_errors=True)

    def delete_users(self, user_ids: Iterable[int]) -> None:
        """Forget users who were deleted from the tables: their events in the view and in what was put."""
        gone = pl.Series(list(user_ids), dtype=pl.Int64).implode()
        with self._refreshing, self._guard:
            _write_whole(self._folder / TAKEN, str(self.speed.position))  # what was put of the users is known too
            self._wal.keep(events.filter(~pl.col(USER).is_in(gone)) for events in list(self._wal.batches()))
            self.refresh()

    def close(self) -> None:
        self._wal.close()
        self._lock.close()


def open_online(folder: Path | str, catalog: Catalog, namespace: str, *, horizon_us: int = HORIZON_US) -> OnlineStore:
    """The store in a folder, made from the timeline as it is now if there is none; what was put before is run again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CURRENT).exists():
        _built(catalog, namespace, folder, 1, horizon_us)
    return OnlineStore(folder, catalog, namespace)


def online_namespace(folder: Path) -> str:
    """Whose sequences the store in a folder has. Raises ValueError if there is none."""
    return _current(folder).namespace


def delete_from_online(
    folder: Path, catalog: Catalog, user_ids: Collection[int], *, dry_run: bool = False
) -> tuple[int, int]:
    """Forget users, who were deleted from the tables, in a folder that no process has open.

    How many records of theirs there were, and how many stay since a process has the folder open: that one can call
    `OnlineStore.delete_users`, or be ended first.
    """
    view = _current(folder)
    of_view = [view.of_user(user) for user in user_ids]
    gone = pl.Series(list(user_ids), dtype=pl.Int64).implode()
    num_put = sum(events.filter(pl.col(USER).is_in(gone)).height for events in batches_of(folder / WAL))
    num_records = sum(one.end - one.start for one in of_view) + num_put
    lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return num_records, num_records
    if dry_run:
        lock.close()
    else:
        store = OnlineStore(folder, catalog, view.namespace, lock)
        store.delete_users(user_ids)
        store.close()
    return num_records, 0


def _current(folder: Path) -> BatchView:
    if not (folder / CURRENT).exists():
        raise ValueError(f"{folder}: the folder of an online store required, found none")
    return BatchView(folder / (folder / CURRENT).read_text())


def _built(catalog: Catalog, namespace: str, folder: Path, number: int, horizon_us: int) -> BatchView:
    """Build view `number` and make it the one that is served, in one step."""
    place = folder / f"view-{number}"
    shutil.rmtree(place, ignore_errors=True)  # of a build that was killed
    view = build_view(catalog, namespace, place, horizon_us=horizon_us)
    _write_whole(folder / CURRENT, place.name)
    return view


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def _members(ranks: np.ndarray, before: int) -> np.ndarray | None:
    """Which of these events raise the rank; None if all do."""
    if not len(ranks) or int(ranks[-1]) - before == len(ranks):
        return None
    return np.flatnonzero(np.diff(ranks, prepend=before))
