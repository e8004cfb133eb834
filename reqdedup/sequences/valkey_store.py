"""The same store in Valkey or Redis, for servers on several machines that share one. Needs the extra `valkey`.

    NAME:user:7    hash: newest = "version timeline start end", v:VERSION = "timeline start end",
                   c:TIMELINE:NUMBER = a chunk of packed events, f = features
    NAME:key:K     what an append of this key was answered, for a week
    NAME:filled    users of the last fill              NAME:meta    format, columns, source and time of the last fill
    NAME:deleted   hash: user -> when [microseconds], so that no fill from older tables brings the user back

An append is one script, a look-up two calls: where the timeline stands, then its chunks. In between it can only grow;
if it was replaced its chunks are gone, and the look-up begins anew. A fill is staged under other names and published
by one script, for which everybody waits: some milliseconds for a thousand changed users.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import valkey
from valkey.backoff import NoBackoff
from valkey.retry import Retry

from reqdedup.sequences.packing import (
    CHUNK,
    EventPacking,
    beyond,
    bounds,
    check_key,
    merge_timelines,
    no_such_version,
    pack_features,
    unpack_features,
)
from reqdedup.sequences.store import (
    FillReport,
    StoreUnavailableError,
    TimelineEnd,
    UserRead,
    UserRecord,
    Window,
    now_us,
)
from reqdedup.sequences.valkey_scripts import PUBLISH, WRITE

FORMAT = 1
KEYS_KEPT_S = 7 * 86_400
STAGED_KEPT_S = 3_600
FILL_LOCK_S = 600
"""After which a fill that was killed keeps no other from beginning; longer than a bucket of users takes to be read."""
FILL_TOGETHER = 256
TRIES = 5


class ValkeyStore:
    """The store `name` of the server at `url` (`valkey://host:port/0`); see `Store` for the calls.

    columns: name -> dtype of the events; None if the store is there, which says it.  timeout_s: of connecting and of
    each answer.  Raises ValueError if the store has other columns, or there is none and none are given.
    """

    def __init__(
        self, url: str, columns: Mapping[str, str] | None = None, *, name: str = "reqdedup", timeout_s: float = 0.25
    ) -> None:
        self.name, self.timeout_s = name, timeout_s
        self._client: Any = valkey.Valkey.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
        )
        self._write_script = self._client.register_script(WRITE)
        self._publish_script = self._client.register_script(PUBLISH)
        with self._answering():
            if columns is not None:
                text = json.dumps({"format": FORMAT, "columns": EventPacking(columns).columns})
                self._client.hsetnx(f"{name}:meta", "columns", text)
            stored: Any = self._client.hget(f"{name}:meta", "columns")
        if stored is None:
            raise ValueError(f"store {name}: a store required, found none; make one by giving its columns")
        said = json.loads(stored)
        if said["format"] != FORMAT:
            raise ValueError(f"store {name}: format {FORMAT} required, found {said['format']}; take another name")
        if columns is not None and dict(columns) != said["columns"]:
            raise ValueError(
                f"store {name}: events of {dict(columns)} required, found a store of {said['columns']}; take "
                "another name"
            )
        self._packing = EventPacking(said["columns"])

    @property
    def columns(self) -> Mapping[str, str]:
        return self._packing.columns

    def append(
        self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, stands: TimelineEnd | None = None
    ) -> TimelineEnd:
        return self._write(user_id, self._packing.pack(events), key, stands=stands)

    def correct(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, start: int = 0) -> TimelineEnd:
        if start < 0:
            raise ValueError(f"correct: a start of at least 0 required, found {start}")
        return self._write(user_id, self._packing.pack(events), key, start=start)

    def end(self, user_id: int) -> TimelineEnd | None:
        with self._answering():
            newest = self._client.hget(self._user(user_id), "newest")
        if newest is None:
            return None
        version, _, _, end = map(int, newest.split())
        return TimelineEnd(version, end)

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
        self._packing.check(columns)
        user, fields = self._user(user_id), ["newest", "f"] if names else ["newest"]
        for _ in range(TRIES):
            with self._answering():
                with self._client.pipeline(transaction=bool(names)) as pipeline:
                    pipeline.hmget(user, fields)
                    if names:
                        pipeline.hget(f"{self.name}:meta", "as_of_us")
                    (newest, *packed), *as_of_us = pipeline.execute()
                known: dict[str, Any] = {}
                if packed and packed[0] is not None:
                    as_of = int(as_of_us[0]) if as_of_us[0] is not None else None
                    known = {"features": unpack_features(packed[0], names), "as_of_us": as_of}
                if newest is None:
                    return UserRead(**known)
                found_version, timeline, start, end = map(int, newest.split())
                if version is not None and version != found_version:
                    stands = self._client.hget(user, f"v:{version}")
                    if stands is None:
                        raise no_such_version(user_id, version)
                    found_version = version
                    timeline, start, end = map(int, stands.split())
                first, last = bounds(start, end, at, int(start_of(end if at is None else at)))
                data = self._read(user, timeline, start, first, last)
            if data is not None:
                window = Window(self._packing.unpack(data, columns), first, last, found_version)
                return UserRead(window=window, **known)
        raise StoreUnavailableError(f"user {user_id} was replaced {TRIES} times while being read", place=self.name)

    def request_features(self, user_id: int, names: Sequence[str]) -> dict[str, Any]:
        with self._answering():
            data = self._client.hget(self._user(user_id), "f")
        return unpack_features(data, names) if data is not None else {}

    def delete_user(self, user_id: int) -> bool:
        with self._answering(), self._client.pipeline() as pipeline:
            # Not before what the store was filled from, whatever this machine's clock says.
            when_us = max(now_us(), int(self._client.hget(f"{self.name}:meta", "as_of_us") or 0))
            pipeline.delete(self._user(user_id))
            pipeline.srem(f"{self.name}:filled", int(user_id))
            pipeline.hset(f"{self.name}:deleted", int(user_id), when_us)
            return bool(pipeline.execute()[0])

    def fill(
        self, users: Iterable[UserRecord], *, source: Mapping[str, Any], as_of_us: int | None = None
    ) -> FillReport:
        report, own = FillReport(source=dict(source)), uuid.uuid4().hex
        as_of_us = now_us() if as_of_us is None else as_of_us
        with self._answering():
            if not self._client.set(f"{self.name}:filling", own, nx=True, ex=FILL_LOCK_S):
                raise ValueError(f"store {self.name}: one fill at a time required, found another running; wait")
        try:
            self._fill(users, as_of_us, report, own)
        finally:
            with self._answering():
                if self._client.get(f"{self.name}:filling") == own.encode():
                    self._client.delete(f"{self.name}:filling")
        return report

    def filled_from(self) -> dict[str, Any] | None:
        with self._answering():
            source = self._client.hget(f"{self.name}:meta", "source")
        return json.loads(source) if source is not None else None

    def close(self) -> None:
        self._client.close()

    def _hold(self, own: str) -> None:
        """Keep the right to fill for FILL_LOCK_S more. Raises StoreUnavailableError if another fill has it: what was
        staged may be that one's."""
        if self._client.get(f"{self.name}:filling") != own.encode():
            raise StoreUnavailableError(
                f"one fill at a time required, found that this one stood still for {FILL_LOCK_S} s and lost its turn; "
                "nothing of it is shown, fill again",
                place=self.name,
            )
        self._client.expire(f"{self.name}:filling", FILL_LOCK_S)

    def _fill(self, users: Iterable[UserRecord], as_of_us: int, report: FillReport, own: str) -> None:
        seen: set[int] = set()
        staged: dict[int, str] = {}
        for count, user in enumerate(users):
            if user.user_id in seen:
                raise ValueError(f"fill: each user once required, found user {user.user_id} again")
            seen.add(user.user_id)
            with self._answering():
                if count % FILL_TOGETHER == 0:
                    self._hold(own)
                if int(self._client.hget(f"{self.name}:deleted", user.user_id) or -1) >= as_of_us:
                    report.num_withheld += 1
                    continue
                timelines = {v: (start, self._packing.pack(events)) for v, (start, events) in user.timelines.items()}
                is_new, expected = self._stage(user.user_id, timelines, pack_features(user.features), report)
            if expected is not None:
                staged[user.user_id] = expected
            name = "num_new" if is_new else "num_changed" if expected is not None else "num_same"
            setattr(report, name, getattr(report, name) + 1)
        with self._answering():
            gone = {int(user) for user in self._client.smembers(f"{self.name}:filled")} - seen
        report.num_deleted = len(gone)
        for _ in range(TRIES * 10):
            with self._answering():
                self._hold(own)
                changed = self._publish(staged, gone, report.source, as_of_us)
                if not changed:
                    return
                for user_id in changed:
                    if staged[user_id] and not self._client.exists(self._user(user_id)):  # deleted since it was staged
                        self._client.delete(f"{self.name}:staged:{user_id}")
                        del staged[user_id]
                    else:  # appended to
                        staged[user_id] = self._stage_again(user_id)
        raise StoreUnavailableError("users were appended to faster than a fill could be published", place=self.name)

    def _publish(
        self, staged: Mapping[int, str], gone: Iterable[int], source: Mapping[str, Any], as_of_us: int
    ) -> list[int]:
        """Users who changed since they were staged; if there are none, it is done."""
        pairs = [value for user_id, expected in staged.items() for value in (user_id, expected)]
        arguments = [
            f"{self.name}:user:",
            f"{self.name}:staged:",
            json.dumps(source),
            as_of_us,
            len(staged),
            *pairs,
            *gone,
        ]
        keys = [f"{self.name}:{name}" for name in ("meta", "filled", "deleted")]
        changed = self._publish_script(keys=keys, args=arguments)
        return [int(user) for user in changed]

    def _stage(
        self, user_id: int, timelines: Mapping[int, tuple[int, bytes]], features: bytes, report: FillReport
    ) -> tuple[bool, str | None]:
        """Whether the user is new, and where the newest timeline stood that the staged one is made from; None if
        nothing of the user has changed and nothing was staged."""
        live, staged = self._user(user_id), f"{self.name}:staged:{user_id}"
        fields = ["newest", "f", "timelines", *(f"v:{version}" for version in timelines)]
        newest, kept_features, last_timeline, *stands = self._client.hmget(live, fields)
        next_timeline = int(last_timeline or 0) + 1
        changes: dict[str, Any] = {} if kept_features == features else {"f": features}
        dropped_chunks: list[str] = []
        newest_version = int(newest.split()[0]) if newest is not None else -1
        for (version, (start, merged)), stood in zip(timelines.items(), stands):
            if stood is not None:
                kept_timeline, kept_start, kept_end = map(int, stood.split())
                kept = self._read(live, kept_timeline, kept_start, kept_start, kept_end) or b""
                merged, start, dropped = merge_timelines(kept, kept_start, merged, start, self._packing.event_bytes)
                if merged == kept and start == kept_start:
                    continue
                if dropped is not None:
                    report.num_contradicted += 1
                    report.num_events_dropped += dropped
                dropped_chunks += [
                    f"c:{kept_timeline}:{number}" for number, _ in self._packing.chunks(kept, kept_start)
                ]
            end = start + len(merged) // self._packing.event_bytes
            changes |= {f"c:{next_timeline}:{number}": chunk for number, chunk in self._packing.chunks(merged, start)}
            changes |= {f"v:{version}": f"{next_timeline} {start} {end}", "timelines": next_timeline}
            if version >= newest_version:
                newest_version = version
                changes["newest"] = f"{version} {next_timeline} {start} {end}"
            next_timeline += 1
        if not changes:
            return newest is None, None
        with self._client.pipeline() as pipeline:
            pipeline.delete(staged)
            pipeline.copy(live, staged)
            if dropped_chunks:
                pipeline.hdel(staged, *dropped_chunks)
            pipeline.hset(staged, mapping=changes)
            pipeline.expire(staged, STAGED_KEPT_S)
            pipeline.execute()
        return newest is None, newest.decode() if newest is not None else ""

    def _stage_again(self, user_id: int) -> str:
        """Stage what is staged of the user once more, over what the timeline has become since."""
        staged = f"{self.name}:staged:{user_id}"
        fields = self._client.hgetall(staged)
        timelines = {}
        for name, stands in fields.items():
            if name.startswith(b"v:"):
                timeline, start, end = map(int, stands.split())
                timelines[int(name[2:])] = start, self._read(staged, timeline, start, start, end) or b""
        _, expected = self._stage(user_id, timelines, fields[b"f"], FillReport())
        if expected is None:  # what was appended is all that differs: the live one, as it is
            self._client.delete(staged)
            self._client.copy(self._user(user_id), staged)
            return (self._client.hget(staged, "newest") or b"").decode()
        return expected

    def _write(
        self, user_id: int, data: bytes, key: str, *, start: int | None = None, stands: TimelineEnd | None = None
    ) -> TimelineEnd:
        user_id = int(user_id)
        is_new = start is not None
        arguments: list[Any] = [user_id, data, self._packing.event_bytes, CHUNK, int(is_new), start or 0, KEYS_KEPT_S]
        if stands is not None:
            arguments += [stands.version, stands.end]
        with self._answering():
            answer = self._write_script(keys=[self._user(user_id), f"{self.name}:key:{key}"], args=arguments)
        found_user, version, end, *refused = map(int, answer.split())
        if stands is not None and refused:
            beyond(data, stands, TimelineEnd(version, end), self._packing.event_bytes)
        check_key(key, found_user, user_id)
        return TimelineEnd(version, end)

    def _read(self, user: str, timeline: int, start: int, first: int, last: int) -> bytes | None:
        """Packed events first to last - 1 of a timeline that is held from `start` on; None if it is gone."""
        if first == last:
            return b""
        numbers = range(first // CHUNK, (last - 1) // CHUNK + 1)
        chunks = self._client.hmget(user, [f"c:{timeline}:{number}" for number in numbers])
        if None in chunks:
            return None
        skipped, size = first - max(start, numbers[0] * CHUNK), self._packing.event_bytes
        return b"".join(chunks)[skipped * size : (skipped + last - first) * size]

    def _user(self, user_id: int) -> str:
        return f"{self.name}:user:{int(user_id)}"

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The client's errors as StoreUnavailableError."""
        try:
            yield
        except valkey.ValkeyError as error:
            reason = f"an answer within {self.timeout_s} s required, found {type(error).__name__}"
            raise StoreUnavailableError(reason, place=self.name, detail=str(error)) from error
