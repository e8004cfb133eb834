"""Request ids that more than one user has: no error, since user and request together tell requests apart, but counted.

A log that numbers each user's requests anew has them on purpose; in another one they say that the wrong column was
named. Memory is bounded as in `audit.scan`: past MAX_PAIRS only ids whose hash is below a threshold are followed, with
all their users, so that the count is that of a uniform sample of ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reqdedup.arrays.hashing import mix
from reqdedup.arrays.keys import run_starts

MAX_PAIRS = 4_000_000
"""Of user and request that are followed, 16 bytes each."""


class RequestOwners:
    """Which users each request id has."""

    def __init__(self) -> None:
        self._pairs = [np.zeros((0, 2), np.int64)]
        self._num_pairs = self._shift = 0

    def add(self, request_id: np.ndarray, user_id: np.ndarray) -> None:
        """Take rows: [N] int64 each."""
        starts = run_starts([request_id, user_id])
        self._pairs.append(self._followed(np.stack([request_id[starts], user_id[starts]], axis=1)))
        self._num_pairs += len(self._pairs[-1])
        self._bound()

    def absorb(self, other: RequestOwners) -> None:
        """Take the rows that another has taken."""
        if other._shift > self._shift:
            self._shift = other._shift
            self._pairs = [self._followed(pairs) for pairs in self._pairs]
        self._pairs += [self._followed(pairs) for pairs in other._pairs]
        self._num_pairs = sum(map(len, self._pairs))
        self._bound()

    def _bound(self) -> None:
        if self._num_pairs > MAX_PAIRS:
            self._merge()
            while self._num_pairs > MAX_PAIRS // 2:
                self._shift += 1
                self._pairs = [self._followed(self._pairs[0])]
                self._num_pairs = len(self._pairs[0])

    def __getstate__(self) -> dict[str, Any]:
        self._merge()
        return self.__dict__

    def num_shared(self) -> int:
        """Request ids of more than one user; about, if not all were followed."""
        self._merge()
        request = self._pairs[0][:, 0]
        starts = run_starts([request])
        return int((np.diff(np.append(starts, len(request))) > 1).sum()) << self._shift

    def _merge(self) -> None:
        pairs = np.concatenate(self._pairs)
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self._pairs = [pairs[run_starts([pairs[:, 0], pairs[:, 1]])]]
        self._num_pairs = len(self._pairs[0])

    def _followed(self, pairs: np.ndarray) -> np.ndarray:
        return pairs[mix(pairs[:, 0].view(np.uint64)) <= np.uint64((2**64 - 1) >> self._shift)]
