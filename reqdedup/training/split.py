"""Which requests a model learns from, which it is watched on while it learns, and which it is judged on.

    by user   a share of the users by a stable hash: how the model does for users that it never saw
    by time   the last share of the requests: trained before T, tested from T on, as in serving
    by last   each user's last request, and the one before for validation (leave last out)

By last, what a user did later than another user's test request is learned from: figures are kinder than serving will
be. By user, an item's future is known; by time nothing is. All three are decided from users and times alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

from reqdedup.arrays.hashing import below_rate, stable_hash
from reqdedup.arrays.places import places_in
from reqdedup.batch import RequestBatch
from reqdedup.schema import REQUEST_TS
from reqdedup.training.ranks import from_all_ranks

SplitBy = Literal["user", "time", "last"]
PARTS = ("train", "validation", "test")


class Split(Protocol):
    """One part of the requests of a table."""

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        ...

    def state(self) -> dict[str, Any]:
        """What the part follows from, ready for JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class UserSplit:
    """A share of the users by a stable hash of their id: the same users in every run, table and process.

    held_out: share of the users in the test part.  validation: share of those in the validation part.
    part: `train`, `validation` or `test`.  seed: another seed, other users.
    """

    held_out: float
    part: str
    seed: int = 0
    validation: float = 0.0

    def __post_init__(self) -> None:
        if self.part not in PARTS or not 0 <= self.held_out <= self.held_out + self.validation <= 1:
            raise ValueError(
                f"user split: part one of {', '.join(PARTS)} and shares from 0 to 1 required, found {self.part!r}, "
                f"{self.held_out} held out and {self.validation} for validation"
            )

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray | None = None) -> np.ndarray:
        """[R] bool."""
        hash_R = stable_hash(user_id_R, self.seed)
        is_held_out_R = below_rate(hash_R, self.held_out)
        if self.part == "test":
            return is_held_out_R
        is_out_R = below_rate(hash_R, self.held_out + self.validation)
        return ~is_out_R if self.part == "train" else is_out_R & ~is_held_out_R

    def state(self) -> dict[str, Any]:
        values = asdict(self)
        if not self.validation:
            del values["validation"]  # as loaders of earlier versions say it
        return values


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Requests from `begin_us` on and before `end_us` [microseconds since 1970, UTC]; None: without bound."""

    begin_us: int | None = None
    end_us: int | None = None

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        is_in_R = np.ones(len(request_ts_R), bool)
        if self.begin_us is not None:
            is_in_R &= request_ts_R >= self.begin_us
        if self.end_us is not None:
            is_in_R &= request_ts_R < self.end_us
        return is_in_R

    def state(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class LastSplit:
    """The requests of each user at one of the user's last times, or before all of those.

    user_id_U: [U] int64, rising.  last_us_UN: [U, N] the N last times of each, newest first; a user with fewer than
        N + 1 times has none that is left out (the largest int64), and all requests train.
    place: in N, or None for what is before.
    """

    user_id_U: np.ndarray
    last_us_UN: np.ndarray
    place: int | None

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        if not len(self.user_id_U):
            return np.full(len(user_id_R), self.place is None)
        at_R = places_in(user_id_R, self.user_id_U)
        last_RN, is_known_R = self.last_us_UN[at_R], at_R >= 0
        if self.place is not None:
            return is_known_R & (request_ts_R == last_RN[:, self.place])
        return ~is_known_R | (request_ts_R < last_RN.min(1))

    def state(self) -> dict[str, Any]:
        return {"place": self.place, "parts": self.last_us_UN.shape[1], "users": len(self.user_id_U)}


@dataclass(frozen=True, eq=False)
class TheseUsers:
    """All requests of some users. user_id_U: rising."""

    user_id_U: np.ndarray

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        return np.isin(user_id_R, self.user_id_U)

    def state(self) -> dict[str, Any]:
        return {"users": len(self.user_id_U)}


@dataclass(frozen=True)
class Later:
    """Those requests of a part that are later than `after_us` [microseconds since 1970, UTC]."""

    part: Split
    after_us: int

    def contains(self, user_id_R: np.ndarray, request_ts_R: np.ndarray) -> np.ndarray:
        """[R] bool."""
        return self.part.contains(user_id_R, request_ts_R) & (request_ts_R > self.after_us)

    def state(self) -> dict[str, Any]:
        return {"part": self.part.state(), "after_us": self.after_us}


@dataclass(frozen=True)
class Splits:
    """The three parts of a table, which share no request."""

    train: Split
    validation: Split
    test: Split

    @classmethod
    def by_user(cls, held_out: float, validation: float, seed: int) -> Splits:
        return cls(*(UserSplit(held_out=held_out, validation=validation, seed=seed, part=part) for part in PARTS))

    @classmethod
    def of(
        cls, by: SplitBy, batches: Iterable[RequestBatch], *, held_out: float, validation: float, seed: int
    ) -> Splits:
        """Of a table. batches: this rank's share, keys and times of all requests; only read if they must be (not by
        user without a validation part), and then a collective.

        Raises ValueError if a part that was asked for would be empty.
        """
        if by == "user" and not validation:
            return cls.by_user(held_out, validation, seed)
        parts = [(batch.user_id_R.numpy(), batch.request[REQUEST_TS].numpy()) for batch in batches]
        none = np.zeros(0, np.int64)
        shares = from_all_ranks(
            tuple(np.concatenate([none, *values]) for values in zip(*parts)) if parts else (none, none)
        )
        user_id_R, request_ts_R = (np.concatenate(values) for values in zip(*shares))
        if by == "user":
            splits = cls.by_user(held_out, validation, seed)
        else:
            splits = (_by_time if by == "time" else _by_last)(user_id_R, request_ts_R, held_out, validation)
        of_test = 0.0 if by == "user" else held_out  # without held-out users there are no figures, which is said then
        for name, part, share in (("test", splits.test, of_test), ("validation", splits.validation, validation)):
            if share and not part.contains(user_id_R, request_ts_R).any():
                raise ValueError(
                    f"training: requests to hold out for {name} required, split by {by}, found none among "
                    f"{len(user_id_R):,}; use more of the log, or hold out more"
                )
        if leak := leaks(splits, user_id_R, request_ts_R, by=by):
            raise ValueError(f"training: parts that share nothing required, found {'; '.join(leak)}")
        return splits


def leaks(splits: Splits, user_id_R: np.ndarray, request_ts_R: np.ndarray, *, by: SplitBy) -> list[str]:
    """What a model could know of the requests that it is judged on, in words; empty if nothing.

    By user, a user in two parts; by time, a training request that is not before all held-out ones; by last, a
    user's training request that is not before the user's held-out ones; and a request in two parts.
    """
    train_R, validation_R, test_R = (
        part.contains(user_id_R, request_ts_R) for part in (splits.train, splits.validation, splits.test)
    )
    found = []
    if twice := int((train_R.astype(int) + validation_R + test_R > 1).sum()):
        found.append(f"{twice:,} requests in two parts")
    for earlier, later, names in (
        (train_R, validation_R | test_R, "training and held-out"),
        (validation_R, test_R, "validation and test"),
    ):
        if by == "user":
            both = np.intersect1d(user_id_R[earlier], user_id_R[later])
            if len(both):
                found.append(f"{len(both):,} users among {names} ones, user {both[0]} for one")
        elif by == "time" and earlier.any() and later.any():
            if late := int((request_ts_R[earlier] >= request_ts_R[later].min()).sum()):
                found.append(
                    f"{late:,} {names.split(' and ')[0]} requests that are not before all {names.split()[-1]} ones"
                )
        elif by == "last":
            first: dict[int, int] = {}
            for user, time in zip(user_id_R[later].tolist(), request_ts_R[later].tolist()):
                first[user] = min(time, first.get(user, time))
            pairs = zip(user_id_R[earlier].tolist(), request_ts_R[earlier].tolist())
            if late := sum(time >= first[user] for user, time in pairs if user in first):
                found.append(
                    f"{late:,} {names.split()[0]} requests that are not before the user's {names.split()[-1]} ones"
                )
    return found


def _by_time(user_id_R: np.ndarray, request_ts_R: np.ndarray, held_out: float, validation: float) -> Splits:
    times = np.sort(request_ts_R)
    if not len(times):
        return Splits(TimeSplit(), TimeSplit(begin_us=0, end_us=0), TimeSplit(begin_us=0, end_us=0))
    test_us, validation_us = (
        int(times[min(round((1 - share) * len(times)), len(times) - 1)]) for share in (held_out, held_out + validation)
    )
    if not held_out:
        test_us = int(times[-1]) + 1
    if not held_out + validation:
        validation_us = test_us
    return Splits(
        TimeSplit(end_us=validation_us),
        TimeSplit(begin_us=validation_us, end_us=test_us),
        TimeSplit(begin_us=test_us),
    )


def _by_last(user_id_R: np.ndarray, request_ts_R: np.ndarray, held_out: float, validation: float) -> Splits:
    """The shares say only which parts there are."""
    wanted = [name for name, share in (("test", held_out), ("validation", validation)) if share]
    pairs = np.unique(np.stack([user_id_R, request_ts_R]), axis=1)
    users, count_U = np.unique(pairs[0], return_counts=True)
    end_U = np.cumsum(count_U)
    last_UN = np.full((len(users), len(wanted)), np.iinfo(np.int64).max)
    is_long_U = count_U > len(wanted)
    for n in range(len(wanted)):
        last_UN[is_long_U, n] = pairs[1][end_U[is_long_U] - 1 - n]

    def part(name: str) -> Split:
        if name not in wanted:
            return TimeSplit(begin_us=0, end_us=0)
        return LastSplit(users, last_UN, wanted.index(name))

    train: Split = LastSplit(users, last_UN, None) if wanted else TimeSplit()
    return Splits(train, part("validation"), part("test"))
