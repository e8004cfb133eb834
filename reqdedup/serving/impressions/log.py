"""The log of what was shown: one file per process, written beside the answers, from which labels come later.

    server: log.show(Impression), log.click(Click) -> queue -> one thread -> impressions-HOST-PID-TIME-NUMBER.open
    full or old, or its process is gone:  renamed to .log, which `collect_impressions` turns into tables (`attribution`)

An answer never waits for a disk: what cannot be queued is dropped and counted, and the log says so in its next line. A
killed process loses what was queued, milliseconds of it; every line has a checksum, so that the torn last one is seen.
Lines are JSON; a float32 has the digits that bring its bits back, and NaN is null.

When the table of delivered events, `raw_events`, is there, clicks will be read from it instead of from here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from reqdedup.sequences.store import events_digest

FORMAT = 1
OPEN, SEALED = ".open", ".log"


@dataclass(frozen=True, kw_only=True)
class Impression:
    """One answer as it was given.

    request_id: of its own, see `new_request_id`.  request_ts: when it was answered [microseconds since 1970].
    start, history_end, timeline_version: the window of the timeline that was read.
    history_digest: of that window's events, `history_digest`; empty if it was not taken.
    model: fingerprint of the ranking model.  definition: of what else made the answer, the funnel for example.
    rerank: version of the re-ranking, empty if there was none.
    item_id: [M] int64, all candidates that were scored.  score: [M] float64, theirs.
    slate: [K] int64, the items that were shown, in their order; only these become rows.
    logits: [K] float32 for each label, theirs.
    request: request-level columns as they were used, plain values, those of side tables included.
    items: item-level columns as they were used, [M] each.
    """

    request_id: int
    request_ts: int
    user_id: int
    start: int
    history_end: int
    timeline_version: int
    model: str
    item_id: np.ndarray
    score: np.ndarray
    slate: np.ndarray
    logits: Mapping[str, np.ndarray]
    definition: str = ""
    rerank: str = ""
    history_digest: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Click:
    """An event that belongs to an impression. user_id: who sent it; None: not known, as in older logs.
    event_ts: when it happened [us since 1970, UTC].  label: its name."""

    request_id: int
    user_id: int | None = None
    item_id: int
    event_ts: int
    label: str


def new_request_id() -> int:
    """A request id that no other server process gives: 62 random bits."""
    return secrets.randbits(62)


OWN = "own"


def history_digest(columns: Mapping[str, np.ndarray], *, is_own: bool) -> str:
    """What an impression keeps of its history. is_own: the request brought it, with these columns alone."""
    digest = events_digest(columns).hex()
    return f"{OWN} {','.join(sorted(columns))} {digest}" if is_own else digest


def is_own(digest: str) -> bool:
    """Whether the request brought the history."""
    return digest.startswith(OWN)


def is_history(columns: Mapping[str, np.ndarray], digest: str) -> bool:
    """Whether these are the events of an impression with this digest, as far as they were logged."""
    if not is_own(digest):
        return not digest or events_digest(columns).hex() == digest
    _, names, wanted = digest.split(" ")
    wanted_names = names.split(",")
    return columns.keys() >= set(wanted_names) and events_digest({n: columns[n] for n in wanted_names}).hex() == wanted


@dataclass(frozen=True)
class LogCounts:
    """written: records in files.  dropped: records that were not queued or not written.  waiting: still queued."""

    written: int
    dropped: int
    waiting: int


class ImpressionLog:
    """Writes this process's records into `folder`.

    max_waiting: records that may be queued; more are dropped and counted.
    file_bytes, file_age_s: a file that is larger, or open for longer, is closed and can be collected.
    """

    def __init__(
        self, folder: Path | str, *, max_waiting: int = 2_000, file_bytes: int = 64 * 2**20, file_age_s: float = 60.0
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._max_waiting, self._file_bytes, self._file_age_s = max_waiting, file_bytes, file_age_s
        self._queue: deque[Impression | Click] = deque()
        self._changed = threading.Condition()
        self._written = self._dropped = self._said_dropped = self._in_work = 0
        self._is_closed = False
        self._file: _OpenFile | None = None
        self._number = 0
        self._thread = threading.Thread(target=self._run, name="impression log", daemon=True)
        self._thread.start()

    def show(self, impression: Impression) -> bool:
        """Take a record; False if it was dropped. Its arrays must not change any more."""
        return self._put(impression)

    def click(self, click: Click) -> bool:
        """The same for an event."""
        return self._put(click)

    def counts(self) -> LogCounts:
        with self._changed:
            return LogCounts(self._written, self._dropped, len(self._queue) + self._in_work)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was taken so far is in the file; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._in_work, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and seal the file."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _put(self, record: Impression | Click) -> bool:
        with self._changed:
            if self._is_closed or len(self._queue) >= self._max_waiting:
                self._dropped += 1
                return False
            self._queue.append(record)
            self._changed.notify_all()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_closed, self._file_age_s)
                records, is_last = list(self._queue), self._is_closed
                self._queue.clear()
                self._in_work = len(records)
                dropped = self._dropped
            num_written = 0
            try:
                num_written = self._write(records, dropped)
                if self._file is not None and (is_last or self._file.is_full(self._file_bytes, self._file_age_s)):
                    self._file.seal()
                    self._file = None
            except OSError:  # a full disk: what was in work is lost and counted, the next goes to a new file
                if self._file is not None:
                    self._file.abandon()
                self._file = None
            with self._changed:
                self._written += num_written
                self._dropped += len(records) - num_written
                self._in_work = 0
                self._changed.notify_all()
                if is_last and not self._queue:
                    return

    def _write(self, records: list[Impression | Click], dropped: int) -> int:
        lines = []
        if dropped > self._said_dropped:
            lines.append(_line({"kind": "dropped", "count": dropped - self._said_dropped}))
        for record in records:
            with suppress(TypeError, ValueError):  # a value that JSON cannot hold: counted as dropped
                lines.append(_line({"kind": type(record).__name__.lower(), **vars(record)}))
        if lines:
            if self._file is None:
                self._number += 1
                self._file = _OpenFile(self.folder, self._number)
            self._file.write(b"".join(lines))
        num_written = len(lines) - (dropped > self._said_dropped)
        self._said_dropped = dropped
        return num_written


class _OpenFile:
    """A file that a process is writing, which it shows by holding a lock on it."""

    def __init__(self, folder: Path, number: int) -> None:
        started = time.time_ns()
        self._path = folder / f"impressions-{socket.gethostname()}-{os.getpid()}-{started}-{number}{OPEN}"
        self._since = time.monotonic()
        self._bytes = 0
        unlocked = self._path.with_name(f".{self._path.name}")  # no collector sees it before it is locked
        self._fd = os.open(unlocked, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self.write(_line({"kind": "file", "format": FORMAT}))
            unlocked.rename(self._path)
        except OSError:
            unlocked.unlink(missing_ok=True)
            self.abandon()
            raise

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._bytes += len(data)

    def is_full(self, most_bytes: int, most_age_s: float) -> bool:
        return self._bytes >= most_bytes or time.monotonic() - self._since >= most_age_s

    def seal(self) -> None:
        os.fsync(self._fd)
        self._path.rename(self._path.with_suffix(SEALED))
        os.close(self._fd)

    def abandon(self) -> None:
        """Leave it to the collector as it is."""
        os.close(self._fd)


@dataclass(kw_only=True)
class LogRecords:
    """What files of a log hold. num_dropped: records that the servers said they dropped.  num_damaged: lines that a
    killed process or a bad disk left."""

    impressions: list[Impression] = field(default_factory=list)
    clicks: list[Click] = field(default_factory=list)
    num_dropped: int = 0
    num_damaged: int = 0


def sealed_files(folder: Path | str) -> list[Path]:
    """Files that nobody writes any more; those of processes that are gone are sealed first."""
    folder = Path(folder)
    for path in sorted(folder.glob(f"impressions-*{OPEN}")):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.rename(path.with_suffix(SEALED))
    return sorted(folder.glob(f"impressions-*{SEALED}"))


def log_files(folder: Path | str) -> list[Path]:
    """All files of a log, those that servers are writing too."""
    folder = Path(folder)
    return sorted([*folder.glob(f"impressions-*{OPEN}"), *folder.glob(f"impressions-*{SEALED}")])


def delete_records(
    folder: Path | str, users: Collection[int], requests: Collection[int], *, dry_run: bool
) -> tuple[int, int]:
    """Write the files again without impressions and clicks of these users and clicks on these requests, each in one
    step.

    How many records these are, and how many of them stand in files that a server is writing: those stay, since nobody
    else may change them; such a file is closed a minute after its first record. A line that is damaged goes if it names
    one of the users.
    """
    if not dry_run:
        sealed_files(folder)
    of_users = [b'"user_id":%d,' % user for user in users]
    num_found = num_held = 0
    for path in log_files(folder):
        kept, num_theirs = [], 0
        for line in path.read_bytes().splitlines(keepends=True):
            values = _parsed(line)
            if values is None:
                is_theirs = any(name in line for name in of_users)
            elif values["kind"] == "click":
                is_theirs = values["request_id"] in requests or values.get("user_id") in users
            else:
                is_theirs = values["kind"] == "impression" and values["user_id"] in users
            num_theirs += is_theirs
            if not is_theirs:
                kept.append(line)
        num_found += num_theirs
        if path.suffix == OPEN:
            num_held += num_theirs
        elif num_theirs and not dry_run:
            _replace(path, b"".join(kept))
    return num_found, num_held


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_log(path: Path) -> LogRecords:
    """The records of one file. Raises ValueError if a newer version wrote it."""
    records = LogRecords()
    for values in _lines(path, records):
        kind = values.pop("kind", "")
        if kind == "file" and values.get("format") != FORMAT:
            raise ValueError(f"{path}: format {FORMAT} required, found {values.get('format')}")
        if kind == "impression":
            impression = Impression(**values)
            records.impressions.append(
                replace(
                    impression,
                    item_id=np.array(impression.item_id, np.int64),
                    score=np.array(impression.score, np.float64),
                    slate=np.array(impression.slate, np.int64),
                    logits={name: np.array(logit, np.float32) for name, logit in impression.logits.items()},
                )
            )
        elif kind == "click":
            records.clicks.append(Click(**values))
        elif kind == "dropped":
            records.num_dropped += values["count"]
    return records


def _lines(path: Path, records: LogRecords) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n"):
        if not line:
            continue
        values = _parsed(line)
        if values is None:
            records.num_damaged += 1
            continue
        yield values


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for a line that is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    values: dict[str, Any] = orjson.loads(text)
    return values


def _line(values: Mapping[str, Any]) -> bytes:
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY, default=_plain)
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _plain(value: Any) -> Any:
    """What orjson does not know: arrays that are not contiguous, and mappings that are no dict."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a plain value required, found {type(value).__name__}")
