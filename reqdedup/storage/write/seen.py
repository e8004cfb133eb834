"""Requests that have been spilled already, so that the rows of a shuffled table do not bring their
sequences again and again.

Sorted runs that double in size, as in a log-structured merge tree: 32 bytes a request, and a few binary searches to
find one. Requests beyond the limit are simply not remembered.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from reqdedup.arrays.hashing import mix

_Run = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class SeenRequests:
    """Finds the part under which a request lies in the spill, given that all its request-level values are the same.

    limit: requests that are remembered at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._runs: list[_Run] = []

    def find(self, user: np.ndarray, request: np.ndarray, content: np.ndarray) -> np.ndarray:
        """Part of each request, [P] int64; -1 where it was not seen, or with other values.

        user, request: its key.  content: hash of its request-level values, [P] uint64.
        """
        found = np.full(len(user), -1, np.int64)
        wanted = _hash(user, request, content)
        for hashes, users, requests, parts_and_content in self._runs:
            at = np.searchsorted(hashes, wanted)
            at[at == len(hashes)] = 0
            parts, contents = parts_and_content[0].view(np.int64), parts_and_content[1]
            same = (users[at] == user) & (requests[at] == request) & (contents[at] == content)
            found[same] = parts[at[same]]
        return found

    def add(self, user: np.ndarray, request: np.ndarray, content: np.ndarray, part: np.ndarray) -> None:
        """Remember these requests, none of which was found."""
        room = self._limit - sum(len(run[0]) for run in self._runs)
        user, request, content, part = (values[: max(room, 0)] for values in (user, request, content, part))
        if len(user):
            self._runs.append(_sorted(user, request, np.stack([part.view(np.uint64), content])))
            while any(len(low[0]) <= 2 * len(high[0]) for low, high in pairwise(self._runs)):
                last, before = self._runs.pop(), self._runs.pop()
                merged = [np.concatenate(pair, axis=-1) for pair in zip(before[1:], last[1:])]
                self._runs.append(_sorted(*merged))


def _sorted(user: np.ndarray, request: np.ndarray, rest: np.ndarray) -> _Run:
    hashes = _hash(user, request, rest[1])
    order = np.argsort(hashes, kind="stable")
    return hashes[order], user[order], request[order], rest[:, order]


def _hash(user: np.ndarray, request: np.ndarray, content: np.ndarray) -> np.ndarray:
    return mix(mix(mix(user.view(np.uint64)) ^ request.view(np.uint64)) ^ content)
