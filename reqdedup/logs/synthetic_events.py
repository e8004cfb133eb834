"""A synthetic stream of events as a platform gets them: late, delivered twice, with dwell times, in sessions whose
meaning depends on their order.

A user has sessions; in one, items follow one another: after item i comes mostly `next_item(i)`, so that what a user
does next is told by the last event and not by the set of them. A view with a long dwell time may be followed by a click
and a save of the same item. Requests come in sessions too, and the candidate that follows the last event of the history
is clicked most, so that the histories of requests, made from these events, carry the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EVENT_TYPES = ("view", "click", "save", "hide")
EVENT_COLUMNS = {"surface": "int32", "duration_s": "float64"}
"""Columns of the events beside ids, type and times, for an `EventLog`."""

DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class SyntheticEventsConfig:
    """Size and shape of a stream.

    seed: with everything else equal, another seed is an independent stream.
    num_users, num_items, num_categories: sizes of the populations.  num_days: length, in days.
    events_per_day: median of a user's events a day; it is lognormal.  session_events: mean events of a session.
    late_share: ratio of events that arrive an hour to three days late; the others take up to five seconds.
    again_share: ratio of events that are delivered twice, the second time up to a day later.
    missing_share: ratio of views without a dwell time; half of them say NaN.
    follow_share: ratio of events that are of the item that follows the one before.
    start_us: begin, microseconds since 1970, UTC.
    """

    seed: int = 0
    num_users: int = 1_000
    num_items: int = 10_000
    num_categories: int = 64
    num_days: int = 14
    events_per_day: float = 7.4
    session_events: float = 6.0
    late_share: float = 0.01
    again_share: float = 0.005
    missing_share: float = 0.02
    follow_share: float = 0.6
    start_us: int = 1_748_736_000_000_000

    def __post_init__(self) -> None:
        for name in ("late_share", "again_share", "missing_share", "follow_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"synthetic events: {name} from 0 to 1 required, found {getattr(self, name)}")
        if min(self.num_users, self.num_items, self.num_days) < 1:
            raise ValueError("synthetic events: users, items and days of at least 1 required")


def next_item(item_id: np.ndarray, num_items: int) -> np.ndarray:
    """The item that follows each item: a fixed walk through all of them."""
    return (item_id * 7 + 3) % num_items


def synthetic_events(config: SyntheticEventsConfig) -> Iterator[pa.Table]:
    """Delivered events, one table for each day of arrival, in the order of arrival.

    Columns: event_id, user_id, item_id, event_type, event_ts, arrival_ts and EVENT_COLUMNS.
    """
    rng = np.random.default_rng([config.seed, 1])
    per_day_U = config.events_per_day * rng.lognormal(0.0, 1.0, config.num_users)
    sessions_U = rng.poisson(per_day_U * config.num_days / config.session_events)
    session_user = np.repeat(np.arange(config.num_users), sessions_U)
    length = rng.geometric(1 / config.session_events, len(session_user))
    begin_us = config.start_us + rng.integers(0, config.num_days * DAY_US, len(session_user))
    user_T = np.repeat(session_user, length)
    num = len(user_T)
    first_T = np.cumsum(length) - length
    gap_T = rng.exponential(20e6, num).astype(np.int64) + 1_000_000
    passed_T = np.cumsum(gap_T)
    event_us = np.repeat(begin_us - passed_T[np.minimum(first_T, max(0, num - 1))], length) + passed_T
    item_T = _walks(config, rng, length, num)
    type_T = rng.choice(4, num, p=[0.7, 0.2, 0.08, 0.02])
    duration_T = np.where(type_T == 0, rng.exponential(8.0, num), np.nan)
    is_missing = (rng.random(num) < config.missing_share) & (type_T == 0)
    is_null = (type_T != 0) | (is_missing & (rng.random(num) < 0.5))
    duration_T[is_missing] = np.nan
    delay = rng.integers(50_000, 5_000_000, num)
    delay = np.where(rng.random(num) < config.late_share, rng.integers(_HOUR_US, 3 * DAY_US, num), delay)
    arrival_us = event_us + delay
    again = np.flatnonzero(rng.random(num) < config.again_share)
    row = np.concatenate([np.arange(num), again])
    arrival_us = np.concatenate([arrival_us, arrival_us[again] + rng.integers(1_000_000, DAY_US, len(again))])
    order = np.lexsort((row, arrival_us))
    row, arrival_us = row[order], arrival_us[order]
    surface_T = rng.integers(0, 5, num).astype(np.int32)
    day = (arrival_us - config.start_us) // DAY_US
    names = pa.array(EVENT_TYPES)
    for start, end in zip(*(np.searchsorted(day, np.arange(day[-1] + 1), side) for side in ("left", "right"))):
        rows = row[start:end]
        yield pa.table(
            {
                "event_id": rows,
                "user_id": user_T[rows],
                "item_id": item_T[rows],
                "event_type": names.take(pa.array(type_T[rows])),
                "event_ts": _times(event_us[rows]),
                "arrival_ts": _times(arrival_us[start:end]),
                "surface": surface_T[rows],
                "duration_s": pa.array(duration_T[rows], mask=is_null[rows], from_pandas=False),
            }
        )


def synthetic_items(config: SyntheticEventsConfig, *, width: int = 32) -> pa.Table:
    """item_id, category and an embedding of `width` float16 numbers as bytes."""
    rng = np.random.default_rng([config.seed, 2])
    vectors = rng.standard_normal((config.num_items, width)).astype("<f2")
    embedding = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * width), config.num_items, [None, pa.py_buffer(np.ascontiguousarray(vectors))]
    )
    category = rng.integers(0, config.num_categories, config.num_items).astype(np.int32)
    return pa.table({"item_id": np.arange(config.num_items), "category": category, "embedding": embedding})


def synthetic_requests(config: SyntheticEventsConfig, *, num_requests: int, fan_out: int = 8) -> pa.Table:
    """Rows of requests in the last third of the stream, each just after a click or a save of its user has arrived:
    user_id, request_id, request_ts, item_id, click.

    One candidate of a request is the item after that event's, clicked with probability 0.7, the others with
    0.1. Rows of a request follow one another; their histories follow from the events (`sequences.add_histories`).
    """
    rng = np.random.default_rng([config.seed, 3])
    events = pa.concat_tables(synthetic_events(config))
    user_T, item_T = events.column("user_id").to_numpy(), events.column("item_id").to_numpy()
    arrival_T = events.column("arrival_ts").cast(pa.int64()).to_numpy()
    is_engaged_T = pc.is_in(events.column("event_type"), value_set=pa.array(["click", "save"])).to_numpy()
    late_enough = np.flatnonzero(is_engaged_T & (arrival_T >= config.start_us + config.num_days * DAY_US * 2 // 3))
    chosen = np.sort(rng.choice(late_enough, min(num_requests, len(late_enough)), replace=False))
    user_R, at_R = user_T[chosen], arrival_T[chosen] + 1
    item_RF = rng.integers(0, config.num_items, (len(chosen), fan_out))
    place_R = rng.integers(0, fan_out, len(chosen))
    item_RF[np.arange(len(chosen)), place_R] = next_item(item_T[chosen], config.num_items)
    is_next = np.arange(fan_out) == place_R[:, None]
    click = rng.random(item_RF.shape) < np.where(is_next, 0.7, 0.1)
    return pa.table(
        {
            "user_id": np.repeat(user_R, fan_out),
            "request_id": np.repeat(np.arange(len(chosen)), fan_out),
            "request_ts": _times(np.repeat(at_R, fan_out)),
            "item_id": item_RF.ravel(),
            "click": click.ravel().astype(np.int32),
        }
    )


def _walks(config: SyntheticEventsConfig, rng: np.random.Generator, length: np.ndarray, num: int) -> np.ndarray:
    """Items of the sessions: popular ones, each mostly followed by the next of the walk."""
    item_T = (config.num_items * rng.random(num) ** 3).astype(np.int64)
    follows_T = rng.random(num) < config.follow_share
    first_T = np.cumsum(length) - length
    follows_T[first_T[first_T < num]] = False
    for place in range(1, int(length.max(initial=1))):  # all sessions at once, one place after the other
        at = first_T[length > place] + place
        at = at[follows_T[at]]
        item_T[at] = next_item(item_T[at - 1], config.num_items)
    return item_T


def _times(us: np.ndarray) -> pa.Array:
    return pa.array(us).cast(pa.timestamp("us", tz="UTC"))
