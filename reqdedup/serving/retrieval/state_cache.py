"""User states that were computed, bounded by bytes; the one that was not asked for longest leaves first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

OVERHEAD_BYTES = 512
"""Of an entry, beside its state: key, digest, dictionary."""


@dataclass(frozen=True)
class StateKey:
    """model: fingerprint of the weights that computed the state.  version, start, end: window of the timeline."""

    model: str
    user_id: int
    version: int
    start: int
    end: int


class StateCache:
    """States by key. A state is given out only for the events that it was computed from: their digest must be equal,
    the key alone is what a caller says. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = self.hits = self.misses = 0
        self._states: OrderedDict[StateKey, tuple[bytes, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: StateKey, digest: bytes) -> np.ndarray | None:
        """The state [D] of exactly these events, or None."""
        with self._lock:
            found = self._states.get(key)
            if found is None or found[0] != digest:
                self.misses += 1
                return None
            self.hits += 1
            self._states.move_to_end(key)
            return found[1]

    def put(self, key: StateKey, digest: bytes, state_D: np.ndarray) -> None:
        with self._lock:
            if (old := self._states.pop(key, None)) is not None:
                self.num_bytes -= old[1].nbytes + OVERHEAD_BYTES
            if state_D.nbytes + OVERHEAD_BYTES > self.max_bytes:  # it would only make all others leave
                return
            self._states[key] = digest, state_D
            self.num_bytes += state_D.nbytes + OVERHEAD_BYTES
            while self.num_bytes > self.max_bytes:
                _, (_, left_D) = self._states.popitem(last=False)
                self.num_bytes -= left_D.nbytes + OVERHEAD_BYTES
