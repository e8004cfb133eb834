"""Events and request features as bytes, the same in every store.

Events lie one after the other, each the columns' values side by side without padding, little-endian. So adding events
is adding bytes, and a chunk of a timeline is a slice of it:

    chunk 0                    chunk 1
    item 7, ts 10 | item 9 ... item 4, ts 90 | ...          chunk n has the events n * CHUNK to (n + 1) * CHUNK - 1

Features are a JSON object, which a vector enters as its place in the bytes behind it. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from reqdedup.schema import NUMBER_WIDTH_BYTES
from reqdedup.sequences.store import KeyTakenError, TimelineEnd, WindowError

CHUNK = 256
"""Events of a chunk: an append rewrites at most one, a window of 512 reads two or three."""

_LENGTH = struct.Struct("<I")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class EventPacking:
    """Packs the events of one store. columns: name -> dtype, in order; a number type of the schema."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        strange = {name: dtype for name, dtype in columns.items() if dtype not in NUMBER_WIDTH_BYTES}
        if not columns or strange:
            raise ValueError(
                f"columns of a store: at least one, of {', '.join(NUMBER_WIDTH_BYTES)} required, found "
                f"{strange or 'none'}"
            )
        self.columns = dict(columns)
        self._record = np.dtype([(name, np.dtype(dtype).newbyteorder("<")) for name, dtype in columns.items()])
        self.event_bytes = self._record.itemsize

    def pack(self, events: Mapping[str, np.ndarray]) -> bytes:
        """Raises ValueError unless these are the store's columns, of its dtypes and of one length."""
        if set(events) != set(self.columns):
            raise ValueError(f"events: the columns {sorted(self.columns)} required, found {sorted(events)}")
        arrays = {name: np.asarray(events[name]) for name in self.columns}
        for name, array in arrays.items():
            if array.ndim != 1 or array.dtype != self.columns[name]:
                raise ValueError(
                    f"events: column {name} must be one row of {self.columns[name]}, found {array.dtype} of shape "
                    f"{array.shape}"
                )
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"events: columns of one length required, found {lengths}")
        records = np.empty(next(iter(lengths.values())), self._record)
        for name, array in arrays.items():
            records[name] = array
        return records.tobytes()

    def unpack(self, data: bytes, columns: Sequence[str]) -> dict[str, np.ndarray]:
        records = np.frombuffer(data, self._record)
        # A copy even of one event: a view keeps the stride of whole events, which torch refuses.
        return {name: records[name].copy() for name in columns}

    def check(self, columns: Sequence[str]) -> None:
        """Raise ValueError if one of these columns is not the store's."""
        if not self.columns.keys() >= set(columns):
            unknown = sorted(set(columns) - set(self.columns))
            raise ValueError(f"window: columns of the store ({', '.join(self.columns)}) required, found also {unknown}")

    def chunks(self, data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and bytes of the chunks of packed events, the first of which has number `start`."""
        first, end = start, start + len(data) // self.event_bytes
        while first < end:
            until = min(end, (first // CHUNK + 1) * CHUNK)
            yield first // CHUNK, data[(first - start) * self.event_bytes : (until - start) * self.event_bytes]
            first = until


def bounds(start: int, end: int, at: int | None, first: int) -> tuple[int, int]:
    """Where to start and end a window over a timeline that is held from `start` to `end`.

    first: what `start_of` asks for. Raises ValueError if the timeline does not reach to `at`.
    """
    last = end if at is None else at
    if not 0 <= last <= end:
        raise WindowError("at", f"0 to {end}, the end of the timeline,", str(last))
    if last <= start and start:
        raise WindowError("at", f"more than {start}, the first event that the store holds,", str(last))
    if not 0 <= first <= last:
        raise ValueError(f"window: start_of({last}) of 0 to {last} required, found {first}")
    return max(first, start), last


def no_such_version(user_id: int, version: int | None) -> WindowError:
    return WindowError("version", f"a version of the timeline of user {user_id}", f"no version {version}")


def check_key(key: str, found_user: int, user_id: int) -> None:
    """Raise KeyTakenError if a key that was used before was another user's."""
    if found_user != user_id:
        raise KeyTakenError(f"append: a key of its own required for user {user_id}, found {key!r}, user {found_user}'s")


def beyond(data: bytes, stands: TimelineEnd, found: TimelineEnd, event_bytes: int) -> bytes:
    """Of packed events, the first of which has the number `stands.end`, those that a timeline has not yet.

    Raises ValueError if the timeline is of another version, or lacks events before them.
    """
    if found.version != stands.version or found.end < stands.end:
        raise ValueError(
            f"append: version {stands.version} of a timeline with its first {stands.end} events required, found "
            f"version {found.version} with {found.end}; fill the store first"
        )
    return data[(found.end - stands.end) * event_bytes :]


def pack_features(values: Mapping[str, Any]) -> bytes:
    """Raises ValueError for a value that is no plain value and no vector of numbers."""
    plain: dict[str, Any] = {}
    vectors: list[bytes] = []
    place = 0
    for name in sorted(values):
        value = values[name]
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "if":
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
            plain[name] = {value.dtype.name: [place, len(value)]}
            vectors.append(data)
            place += len(data)
        elif isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError(f"request feature {name}: a time with its zone required, found {value}")
            since = value - _EPOCH
            plain[name] = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        elif isinstance(value, np.generic):
            plain[name] = value.item()
        elif value is None or isinstance(value, bool | int | float | str):
            plain[name] = value
        else:
            raise ValueError(
                f"request feature {name}: a plain value or a vector required, found {type(value).__name__}"
            )
    text = json.dumps(plain, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text + b"".join(vectors)


def unpack_features(data: bytes, names: Sequence[str]) -> dict[str, Any]:
    (length,) = _LENGTH.unpack_from(data)
    plain = json.loads(data[_LENGTH.size : _LENGTH.size + length].decode())
    found = {}
    for name in names:
        if name in plain:
            value = plain[name]
            if isinstance(value, dict):
                ((dtype, (place, count)),) = value.items()
                value = np.frombuffer(data, np.dtype(dtype), count, _LENGTH.size + length + place).copy()
            found[name] = value
    return found


def feature_names(data: bytes) -> list[str]:
    (length,) = _LENGTH.unpack_from(data)
    return list(json.loads(data[_LENGTH.size : _LENGTH.size + length]))


def merge_timelines(
    kept: bytes, kept_start: int, table: bytes, start: int, event_bytes: int
) -> tuple[bytes, int, int | None]:
    """A timeline that a store has and a table's, as one: its events, its first number, and how many of the store's
    later events are dropped; None if the two agree.

    Where both have events they must be the same. If they are not, or if events between the two are missing, the
    table's alone stay; the store's do if all of them are later.
    """
    kept_end, end = kept_start + len(kept) // event_bytes, start + len(table) // event_bytes
    if not kept:
        return table, start, None
    if not table or kept_start > end:
        return kept, kept_start, None
    both = max(kept_start, start), min(kept_end, end)
    ours = kept[(both[0] - kept_start) * event_bytes : (both[1] - kept_start) * event_bytes]
    theirs = table[(both[0] - start) * event_bytes : (both[1] - start) * event_bytes]
    if start > kept_end or ours != theirs:
        return table, start, max(0, kept_end - end)
    before = kept[: max(0, start - kept_start) * event_bytes]
    after = kept[(max(end, kept_start) - kept_start) * event_bytes :] if kept_end > end else b""
    return before + table + after, min(start, kept_start), None
