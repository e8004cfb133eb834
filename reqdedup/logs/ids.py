"""Ids of a log as int64.

A string id is hashed, so that it is the same in every process, version and machine: the first 8 bytes of its BLAKE2b
digest (digest size 8, UTF-8, little-endian) without the top bit, 0 <= id < 2^63. Two of n different strings share an id
with probability n^2 / 2^64, 5e-6 for ten million. Ids of items are better taken from a vocabulary, which knows them
all: dense, 32 bits, no two the same (`ItemKeys`).
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.hashing import hash_string as hash_string

_SESSION_HASH_BITS = 31


class Vocabulary(Protocol):
    """What gives dense ids to keys, once and for all (`reqdedup.storage.Vocabulary`)."""

    @property
    def name(self) -> str: ...

    def assign(self, keys: pa.Array) -> np.ndarray: ...


def mix64(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a bijection of uint64 whose output bits all depend on all input bits.

    Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014, section 4.
    """
    mixed = np.asarray(values).astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def parse_id(text: str) -> int:
    """The int64 id that `text` spells: digits 0 to 9 in their one spelling, a minus sign before them or not.

    Raises ValueError for anything else, such as 1_0, 010, +1, ` 1` or digits of another script, which int() would take
    for an id that somebody else has.
    """
    if not re.fullmatch(r"0|-?[1-9][0-9]*", text):
        raise ValueError(f"a whole number required, found {text!r}")
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"a whole number from -2^63 and below 2^63 required, found {text}")
    return int(text)


def hash_strings(texts: pl.Series) -> pl.Series:
    """int64 ids of a series of strings, nulls stay null."""
    distinct = texts.drop_nulls().unique()
    ids = pl.Series([hash_string(text) for text in distinct], dtype=pl.Int64)
    return texts.replace_strict(distinct, ids, default=None, return_dtype=pl.Int64)


class ItemKeys:
    """The distinct text ids of a log's items, and the id of each once all are known.

    Polars keeps them, and numbers them in the order of their coming, which depends on threads: ids do not, since the
    vocabulary is asked for the most frequent key first, and for those of one frequency in the order of the alphabet.
    """

    def __init__(self) -> None:
        self._dtype = pl.Categorical(pl.Categories.random())  # kept by Polars as long as a series has it
        self._keys = [pl.Series(dtype=self._dtype)]
        self._count = np.zeros(0, np.int64)
        self._id = np.zeros(0, np.int64)

    def add(self, texts: pl.Series, count: np.ndarray | None = None) -> None:
        """Note the keys of a block; nulls are none. count: how often each is there, if each is given once."""
        if count is None:
            found = texts.drop_nulls().alias("key").value_counts(name="count")
            texts, count = found["key"], found["count"].to_numpy()
        if texts.is_empty():
            return
        keys = texts.cast(self._dtype)
        code = keys.to_physical().to_numpy()
        if code.max() >= len(self._count):
            more = max(int(code.max()) + 1, 2 * len(self._count)) - len(self._count)
            self._count = np.append(self._count, np.zeros(more, np.int64))
        self._keys.append(keys.filter(pl.Series((self._count[code] == 0) & (count > 0))))
        self._count[code] += count

    def absorb(self, other: ItemKeys) -> None:
        """Note the keys that another has noted, which a task has sent."""
        state = other.__getstate__()
        self.add(state["keys"], state["count"])

    def __getstate__(self) -> dict[str, Any]:
        keys = pl.concat(self._keys)
        code = keys.to_physical().to_numpy()
        ids = self._id[code] if len(self._id) else self._id
        return {"keys": keys.cast(pl.String), "count": self._count[code], "ids": ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # empty first: no subclass has an __init__ of its own
        keys = state["keys"]
        self.add(keys, state["count"])
        if len(state["ids"]):
            self._id = np.full(len(self._count), -1, np.int64)
            self._id[keys.cast(self._dtype).to_physical().to_numpy()] = state["ids"]

    def settle(self, vocabulary: Vocabulary | None) -> None:
        """Give every key its id: the vocabulary's, or its hash if there is none."""
        keys = pl.concat(self._keys)
        count = pl.Series("count", self._count[keys.to_physical().to_numpy()])
        frame = pl.DataFrame({"code": keys.to_physical(), "key": keys.cast(pl.String), "count": count})
        self._id = np.full(len(self._count), -1, np.int64)
        if vocabulary is None:
            ids = hash_strings(frame["key"]).to_numpy()
        else:
            frame = frame.sort("count", "key", descending=[True, False])
            ids = vocabulary.assign(frame["key"].to_arrow())
        self._id[frame["code"].to_numpy()] = ids

    def ids(self, texts: pl.Series) -> np.ndarray:
        """Ids of texts that were added before, none null, [N] int64."""
        return self._id[texts.cast(self._dtype).to_physical().to_numpy()]


def timed_request_ids(user_id: np.ndarray, ts_us: np.ndarray, nth: np.ndarray | None = None) -> np.ndarray:
    """Request ids of requests that the log gives none: seconds since 1970 above 31 bits of the user's hash, [N] int64.

    They rise in time for each user and do not depend on what else is in the log, so that a later day can be appended.
    Two users share one with probability 2^-31 if their requests start in the same second.
    nth: [N] tells apart requests of a user that start in the same second.
    """
    mixed = mix64(np.asarray(user_id).astype(np.uint64))
    if nth is not None:
        mixed = mix64(mixed + np.asarray(nth).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    low = (mixed >> np.uint64(64 - _SESSION_HASH_BITS)).astype(np.int64)
    return ((np.asarray(ts_us, np.int64) // 1_000_000) << _SESSION_HASH_BITS) | low
