"""The file of a `SqliteStore`: its tables, its connections, transactions, and the lock of a fill."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from reqdedup.sequences.store import StoreUnavailableError

T = TypeVar("T")

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE timelines (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL, version INTEGER NOT NULL,
    start INTEGER NOT NULL, end INTEGER NOT NULL, UNIQUE (user_id, version)
);
CREATE TABLE chunks (timeline INTEGER NOT NULL, number INTEGER NOT NULL, events BLOB NOT NULL,
    PRIMARY KEY (timeline, number));
CREATE TABLE features (user_id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE appended (
    place INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
    user_id INTEGER NOT NULL, version INTEGER NOT NULL, end INTEGER NOT NULL
);
CREATE TABLE filling_timelines (
    id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, version INTEGER NOT NULL,
    start INTEGER NOT NULL, end INTEGER NOT NULL, replaces INTEGER, replaced_end INTEGER
);
CREATE TABLE filling_features (user_id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE filling_users (user_id INTEGER PRIMARY KEY);
"""
_DELETED = "CREATE TABLE deleted (user_id INTEGER PRIMARY KEY, deleted_us INTEGER NOT NULL);"


class SqliteFile:
    """Connections to the file `path`: each used by one thread at a time, kept for the next. timeout_s: longest wait for
    another writer."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self.path, self.timeout_s = path, timeout_s
        self._name = str(path)
        self._idle: list[sqlite3.Connection] = []
        self._pid = os.getpid()
        self._place: tuple[int, int] | None = None

    def close(self) -> None:
        if self._pid == os.getpid():
            while self._idle:
                self._idle.pop().close()

    def meta(self, name: str) -> Any:
        with self.connection() as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def upgrade(self) -> None:
        """From format 1, which had no deleted users, to 2."""
        with self.writing() as connection:
            if connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() == ("1",):
                connection.execute(_DELETED)
                connection.execute("UPDATE meta SET value = '2' WHERE name = 'format'")

    def read(self, look_up: Callable[[sqlite3.Connection], T]) -> T:
        """What `look_up` answers, all of its queries at one moment. Errors: as of `connection`."""
        connection, place = self._take()
        try:
            connection.execute("BEGIN")
            try:
                return look_up(connection)
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            place = None
            raise self._unavailable(error) from error
        finally:
            self._give_back(connection, place)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses; sqlite3's errors as StoreUnavailableError."""
        connection, place = self._take()
        try:
            yield connection
        except sqlite3.Error as error:
            place = None
            raise self._unavailable(error) from error
        finally:
            self._give_back(connection, place)

    def _take(self) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        """A connection, and which file it is to."""
        if self._pid != os.getpid():  # a connection must not be used, nor closed, in a forked process
            _OF_PARENTS.append(self._idle)
            self._idle, self._pid = [], os.getpid()
        place = self._check_place()
        try:
            return self._idle.pop(), place
        except IndexError:
            pass
        try:
            return _connect(self.path, self.timeout_s), place
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _give_back(self, connection: sqlite3.Connection, place: tuple[int, int] | None) -> None:
        """place: None for a connection that failed."""
        if place is not None and place == self._place:
            self._idle.append(connection)
        else:
            connection.close()

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailableError:
        return StoreUnavailableError(f"an answer within {self.timeout_s} s required, {error}", place=str(self.path))

    def _check_place(self) -> tuple[int, int]:
        """Which file stands at the path: what is open must be that one, for an append to one that was removed would be
        lost unseen."""
        try:
            said = os.stat(self._name)
        except OSError as error:
            self.close()
            raise StoreUnavailableError(f"its file required, found {error.strerror}", place=str(self.path)) from None
        if self._place != (said.st_dev, said.st_ino):
            self.close()
            self._place = said.st_dev, said.st_ino
        return self._place

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        with self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def empty_log(self) -> None:
        """Empty the write-ahead file, which has pages of deleted users as long as a process has the store open; one
        that reads just then keeps it until it is written again."""
        with suppress(StoreUnavailableError), self.connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextmanager
    def only_fill(self) -> Iterator[None]:
        """Hold the right to fill, an empty file beside the store; a killed process gives it back."""
        lock, is_mine = Path(f"{self.path}.filling"), False
        while not is_mine:
            with lock.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(
                        f"store {self.path}: one fill at a time required, found another running; wait"
                    ) from None
                # not the one that a fill which ended in between has removed
                is_mine = _is_of(lock, file.fileno())
                if is_mine:
                    try:
                        yield
                    finally:
                        lock.unlink(missing_ok=True)


_OF_PARENTS: list[list[sqlite3.Connection]] = []


def _is_of(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )
    # Per connection: 2 MiB of pages of its own, the file itself through the system's page cache. What is deleted is
    # overwritten, as not every build of SQLite does by itself.
    connection.executescript(
        "PRAGMA synchronous = NORMAL; PRAGMA mmap_size = 1073741824; PRAGMA cache_size = -2048; "
        "PRAGMA journal_size_limit = 67108864; PRAGMA secure_delete = ON;"
    )
    return connection


def create_file(path: Path, meta: Mapping[str, Any]) -> None:
    """Make an empty store under another name, then give it its own: a reader never finds half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        connection = sqlite3.connect(made, isolation_level=None)
        try:
            connection.executescript("PRAGMA journal_mode = WAL;" + _TABLES + _DELETED)
            connection.execute("INSERT INTO sqlite_sequence VALUES ('timelines', 0)")
            connection.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
        finally:
            connection.close()
        with suppress(FileExistsError):  # another process was faster
            os.link(made, path)


def delete_rows(connection: sqlite3.Connection, user_id: int) -> bool:
    """Take a user's rows out; False if there were none.

    What a fill has staged of the user goes too: it would come back when that is published.
    """
    for table in ("timelines", "filling_timelines"):
        connection.execute(
            f"DELETE FROM chunks WHERE timeline IN (SELECT id FROM {table} WHERE user_id = ?)", (user_id,)
        )
    for table in ("filling_timelines", "filling_features"):
        connection.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))
    num_timelines = connection.execute("DELETE FROM timelines WHERE user_id = ?", (user_id,)).rowcount
    num_features = connection.execute("DELETE FROM features WHERE user_id = ?", (user_id,)).rowcount
    return num_timelines + num_features > 0
