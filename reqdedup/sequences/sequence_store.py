"""A sequence of an online store as the server's `Store`: what a ranker or retriever reads per request.

The sequence's own events are numbered from 0, as in the `history_end` that `ends.add_histories` writes; a version is
that of the timeline. Events come in by `OnlineStore.put` alone, which is where they get their place, so `append` and
`correct` are refused. Request features are another store's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reqdedup.schema import NUMBER_WIDTH_BYTES
from reqdedup.sequences.online import OnlineStore
from reqdedup.sequences.packing import no_such_version
from reqdedup.sequences.store import TimelineEnd, UserRead, Window, WindowError


class SequenceStore:
    """See `Store` for the calls. columns: those of the sequence that are numbers."""

    def __init__(self, online: OnlineStore, sequence: str) -> None:
        self._online, self._sequence = online, sequence
        definition = online.definition(sequence)
        dtypes = {name: online.view.columns[name].dtype.name for name in definition.columns}
        texts = online.view.texts
        self._columns = {n: dtype for n, dtype in dtypes.items() if dtype in NUMBER_WIDTH_BYTES and n not in texts}

    @property
    def columns(self) -> Mapping[str, str]:
        return self._columns

    def append(self, user_id: int, events: Mapping[str, np.ndarray], *, key: str) -> TimelineEnd:
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
        found, _ = self._online.window(user_id, self._sequence, columns, first, last)
        kept = min(
            (len(values) for values in found.values()), default=last - first
        )  # the oldest may be beyond the retention
        return Window({name: np.array(values) for name, values in found.items()}, last - kept, last, self._version)

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
