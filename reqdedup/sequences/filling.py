"""A store filled from tables: each user's timeline and newest request features.

A request's history is `timeline[history_end - length : history_end]`. So the histories of a user's requests, put side
by side, are what the tables know of the timeline; where the layout cut them, events keep their numbers. Requests that
say no history_end (a log without it) give the newest one's history, numbered from 0.

Features are those of the user's newest request: every request-level column of the main table and of the feature tables
beside it, joined as for training. A feature table that is older than the main table's requests, or lacks one of them,
is refused: what it leaves out would be a silent wrong score.

A namespace with a timeline of its own fills a store from that: `sequence_store.fill_from_timeline`, without features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.schema import (
    HISTORY_END,
    REQUEST_ID,
    REQUEST_TS,
    TIMELINE_VERSION,
    USER_ID,
    Column,
    EngagementSchema,
    Kind,
)
from reqdedup.sequences.store import FilledStore, FillReport, UserRecord
from reqdedup.storage.features.checks import features_current
from reqdedup.storage.join.bucket_join import BucketJoin, bucket_join
from reqdedup.storage.measure.checks import CheckResult
from reqdedup.storage.read.buckets import SortedTable
from reqdedup.storage.read.table_source import TableSource

_PREFIX = "history_"
_SORTED_BY = (USER_ID, REQUEST_ID)
_NOT_FEATURES = (HISTORY_END, TIMELINE_VERSION)


def event_columns(schema: EngagementSchema) -> dict[str, str]:
    """The columns of a store for this log, named as in `RequestBatch.history`, and their dtypes."""
    return {column.name.removeprefix(_PREFIX): column.dtype for column in schema.sequences}


def feature_columns(schema: EngagementSchema) -> list[Column]:
    """The columns of a store's request features."""
    kept = [c for c in schema.request_columns if c.name not in _NOT_FEATURES and not c.is_stored]
    return [c for c in kept if c.kind is not Kind.SEQUENCE]


def fill_store(store: FilledStore, main: Table, sides: Sequence[Table] = ()) -> FillReport:
    """Bring a store to what these tables say now; see `FilledStore.fill`.

    main: a bucketed, sorted engagement table.  sides: feature tables of its requests.
    Raises ValueError for tables that do not fit each other or the store; then the store is as before.
    """
    source = RequestSource(main, sides)
    if dict(store.columns) != event_columns(source.schema):
        raise ValueError(
            f"store: the event columns of {'.'.join(main.name())}, {event_columns(source.schema)}, required, found "
            f"{dict(store.columns)}; fill a new store"
        )
    return store.fill(user_records(source), source=snapshots(main, sides), as_of_us=_as_of_us(main, *sides))


def snapshots(main: Table, sides: Sequence[Table]) -> dict[str, Any]:
    """Which snapshots of which tables: what a filled store remembers."""
    return {".".join(table.name()): table.metadata.current_snapshot_id for table in (main, *sides)}


def _as_of_us(*tables: Table) -> int | None:
    """When the oldest of the tables' snapshots was committed [microseconds since 1970]."""
    times = [snapshot.timestamp_ms for table in tables if (snapshot := table.current_snapshot()) is not None]
    return min(times) * 1000 if times else None


class RequestSource:
    """The main table's requests with the features of the side tables, user by user. schema: of all their columns.

    Raises ValueError for tables that are not sorted, and for features that are stale.
    """

    def __init__(self, main: Table, sides: Sequence[Table]) -> None:
        source = TableSource(main)
        self.schema = source.schema
        self._sorted: SortedTable | BucketJoin = SortedTable(main, source, _SORTED_BY)
        for side in sides:
            found = features_current(main, side)
            if not found.ok:
                raise ValueError(f"store: {found.detail}; nothing was changed")
            self._sorted = bucket_join(self._sorted if isinstance(self._sorted, BucketJoin) else main, side)
            self.schema = self._sorted.schema

    def batches(self, columns: Sequence[str], users: np.ndarray | None = None) -> Iterator[pa.RecordBatch]:
        """These columns of all users, or of some, which rise. A request's rows follow one another, a user's too.

        Raises ValueError, at the end, if requests had no row in a side table.
        """
        if isinstance(self._sorted, BucketJoin):
            yield from self._sorted.batches(columns, users)
            if users is None and self._sorted.counts.missing_rows:
                raise ValueError(
                    f"store: features of every request required, found {self._sorted.counts.missing_rows:,} rows "
                    f"without in {self._sorted.name}; compute the features again; nothing was changed"
                )
            return
        for unit in range(self._sorted.num_buckets):
            yield from self._sorted.stream(unit, self._sorted.num_buckets, columns, users)


def user_records(source: RequestSource) -> Iterator[UserRecord]:
    """Every user of the tables, once."""
    users = _Users()
    for requests in _requests(source):
        yield from users.add(requests)
    yield from users.last()


def check_store(
    store: FilledStore, main: Table, sides: Sequence[Table] = (), *, num_requests: int = 200, seed: int = 0
) -> CheckResult:
    """Whether the windows of random requests, and the features of their users' newest ones, are in the store as in the
    tables."""
    rng = np.random.default_rng(seed)
    source = RequestSource(main, sides)
    found = [np.unique(batch.column(0).to_numpy()) for batch in TableSource(main).batches([USER_ID])]
    users = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    chosen = np.sort(rng.permutation(users)[:num_requests])
    records = [request for requests in _requests(source, chosen) for request in requests.records()]
    newest: dict[int, _Request] = {}
    for request in records:
        if request.user_id not in newest or newest[request.user_id].order < request.order:
            newest[request.user_id] = request
    wrong = []
    for request in newest.values():
        names = list(request.features())
        if not _same(store.request_features(request.user_id, names), request.features()):
            wrong.append(f"features of user {request.user_id}")
    reaches = _reaches(records)
    num_apart = 0
    chosen_requests = [records[position] for position in rng.permutation(len(records))[:num_requests]]
    for request in chosen_requests:
        if request.end is None:
            is_there, end = request is newest[request.user_id], request.length
        else:
            end = request.end
            is_there = end - request.length >= reaches.get((request.user_id, request.version), 0)
        if not is_there:
            num_apart += 1
            continue
        start = end - request.length
        ask = {"start_of": lambda _, start=start: start, "at": end, "version": request.version}
        try:
            window = store.window(request.user_id, list(store.columns), **ask)
        except ValueError as error:
            wrong.append(f"request {request.request_id}: {error}")
            continue
        if window is None or not _same(window.columns, request.history()):
            wrong.append(f"history of request {request.request_id} of user {request.user_id}")
    said = f"{len(chosen_requests) - num_apart} requests' windows and {len(newest)} users' features equal the tables'"
    if num_apart:
        said += (
            f"; {num_apart} older windows are not held, since events between them and the newest request's are missing"
        )
    if wrong:
        said = f"{len(wrong)} of the windows and features of {len(newest)} users differ, first: {wrong[0]}"
    return CheckResult(not wrong, len(chosen_requests) + len(newest), said)


def _reaches(requests: Iterable[_Request]) -> dict[tuple[int, int], int]:
    """(user, version) -> the first event that is joined to the last one by histories that touch each other."""
    first: dict[tuple[int, int], int] = {}
    for request in sorted(requests, key=lambda request: -(request.end or 0)):
        if request.end is not None and request.length:
            name, start = (request.user_id, request.version), request.end - request.length
            first.setdefault(name, start)
            if request.end >= first[name]:
                first[name] = min(first[name], start)
    return first


@dataclass(frozen=True)
class _Requests:
    """The first row of every request of a batch: numbers as arrays, everything else by row."""

    batch: pa.RecordBatch
    row_R: np.ndarray
    schema: EngagementSchema

    def numbers(self, name: str, missing: int) -> np.ndarray:
        """A column of integers, [R] int64; `missing` if there is none or it is null."""
        if name not in self.schema:
            return np.full(len(self.row_R), missing)
        array = self.batch.column(name).take(pa.array(self.row_R))
        if pa.types.is_timestamp(array.type):
            array = array.cast(pa.int64())
        return array.fill_null(missing).to_numpy(zero_copy_only=False).astype(np.int64)

    def records(self) -> Iterator[_Request]:
        columns = [self.numbers(name, 0) for name in (USER_ID, REQUEST_ID, REQUEST_TS)]
        end_R, version_R = self.numbers(HISTORY_END, -1), self.numbers(TIMELINE_VERSION, 0)
        length_R = self._lengths()
        for place, row in enumerate(self.row_R.tolist()):
            user_id, request_id, request_ts = (int(column[place]) for column in columns)
            end, length = int(end_R[place]), int(length_R[place])
            version = int(version_R[place])
            is_numbered = end >= length and version >= 0
            yield _Request(
                self.batch,
                row,
                self.schema,
                user_id=user_id,
                request_id=request_id,
                request_ts=request_ts,
                end=end if is_numbered else None,
                length=length,
                version=max(version, 0),
            )

    def _lengths(self) -> np.ndarray:
        """Events of every request's history. Raises ValueError if its columns have other lengths."""
        common: np.ndarray | None = None
        for column in self.schema.sequences:
            array = self.batch.column(column.name)
            _, offsets = numpy_from_blobs(array.dictionary, column.dtype)
            length_R = np.diff(offsets)[array.indices.to_numpy()[self.row_R]]
            if common is not None and not np.array_equal(common, length_R):
                raise ValueError(
                    f"store: sequences of one length in every request required, found others in {column.name}"
                )
            common = length_R
        return np.zeros(len(self.row_R), np.int64) if common is None else common


@dataclass(frozen=True)
class _Request:
    """One request. end: its history_end, None if it does not say one.  length: of its history."""

    batch: pa.RecordBatch
    row: int
    schema: EngagementSchema
    user_id: int
    request_id: int
    request_ts: int
    end: int | None
    length: int
    version: int

    @property
    def order(self) -> tuple[int, int]:
        """Rises with time."""
        return self.request_ts, self.request_id

    def history(self) -> dict[str, np.ndarray]:
        return {
            column.name.removeprefix(_PREFIX): np.frombuffer(
                self.batch.column(column.name)[self.row].as_py(), np.dtype(column.dtype).newbyteorder("<")
            ).astype(column.dtype, copy=False)
            for column in self.schema.sequences
        }

    def features(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for column in feature_columns(self.schema):
            value = self.batch.column(column.name)[self.row]
            if column.kind is Kind.VECTOR:
                values[column.name] = np.frombuffer(value.as_py(), np.dtype(column.dtype).newbyteorder("<"))
            elif column.dtype == "timestamp":
                values[column.name] = value.cast(pa.int64()).as_py()
            else:
                values[column.name] = value.as_py()
        return values


class _Users:
    """Puts the requests of each user together; they come one user after the other."""

    def __init__(self) -> None:
        self._requests: list[_Request] = []

    def add(self, requests: _Requests) -> Iterator[UserRecord]:
        for request in requests.records():
            if self._requests and self._requests[0].user_id != request.user_id:
                yield from self.last()
            self._requests.append(request)

    def last(self) -> Iterator[UserRecord]:
        if not self._requests:
            return
        requests, self._requests = self._requests, []
        newest = max(requests, key=lambda request: request.order)
        numbered: dict[int, list[_Request]] = {}
        for request in requests:
            if request.end is not None:
                numbered.setdefault(request.version, []).append(request)
        timelines = {version: _timeline(of_version) for version, of_version in numbered.items()}
        if not timelines:
            timelines = {newest.version: (0, newest.history())}
        yield UserRecord(user_id=newest.user_id, timelines=timelines, features=newest.features())


def _timeline(requests: Iterable[_Request]) -> tuple[int, Mapping[str, np.ndarray]]:
    """Number of the first event, and the events, that these requests of one version know of a timeline.

    The longest-reaching history, and before it what earlier ones add that agree with it; one that lies inside is not
    looked at, nor one that ends before it begins: a timeline has no holes.
    """
    latest, *earlier = sorted(requests, key=lambda request: (-(request.end or 0), -request.request_ts))
    start = (latest.end or 0) - latest.length
    events: dict[str, np.ndarray] = latest.history()
    for request in earlier:
        first = (request.end or 0) - request.length
        both = (request.end or 0) - start
        if first >= start or both < 0 or request.length == 0:
            continue
        before = request.history()
        if all(before[name][start - first :].tobytes() == events[name][:both].tobytes() for name in events):
            events = {name: np.concatenate([before[name][: start - first], events[name]]) for name in events}
            start = first
    return start, events


def _requests(source: RequestSource, users: np.ndarray | None = None) -> Iterator[_Requests]:
    """The requests of a source, or of some of its users."""
    schema = source.schema
    columns = [USER_ID, REQUEST_ID, *(column.name for column in schema.request_columns)]
    last: tuple[int, int] | None = None
    for batch in source.batches(columns, users):
        user_B, request_B = batch.column(USER_ID).to_numpy(), batch.column(REQUEST_ID).to_numpy()
        is_first_B = np.ones(len(user_B), bool)
        is_first_B[1:] = (user_B[1:] != user_B[:-1]) | (request_B[1:] != request_B[:-1])
        if len(user_B) and last == (user_B[0], request_B[0]):
            is_first_B[0] = False
        if len(user_B):
            last = int(user_B[-1]), int(request_B[-1])
        yield _Requests(batch, np.flatnonzero(is_first_B), schema)


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two sets of values are the same bits."""

    def bits(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.dtype, value.tobytes()
        return np.float64(value).tobytes() if isinstance(value, float) else value

    return found.keys() == wanted.keys() and all(bits(found[name]) == bits(wanted[name]) for name in wanted)
