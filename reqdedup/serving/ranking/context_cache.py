"""Contexts that were computed, bounded by bytes; the one that was not asked for longest leaves first.

    key      what computed it and how (`ContextRule`), and whose it is
    entry    timeline version and first event of the window, the events themselves, their keys and values

A kept context is read only as far as its events equal those of the request, looked at one by one: neither a length nor
an id of the timeline is trusted, since a caller may be wrong about both. The events cost 1% of the keys and values, and
comparing them less than hashing them would. A user has one entry: another version of the timeline, or a window that
starts at another event, replaces it; an earlier moment of the same window leaves it as it is.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from reqdedup.models.dcat import BlockContext, Blocks
from reqdedup.models.dcat.block_context import KVType
from reqdedup.serving.requests import ContextOrigin

OVERHEAD_BYTES = 1024
"""Of an entry, beside its events, keys and values."""

_LOCKS = 64


@dataclass(frozen=True, kw_only=True)
class ContextRule:
    """Everything but the events that a context's bits depend on.

    model: fingerprint of weights and configuration.  tables: of the vocabulary and the tables behind it.
    schema: of the inputs.  max_events, stride: of the window.
    blocks, kv_type, dtype, device: how it was computed and is kept.
    """

    model: str
    tables: str
    schema: str
    max_events: int
    stride: int
    blocks: Blocks | None
    kv_type: KVType
    dtype: str
    device: str


@dataclass(frozen=True, kw_only=True)
class ContextKey:
    """Whose context, computed how."""

    rule: ContextRule
    user_id: int

    def __hash__(self) -> int:
        return hash(self.user_id)  # a rule is one object for all users, and slow to hash


@dataclass(frozen=True)
class Asked:
    """A context that is asked for. events: sequence columns [L].  window: version of the timeline and its first event
    that is seen, both by the caller's word."""

    key: ContextKey
    events: Mapping[str, np.ndarray]
    window: tuple[int, int]

    @property
    def length(self) -> int:
        return len(next(iter(self.events.values())))


@dataclass(frozen=True)
class Lacking:
    """What is kept for `asked`: a context of a history whose first `num_shared` events are the same."""

    asked: Asked
    kept: BlockContext | None
    num_shared: int

    @property
    def is_kept(self) -> bool:
        return self.kept is not None and self.num_shared == self.asked.length == self.kept.num_tokens

    @property
    def is_earlier_moment(self) -> bool:
        return self.kept is not None and self.num_shared == self.asked.length


@dataclass(frozen=True)
class _Entry:
    window: tuple[int, int]
    events: Mapping[str, np.ndarray]
    context: BlockContext

    @property
    def num_bytes(self) -> int:
        return self.context.num_bytes + sum(x.nbytes for x in self.events.values()) + OVERHEAD_BYTES


@dataclass(kw_only=True)
class ContextCounts:
    """What happened so far: contexts kept, extended and computed, as `ContextOrigin` has them, and entries evicted."""

    kept: int = 0
    extended: int = 0
    computed: int = 0
    evicted: int = 0

    @property
    def reuse(self) -> float:
        """Share of the requests whose context was kept or extended."""
        asked = self.kept + self.extended + self.computed
        return (self.kept + self.extended) / asked if asked else 0.0


class ContextCache:
    """Contexts by key. Threads may share it: a context that two of them ask for is computed once."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._is_kept = True
        self.counts = ContextCounts()
        self._entries: OrderedDict[ContextKey, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._flights = tuple(threading.Lock() for _ in range(_LOCKS))  # users that share one wait for each other

    def __len__(self) -> int:
        return len(self._entries)

    def contexts(
        self, asked: Sequence[Asked], compute: Callable[[list[Lacking]], list[BlockContext]]
    ) -> list[tuple[BlockContext, ContextOrigin]]:
        """The context of each, and where it comes from.

        compute: the contexts that are not kept whole, all at once; if a user is asked for twice, one after the other.
        """
        found: dict[int, tuple[BlockContext, ContextOrigin]] = {}
        left = list(range(len(asked)))
        while left:
            firsts = {asked[i].key: i for i in reversed(left)}.values()
            turn = [i for i in left if i in firsts]
            left = [i for i in left if i not in firsts]
            found |= zip(turn, self._turn([asked[i] for i in turn], compute), strict=True)
        return [found[i] for i in range(len(asked))]

    def _turn(
        self, asked: Sequence[Asked], compute: Callable[[list[Lacking]], list[BlockContext]]
    ) -> list[tuple[BlockContext, ContextOrigin]]:
        """Of different users."""
        with ExitStack() as flights:
            for number in sorted({hash(one.key) % _LOCKS for one in asked}):  # in order, so that none waits in a circle
                flights.enter_context(self._flights[number])
            lacking = [self._lacking(one) for one in asked]
            computed = iter(compute(needed) if (needed := [x for x in lacking if not x.is_kept]) else [])
            answers: list[tuple[BlockContext, ContextOrigin]] = []
            for one, what in zip(asked, lacking, strict=True):
                if what.is_kept:
                    assert what.kept is not None
                    answers.append((what.kept, "kept"))
                    continue
                context = next(computed)
                reused = 0 if what.kept is None else what.kept.reusable(one.length, what.num_shared)
                answers.append((context, "computed" if not reused else "kept" if reused == one.length else "extended"))
                if one.length and not what.is_earlier_moment:
                    events = {name: x_L.copy() for name, x_L in one.events.items()}
                    self._put(one.key, _Entry(one.window, events, context))
        with self._lock:
            for _, origin in answers:
                setattr(self.counts, origin, getattr(self.counts, origin) + 1)
        return answers

    def _lacking(self, asked: Asked) -> Lacking:
        with self._lock:
            entry = self._entries.get(asked.key)
            if entry is not None:
                self._entries.move_to_end(asked.key)
        if entry is None or entry.window != asked.window:
            return Lacking(asked, None, 0)
        shared = _num_equal(entry.events, asked.events)
        return Lacking(asked, entry.context if shared else None, shared)

    def forget(self, model: str | None = None) -> None:
        """Drop the contexts of a model, None: all."""
        with self._lock:
            for key in [key for key in self._entries if model is None or key.rule.model == model]:
                self.num_bytes -= self._entries.pop(key).num_bytes

    def drop(self) -> None:
        """Forget everything and keep nothing more, whoever still asks, until `keep`."""
        with self._lock:
            self._is_kept = False
        self.forget()

    def keep(self) -> None:
        """After `drop`: the model serves again."""
        with self._lock:
            self._is_kept = True

    def _put(self, key: ContextKey, entry: _Entry) -> None:
        with self._lock:
            if not self._is_kept:
                return
            if (old := self._entries.pop(key, None)) is not None:
                self.num_bytes -= old.num_bytes
            if entry.num_bytes > self.max_bytes:  # it would only make all others leave
                return
            self._entries[key] = entry
            self.num_bytes += entry.num_bytes
            while self.num_bytes > self.max_bytes:
                _, left = self._entries.popitem(last=False)
                self.num_bytes -= left.num_bytes
                self.counts.evicted += 1


def _num_equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> int:
    """How many events both begin with; 0 if they have other columns."""
    if one.keys() != other.keys():
        return 0
    equal: int | None = None
    for name, values in one.items():
        most = min(len(values), len(other[name])) if equal is None else equal
        mine, theirs = values[:most], other[name][:most]
        if mine.dtype != theirs.dtype:
            return 0
        if not np.array_equal(mine, theirs):
            most = int(np.argmin(mine == theirs))
        equal = most
    return equal or 0
