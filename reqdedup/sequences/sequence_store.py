"""A sequence as the server's `Store`: what a ranker or retriever reads per request, with the values and names that
training tables have (`ends.history_values`). Of an online store in its process, or copied from the timeline into any
store that can be filled, a file or a server of Valkey or Redis.

The sequence's own events are numbered from 0, as in the `history_end` that `ends.add_histories` writes; a version is
that of the timeline. Events come in by `OnlineStore.put` alone, which is where they get their place, so `append` and
`correct` are refused. Request features are another store's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pyiceberg.catalog import Catalog

from reqdedup.arrays.keys import run_starts
from reqdedup.schema import NUMBER_WIDTH_BYTES
from reqdedup.sequences.columns import numbers_of
from reqdedup.sequences.definition import ARRIVAL_TS, USER, SequenceDefinition
from reqdedup.sequences.ends import history_columns, history_name, history_values, with_arrival
from reqdedup.sequences.online import OnlineStore
from reqdedup.sequences.packing import no_such_version
from reqdedup.sequences.store import (
    FilledStore,
    FillReport,
    Store,
    TimelineEnd,
    UserRead,
    UserRecord,
    Window,
    WindowError,
)
from reqdedup.sequences.timeline import Timeline, each_bucket, open_timeline, rank_steps


class SequenceStore:
    """See `Store` for the calls. columns: those of the sequence that are numbers."""

    def __init__(self, online: OnlineStore, sequence: str) -> None:
        self._online, self._sequence = online, sequence
        definition = online.definition(sequence)
        dtypes = {name: online.view.columns[name].dtype.name for name in definition.columns}
        texts = online.view.texts
        numbers = [n for n, dtype in dtypes.items() if dtype in NUMBER_WIDTH_BYTES and n not in texts]
        self._source_of = {store_name(name): name for name in numbers}
        self._columns = {name: dtypes[source] for name, source in self._source_of.items()}

    @property
    def columns(self) -> Mapping[str, str]:
        return self._columns

    def append(
        self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, stands: TimelineEnd | None = None
    ) -> TimelineEnd:
        raise ValueError(f"sequence {self._sequence}: events by `OnlineStore.put` required, found an append")

    def correct(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str, start: int = 0) -> TimelineEnd:
        raise ValueError(f"sequence {self._sequence}: a new version by `backfill` required, found a correction")

    def end(self, user_id: int) -> TimelineEnd | None:
        _, end = self._online.window(user_id, self._sequence, [], 0, 0)
        return TimelineEnd(self._version, end) if end else None

    def window(
        self,
        user_id: int,
        columns: Sequence[str],
        *,
        start_of: Callable[[int], int],
        at: int | None = None,
        version: int | None = None,
    ) -> Window | None:
        unknown = sorted(set(columns) - set(self._columns))
        if unknown:
            raise ValueError(
                f"window: columns of the store ({', '.join(self._columns)}) required, found also {unknown}"
            )
        stands = self.end(user_id)
        if stands is None:
            return None
        if version not in (None, self._version):
            raise no_such_version(user_id, version)
        last = stands.end if at is None else at
        first = int(start_of(last))
        if 0 <= last <= stands.end and not 0 <= first <= last:
            raise WindowError(f"start_of({last})", f"0 to {last}", str(first))
        asked = [self._source_of[name] for name in columns]
        found, _ = self._online.window(user_id, self._sequence, [*asked, ARRIVAL_TS], first, last)
        kept = len(found[ARRIVAL_TS])  # fewer than asked for if the oldest are beyond the retention
        values = {name: np.array(history_values(found, self._source_of[name])) for name in columns}
        return Window(values, last - kept, last, self._version)

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
        """See `Store`; the features of a request are another store's, and there are none here."""
        return UserRead(window=self.window(user_id, columns, start_of=start_of, at=at, version=version))

    def request_features(self, user_id: int, names: Sequence[str]) -> dict[str, Any]:
        return {}

    def append_to(self, store: Store, user_ids: Iterable[int]) -> int:
        """Append to a store what it has not yet of these users, and how many events that was: so a server that several
        machines ask is as fresh as the process that takes the events. Done again, it appends nothing.

        store: filled from the timeline before, with `fill_from_timeline`. Raises ValueError if it was not, if it has
        another version of the timeline or other columns.
        """
        if dict(store.columns) != self._columns:
            raise ValueError(
                f"store: the columns of {self._sequence}, {self._columns}, required, found {dict(store.columns)}"
            )
        num_events = 0
        for user_id in user_ids:
            stood = store.end(user_id)
            first = stood.end if stood is not None and stood.version == self._version else 0
            found, end = self._online.window(user_id, self._sequence, [*self._source_of.values(), ARRIVAL_TS], first)
            count = len(found[ARRIVAL_TS])
            if count:
                new = {name: history_values(found, source) for name, source in self._source_of.items()}
                key = f"{self._sequence} {self._version} {user_id} {end}"
                store.append(user_id, new, key=key, stands=TimelineEnd(self._version, end - count))
            num_events += count
        return num_events

    def delete_user(self, user_id: int) -> bool:
        """The user's events go from the view and from what was put; delete them from the tables first."""
        had = self.end(user_id) is not None
        self._online.delete_users([user_id])
        return had

    def close(self) -> None:
        self._online.close()

    @property
    def _version(self) -> int:
        return self._online.view.state.version


def store_name(column: str) -> str:
    """Name of a sequence's column in a store, which is that of `RequestBatch.history`."""
    return history_name(column).removeprefix("history_")


def store_columns(timeline: Timeline, sequence: str) -> dict[str, str]:
    """The columns of a store for a sequence, and their dtypes. Raises ValueError for a column that is no number."""
    made = history_columns(timeline, timeline.definition(sequence))
    return {column.name.removeprefix("history_"): column.dtype for column in made}


def fill_from_timeline(store: FilledStore, catalog: Catalog, namespace: str, sequence: str) -> FillReport:
    """Bring a store, made with `store_columns`, to a sequence of every user as the timeline is now; see
    `FilledStore.fill`. Memory is that of a bucket.

    Raises ValueError if there is no such sequence, or the store has other columns.
    """
    timeline = open_timeline(catalog, namespace)
    definition, wanted = timeline.definition(sequence), store_columns(timeline, sequence)
    if dict(store.columns) != wanted:
        raise ValueError(f"store: the columns of {sequence}, {wanted}, required, found {dict(store.columns)}")
    snapshot = timeline.table.snapshot_by_id(timeline.snapshot_id) if timeline.snapshot_id is not None else None
    return store.fill(
        _records(timeline, definition),
        source={"timeline": namespace, "sequence": sequence, "position": timeline.state.position},
        as_of_us=snapshot.timestamp_ms * 1000 if snapshot is not None else None,
    )


def _records(timeline: Timeline, definition: SequenceDefinition) -> Iterator[UserRecord]:
    read = with_arrival(definition)
    for _, events in each_bucket(timeline, [definition.rank_column, *read.columns]):
        user_T, rank_T = events.column(USER).to_numpy(), numbers_of(events.column(definition.rank_column))
        is_member_T = rank_steps(user_T, rank_T) == 1
        is_member_T &= numbers_of(events.column(ARRIVAL_TS)) >= timeline.state.kept_from_us
        columns = {name: numbers_of(events.column(name))[is_member_T] for name in read.columns}
        columns = {store_name(name): history_values(columns, name) for name in definition.columns}
        user_T, rank_T = user_T[is_member_T], rank_T[is_member_T]
        for start, end in pairwise([*run_starts([user_T]).tolist(), len(user_T)]):
            of_user = {name: values[start:end] for name, values in columns.items()}
            timelines = {timeline.state.version: (int(rank_T[start]) - 1, of_user)}
            yield UserRecord(user_id=int(user_T[start]), timelines=timelines, features={})
