"""The definition of a store: lists in a dict; and how a test asks a store and this one the same."""

from __future__ import annotations

import copy

import numpy as np

from reqdedup.sequences.store import TimelineEnd, UserRead, Window

COLUMNS = {"item_id": "int64", "ts": "int64", "action": "int32", "dwell": "float32"}


def make_events(numbers, columns=COLUMNS):
    """Events whose values all follow from their numbers."""
    numbers = np.asarray(numbers, np.int64)
    return {name: (numbers * (place + 1) + place).astype(dtype) for place, (name, dtype) in enumerate(columns.items())}


WHOLE = {"start_of": lambda end: 0}
NAMES = tuple(COLUMNS)


def same_window(found, wanted):
    assert (found is None) == (wanted is None)
    if found is not None:
        assert (found.start, found.end, found.version) == (wanted.start, wanted.end, wanted.version)
        assert list(found.columns) == list(wanted.columns)
        for name, array in wanted.columns.items():
            assert found.columns[name].dtype == array.dtype
            assert found.columns[name].strides == array.strides
            assert found.columns[name].flags.writeable
            assert found.columns[name].tobytes() == array.tobytes()


def outcome(call, *args, **options):
    try:
        return call(*args, **options)
    except ValueError:
        return "refused"


class PlainStore:
    """timelines: (user, version) -> (number of the first event, events as tuples)."""

    columns = COLUMNS

    def __init__(self):
        self.timelines, self.features, self.answers, self.filled, self.source = {}, {}, {}, set(), None

    def newest(self, user_id):
        return max((version for user, version in self.timelines if user == user_id), default=None)

    def append(self, user_id, events, *, key):
        if key in self.answers:
            user, answer = self.answers[key]
            if user != user_id:
                raise ValueError(key)
            return answer
        version = self.newest(user_id)
        if version is None:
            version = 0
            self.timelines[user_id, version] = (0, [])
        start, held = self.timelines[user_id, version]
        held.extend(zip(*(events[name].tolist() for name in COLUMNS)))
        answer = TimelineEnd(version, start + len(held))
        self.answers[key] = user_id, answer
        return answer

    def correct(self, user_id, events, *, key, start=0):
        if key not in self.answers:
            version = self.newest(user_id)
            self.timelines[user_id, 0 if version is None else version + 1] = (start, [])
        return self.append(user_id, events, key=key)

    def end(self, user_id):
        version = self.newest(user_id)
        if version is None:
            return None
        start, held = self.timelines[user_id, version]
        return TimelineEnd(version, start + len(held))

    def window(self, user_id, columns, *, start_of, at=None, version=None):
        if set(columns) - set(COLUMNS):
            raise ValueError(columns)
        newest = self.newest(user_id)
        if newest is None:
            return None
        version = newest if version is None else version
        if (user_id, version) not in self.timelines:
            raise ValueError(version)
        start, held = self.timelines[user_id, version]
        at = start + len(held) if at is None else at
        if not 0 <= at <= start + len(held) or (start and at <= start) or not 0 <= start_of(at) <= at:
            raise ValueError(at)
        first = max(start, start_of(at))
        places = {name: place for place, name in enumerate(COLUMNS)}
        events = held[first - start : at - start]
        return Window(
            {name: np.array([event[places[name]] for event in events], COLUMNS[name]) for name in columns},
            first,
            at,
            version,
        )

    def fetch(self, user_id, columns, names, **ask):
        return UserRead(
            window=self.window(user_id, columns, **ask), features=self.request_features(user_id, names) if names else {}
        )

    def request_features(self, user_id, names):
        return {name: self.features[user_id][name] for name in names if name in self.features.get(user_id, {})}

    def delete_user(self, user_id):
        there = self.newest(user_id) is not None or user_id in self.features
        self.timelines = {key: value for key, value in self.timelines.items() if key[0] != user_id}
        self.features.pop(user_id, None)
        self.filled.discard(user_id)
        return there

    def fill(self, users, *, source, as_of_us=None):
        users = list(users)
        for user_id in self.filled - {user.user_id for user in users}:
            self.delete_user(user_id)
        for user in users:
            for version, (start, columns) in user.timelines.items():
                table = list(zip(*(columns[name].tolist() for name in COLUMNS)))
                kept_start, kept = self.timelines.get((user.user_id, version), (start, []))
                by_number = dict(enumerate(kept, kept_start))
                theirs = dict(enumerate(table, start))
                agree = all(by_number[n] == theirs[n] for n in by_number.keys() & theirs.keys())
                if kept and (not table or kept_start > start + len(table)):
                    continue
                if not kept or not agree or start > kept_start + len(kept):
                    by_number = {}
                by_number |= theirs
                numbers = sorted(by_number)
                self.timelines[user.user_id, version] = (
                    numbers[0] if numbers else start,
                    [by_number[n] for n in numbers],
                )
            self.features[user.user_id] = copy.deepcopy(dict(user.features))
            self.filled.add(user.user_id)
        self.source = dict(source)

    def filled_from(self):
        return self.source
