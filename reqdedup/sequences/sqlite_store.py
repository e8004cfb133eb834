"""The embedded store: one SQLite file in WAL mode, for many readers in many processes and one writer at a time.

    timelines   id, user_id, version, start, end     which events are held
    chunks      timeline, number, events             256 events each, packed; an append rewrites the last one
    features    user_id, data                        of the users of a fill
    appended    key, what was answered               the newest million; an older key would be appended again
    deleted     user_id, when                        so that no fill from older tables brings the user back

A process that is killed leaves what it had committed (after a power cut the last appends may be gone: send them again,
their keys make that safe). A fill writes chunks under timelines of its own, in small transactions beside the appends,
and publishes them in one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reqdedup.sequences.packing import (
    CHUNK,
    EventPacking,
    beyond,
    bounds,
    check_key,
    feature_names,
    merge_timelines,
    no_such_version,
    pack_features,
    unpack_features,
)
from reqdedup.sequences.sqlite_file import SqliteFile, create_file, delete_rows
from reqdedup.sequences.store import (
    FillReport,
    StoreUnavailableError,
    TimelineEnd,
    UserRead,
    UserRecord,
    Window,
    now_us,
)

FORMAT = 2
KEYS_KEPT = 1_000_000
FILL_TOGETHER = 256
"""Users that a fill writes in one transaction: appends wait for one of them at most."""

_NEWEST = "SELECT id, version, start, end FROM timelines WHERE user_id = ? ORDER BY version DESC LIMIT 1"
_NEWEST_AND_FEATURES = (
    "SELECT id, version, start, end, (SELECT data FROM features WHERE user_id = ?1), "
    "(SELECT value FROM meta WHERE name = 'as_of_us') FROM timelines WHERE user_id = ?1 ORDER BY version DESC LIMIT 1"
)
_VERSION = "SELECT id, version, start, end FROM timelines WHERE user_id = ? AND version = ?"
_CHUNKS = "SELECT events FROM chunks WHERE timeline = ? AND number BETWEEN ? AND ? ORDER BY number"
_FEATURES = "SELECT data FROM features WHERE user_id = ?"
_FEATURES_AS_OF = "SELECT data, (SELECT value FROM meta WHERE name = 'as_of_us') FROM features WHERE user_id = ?"
_AS_OF = "SELECT value FROM meta WHERE name = 'as_of_us'"
_DELETED_SINCE = "SELECT 1 FROM deleted WHERE user_id = ? AND deleted_us >= ?"
_PUT_CHUNK = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)"


class SqliteStore:
    """The store in the file `path`, made with these columns if it is not there; see `Store` for the calls.

    columns: name -> dtype of the events; None if the file is there, which says it.  timeout_s: longest wait for another
    writer; readers never wait.  Raises ValueError if the file has other columns, or there is none and none are given.
    """

    def __init__(self, path: Path | str, columns: Mapping[str, str] | None = None, *, timeout_s: float = 1.0) -> None:
        self.path = Path(path).absolute()
        if columns is not None and not self.path.exists():
            create_file(self.path, {"format": FORMAT, "columns": EventPacking(columns).columns})
        if not self.path.exists():
            raise ValueError(f"store {self.path}: a file required, found none; make one with `reqdedup store fill`")
        self._file = SqliteFile(self.path, timeout_s)
        try:
            stored_format, stored = self._file.meta("format"), self._file.meta("columns")
        except StoreUnavailableError as error:
            if "not a database" in str(error) or "no such table" in str(error):
                raise ValueError(
                    f"store {self.path}: a file of `reqdedup store fill` required, found another kind; name another"
                ) from None
            raise
        if stored_format == 1:
            self._file.upgrade()
            stored_format = FORMAT
        if stored_format != FORMAT:
            raise ValueError(
                f"store {self.path}: format {FORMAT} required, found {stored_format}; name another file and fill it"
            )
        if columns is not None and dict(columns) != stored:
            raise ValueError(
                f"store {self.path}: events of {dict(columns)} required, found a store of {stored}; remove it, or name "
                "another file, and fill that"
            )
        self._packing, self._has_deleted = EventPacking(stored), False

    @property
    def columns(self) -> Mapping[str, str]:
        return self._packing.columns

    def append(
        self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, stands: TimelineEnd | None = None
    ) -> TimelineEnd:
        user_id, data = int(user_id), self._packing.pack(events)
        with self._file.writing() as connection:
            if (found := _answered(connection, key, user_id)) is not None:
                return found
            row = connection.execute(_NEWEST, (user_id,)).fetchone()
            if row is None:
                version, start = (stands.version, stands.end) if stands is not None else (0, 0)
                row = _new_timeline(connection, user_id, version, start), version, start, start
            timeline, version, start, end = row
            if stands is not None:
                data = beyond(data, stands, TimelineEnd(version, end), self._packing.event_bytes)
            end = self._extend(connection, timeline, start, end, data)
            return _answer(connection, key, user_id, TimelineEnd(version, end))

    def correct(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, start: int = 0) -> TimelineEnd:
        user_id, data = int(user_id), self._packing.pack(events)
        if start < 0:
            raise ValueError(f"correct: a start of at least 0 required, found {start}")
        with self._file.writing() as connection:
            if (found := _answered(connection, key, user_id)) is not None:
                return found
            row = connection.execute(_NEWEST, (user_id,)).fetchone()
            version = row[1] + 1 if row else 0
            end = self._extend(connection, _new_timeline(connection, user_id, version, start), start, start, data)
            return _answer(connection, key, user_id, TimelineEnd(version, end))

    def end(self, user_id: int) -> TimelineEnd | None:
        with self._file.connection() as connection:
            row = connection.execute(_NEWEST, (int(user_id),)).fetchone()
        return TimelineEnd(row[1], row[3]) if row else None

    def window(
        self,
        user_id: int,
        columns: Sequence[str],
        *,
        start_of: Callable[[int], int],
        at: int | None = None,
        version: int | None = None,
    ) -> Window | None:
        return self.fetch(user_id, columns, (), start_of=start_of, at=at, version=version).window

    def fetch(
        self,
        user_id: int,
        columns: Sequence[str],
        names: Sequence[str],
        *,
        start_of: Callable[[int], int],
        at: int | None = None,
        version: int | None = None,
    ) -> UserRead:
        user_id, nothing = int(user_id), (None, None)
        self._packing.check(columns)

        def look_up(connection: sqlite3.Connection) -> tuple[Any, ...]:
            row = connection.execute(_NEWEST_AND_FEATURES if names else _NEWEST, (user_id,)).fetchone()
            if row is None:
                return None, *(
                    (connection.execute(_FEATURES_AS_OF, (user_id,)).fetchone() if names else None) or nothing
                )
            timeline, found_version, held_from, held_until, *features = row
            if version is not None and found_version != version:
                row = connection.execute(_VERSION, (user_id, version)).fetchone()
                if row is None:
                    raise no_such_version(user_id, version)
                timeline, found_version, held_from, held_until = row
            last = held_until if at is None else at
            first, last = bounds(held_from, held_until, at, int(start_of(last)))
            data = self._read(connection, timeline, held_from, first, last)
            return (data, first, last, found_version), *(features or nothing)

        found, packed, as_of_us = self._file.read(look_up)
        window = None
        if found is not None:
            data, *place = found
            window = Window(self._packing.unpack(data, columns), *place)
        if packed is None:
            return UserRead(window=window)
        return UserRead(
            window=window,
            features=unpack_features(packed, names),
            as_of_us=int(as_of_us) if as_of_us is not None else None,
        )

    def request_features(self, user_id: int, names: Sequence[str]) -> dict[str, Any]:
        with self._file.connection() as connection:
            row = connection.execute(_FEATURES, (int(user_id),)).fetchone()
        return unpack_features(row[0], names) if row else {}

    def delete_user(self, user_id: int) -> bool:
        self._has_deleted = True
        with self._file.writing() as connection:
            # Not before what the store was filled from, whatever this machine's clock says.
            when_us = max(now_us(), *(int(one) for (one,) in connection.execute(_AS_OF)), 0)
            connection.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?)", (int(user_id), when_us))
            return delete_rows(connection, int(user_id))

    def fill(
        self, users: Iterable[UserRecord], *, source: Mapping[str, Any], as_of_us: int | None = None
    ) -> FillReport:
        report = FillReport(source=dict(source))
        as_of_us = now_us() if as_of_us is None else as_of_us
        with self._file.only_fill():
            self._drop_filling()
            waiting: list[UserRecord] = []
            for user in users:
                waiting.append(user)
                if len(waiting) == FILL_TOGETHER:
                    self._stage(waiting, as_of_us, report)
                    waiting = []
            self._stage(waiting, as_of_us, report)
            with self._file.writing() as connection:
                self._publish(connection, as_of_us, report)
            self._drop_filling()
        return report

    def filled_from(self) -> dict[str, Any] | None:
        return self._file.meta("source")

    def feature_names(self, user_id: int) -> list[str]:
        """What `request_features` knows of the user."""
        with self._file.connection() as connection:
            row = connection.execute(_FEATURES, (int(user_id),)).fetchone()
        return feature_names(row[0]) if row else []

    def counts(self) -> dict[str, int]:
        """Users with a timeline, events of all versions, bytes of the file."""
        with self._file.connection() as connection:
            row = connection.execute("SELECT count(DISTINCT user_id), sum(end - start) FROM timelines").fetchone()
        return {"users": row[0], "events": row[1] or 0, "bytes": self.path.stat().st_size}

    def close(self) -> None:
        """Close the idle connections. The store can be used again afterwards."""
        if self._has_deleted:
            self._file.empty_log()
            self._has_deleted = False
        self._file.close()

    def _stage(self, users: Sequence[UserRecord], as_of_us: int, report: FillReport) -> None:
        """Write what has changed of these users where no reader looks."""
        with self._file.writing() as connection:
            for user in users:
                if not connection.execute("INSERT OR IGNORE INTO filling_users VALUES (?)", (user.user_id,)).rowcount:
                    raise ValueError(f"fill: each user once required, found user {user.user_id} again")
                if connection.execute(_DELETED_SINCE, (user.user_id, as_of_us)).fetchone() is not None:
                    report.num_withheld += 1
                    continue
                changed = self._stage_features(connection, user)
                is_new = connection.execute(_NEWEST, (user.user_id,)).fetchone() is None
                for version, (start, events) in user.timelines.items():
                    changed |= self._stage_timeline(connection, user.user_id, version, start, events, report)
                name = "num_new" if is_new else "num_changed" if changed else "num_same"
                setattr(report, name, getattr(report, name) + 1)

    def _stage_features(self, connection: sqlite3.Connection, user: UserRecord) -> bool:
        data = pack_features(user.features)
        row = connection.execute(_FEATURES, (user.user_id,)).fetchone()
        if row is not None and row[0] == data:
            return False
        connection.execute("INSERT INTO filling_features VALUES (?, ?)", (user.user_id, data))
        return True

    def _stage_timeline(
        self,
        connection: sqlite3.Connection,
        user_id: int,
        version: int,
        start: int,
        events: Mapping[str, np.ndarray],
        report: FillReport,
    ) -> bool:
        table, size = self._packing.pack(events), self._packing.event_bytes
        row = connection.execute(_VERSION, (user_id, version)).fetchone()
        replaces = replaced_end = None
        if row is not None:
            replaces, _, kept_start, replaced_end = row
            kept = self._read(connection, replaces, kept_start, kept_start, replaced_end)
            merged, start, dropped = merge_timelines(kept, kept_start, table, start, size)
            if merged == kept and start == kept_start:
                return False
            if dropped is not None:
                report.num_contradicted += 1
                report.num_events_dropped += dropped
            table = merged
        connection.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'timelines'")
        (timeline,) = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'timelines'").fetchone()
        connection.executemany(_PUT_CHUNK, self._chunk_rows(timeline, table, start))
        connection.execute(
            "INSERT INTO filling_timelines VALUES (?, ?, ?, ?, ?, ?, ?)",
            (timeline, user_id, version, start, start + len(table) // size, replaces, replaced_end),
        )
        return True

    def _publish(self, connection: sqlite3.Connection, as_of_us: int, report: FillReport) -> None:
        """Make everything that was staged what readers see, with what was appended in the meantime."""
        appended_to = connection.execute(
            "SELECT f.id, f.start, f.end, t.id, t.start, t.end FROM filling_timelines f "
            "JOIN timelines t USING (user_id, version) WHERE t.id IS NOT f.replaces OR t.end != f.replaced_end"
        ).fetchall()
        for timeline, start, end, live, live_start, live_end in appended_to:
            kept = self._read(connection, live, live_start, live_start, live_end)
            staged = self._read(connection, timeline, start, start, end)
            merged, start, dropped = merge_timelines(kept, live_start, staged, start, self._packing.event_bytes)
            if dropped is not None:
                report.num_contradicted += 1
                report.num_events_dropped += dropped
            connection.execute("DELETE FROM chunks WHERE timeline = ?", (timeline,))
            connection.executemany(_PUT_CHUNK, self._chunk_rows(timeline, merged, start))
            connection.execute(
                "UPDATE filling_timelines SET start = ?, end = ?, replaces = ? WHERE id = ?",
                (start, start + len(merged) // self._packing.event_bytes, live, timeline),
            )
        gone = connection.execute(
            "SELECT user_id FROM features WHERE user_id NOT IN (SELECT user_id FROM filling_users)"
        ).fetchall()
        for (user_id,) in gone:
            delete_rows(connection, user_id)
        report.num_deleted += len(gone)
        # Chunks of what is replaced stay until `_drop_filling`: they are many, and nobody reads them any more.
        connection.execute(
            "INSERT OR REPLACE INTO timelines SELECT id, user_id, version, start, end FROM filling_timelines"
        )
        connection.execute("INSERT OR REPLACE INTO features SELECT user_id, data FROM filling_features")
        meta = {"source": json.dumps(report.source), "as_of_us": str(as_of_us)}
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())

    def _drop_filling(self) -> None:
        """Forget what a fill has staged, published or not, and the chunks that no timeline has any more."""
        is_left = True
        while is_left:
            with self._file.writing() as connection:
                rows = connection.execute(
                    "SELECT id, replaces FROM filling_timelines LIMIT ?", (FILL_TOGETHER,)
                ).fetchall()
                for row in rows:
                    connection.executemany(
                        "DELETE FROM chunks WHERE timeline = ?1 AND NOT EXISTS (SELECT 1 FROM timelines WHERE id = ?1)",
                        [(timeline,) for timeline in row if timeline is not None],
                    )
                connection.executemany("DELETE FROM filling_timelines WHERE id = ?", [row[:1] for row in rows])
                is_left = bool(rows)
        with self._file.writing() as connection:
            connection.execute("DELETE FROM filling_features")
            connection.execute("DELETE FROM filling_users")

    def _extend(self, connection: sqlite3.Connection, timeline: int, start: int, end: int, data: bytes) -> int:
        """Add packed events at the end of a timeline that is held from `start` to `end`; its new end."""
        partial = max(start, end // CHUNK * CHUNK)
        kept = self._read(connection, timeline, start, partial, end) if end > partial else b""
        connection.executemany(_PUT_CHUNK, self._chunk_rows(timeline, kept + data, partial))
        new_end = end + len(data) // self._packing.event_bytes
        connection.execute("UPDATE timelines SET end = ? WHERE id = ?", (new_end, timeline))
        return new_end

    def _chunk_rows(self, timeline: int, data: bytes, start: int) -> list[tuple[int, int, bytes]]:
        return [(timeline, number, chunk) for number, chunk in self._packing.chunks(data, start)]

    def _read(self, connection: sqlite3.Connection, timeline: int, start: int, first: int, last: int) -> bytes:
        """Packed events first to last - 1 of a timeline that is held from `start` on."""
        if first == last:
            return b""
        number = first // CHUNK
        rows = connection.execute(_CHUNKS, (timeline, number, (last - 1) // CHUNK)).fetchall()
        data = b"".join([row[0] for row in rows]) if len(rows) > 1 else rows[0][0]
        skipped, size = first - max(start, number * CHUNK), self._packing.event_bytes
        return data[skipped * size : (skipped + last - first) * size]


def _new_timeline(connection: sqlite3.Connection, user_id: int, version: int, start: int) -> int:
    row = connection.execute(
        "INSERT INTO timelines (user_id, version, start, end) VALUES (?, ?, ?, ?)", (user_id, version, start, start)
    )
    assert row.lastrowid is not None
    return row.lastrowid


def _answered(connection: sqlite3.Connection, key: str, user_id: int) -> TimelineEnd | None:
    """What a key was answered before."""
    row = connection.execute("SELECT user_id, version, end FROM appended WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    check_key(key, row[0], user_id)
    return TimelineEnd(row[1], row[2])


def _answer(connection: sqlite3.Connection, key: str, user_id: int, end: TimelineEnd) -> TimelineEnd:
    cursor = connection.execute(
        "INSERT INTO appended (key, user_id, version, end) VALUES (?, ?, ?, ?)", (key, user_id, end.version, end.end)
    )
    connection.execute("DELETE FROM appended WHERE place <= ?", ((cursor.lastrowid or 0) - KEYS_KEPT,))
    return end
