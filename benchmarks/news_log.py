"""A log like those that nobody made for us: news impressions, as seeded Parquet files.

    190,000 or 2,000,000 rows, 38 candidates a request (heavy-tailed, 2 to 300), 1.08 requests a user, histories of 32
    events (median 19, at most 425, some empty), items by Zipf's law over 50,000 ids, 4% of the candidates clicked

An event of a history has 12.4 bits of order-0 entropy and a candidate 11.0, as measured on a real news log. The same
rows come with dense ids (int64, given in order of first appearance) and with the texts that such logs have (`N48213`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reqdedup.arrays.ranges import offsets_of

NUM_ITEMS = 50_000
HISTORY_EXPONENT, CANDIDATE_EXPONENT = 0.85, 1.1
"""Of Zipf's law."""

REQUESTS_PER_USER, FAN_OUT, CLICKED = 1.08, 38, 0.04
MEDIAN_HISTORY, MAX_HISTORY, MAX_FAN_OUT, NO_HISTORY = 19, 425, 300, 0.02
START, DAYS = np.datetime64("2026-11-01T00:00:00", "us"), 7


@dataclass(frozen=True)
class NewsLog:
    """num_rows: about so many.  seed: equal seeds give equal logs."""

    num_rows: int = 190_000
    seed: int = 0

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The rows in order of time, with dense ids and with texts: a list of the history on every row."""
        rng = np.random.default_rng(self.seed)
        num_requests = max(round(self.num_rows / FAN_OUT), 1)
        num_users = max(round(num_requests / REQUESTS_PER_USER), 1)
        user = np.concatenate([np.arange(num_users), rng.integers(0, num_users, num_requests - num_users)])
        user = rng.permutation(user)
        second = np.sort(rng.integers(0, DAYS * 86_400, num_requests))
        history, offsets = _histories(rng, user, num_users)
        candidates, fan_out = _candidates(rng, num_requests)
        first_seen = _by_first_appearance(np.concatenate([history, candidates]))
        history, candidates = first_seen[history], first_seen[candidates]
        request_of_row = np.repeat(np.arange(num_requests), fan_out)
        dense_user = _by_first_appearance(user)[user]
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(history))
        rows = {
            "user_id": pa.array(dense_user[request_of_row]),
            "request_id": pa.array(request_of_row),
            "item_id": pa.array(candidates),
            "request_ts": pa.array((START + second[request_of_row].astype("m8[s]")).astype("M8[us]")).cast(
                pa.timestamp("us", tz="UTC")
            ),
            "history_item_id": lists.take(pa.array(request_of_row)),
            "click": pa.array((rng.random(len(candidates)) < CLICKED).astype(np.int32)),
        }
        dense = pa.table(rows)
        item_text = _texts("N", rng.permutation(4 * NUM_ITEMS)[:NUM_ITEMS])
        user_text = _texts("U", rng.permutation(4 * num_users)[:num_users])
        text_lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), item_text.take(pa.array(history)))
        texts = {
            "user_id": user_text.take(rows["user_id"]),
            "item_id": item_text.take(rows["item_id"]),
            "history_item_id": text_lists.take(pa.array(request_of_row)),
        }
        return dense, pa.table(rows | texts)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Files of both, in pyarrow's defaults and row groups of 2^17 rows."""
        paths = folder / "dense.parquet", folder / "texts.parquet"
        for path, table in zip(paths, self.tables()):
            pq.write_table(table, path, row_group_size=2**17)
        return paths


def _histories(rng: np.random.Generator, user: np.ndarray, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of each request's history [T] and offsets [R + 1]: a user's events so far, a few more at each request."""
    length = np.exp(np.log(MEDIAN_HISTORY + 0.5) + 1.04 * rng.standard_normal(num_users)).astype(np.int64)
    length[rng.random(num_users) < NO_HISTORY] = 0
    length = np.minimum(length, MAX_HISTORY)
    by_user = np.argsort(user, kind="stable")
    starts = np.flatnonzero(np.diff(user[by_user], prepend=-1))
    of_request = np.empty(len(user), np.int64)  # the how-many-th of its user
    of_request[by_user] = np.arange(len(user)) - np.repeat(starts, np.diff(np.append(starts, len(user))))
    most = length + 4 * int(of_request.max(initial=0))
    first = offsets_of(most)
    events = _zipf(rng, HISTORY_EXPONENT, int(first[-1]))
    lengths = np.minimum(length[user] + np.where(of_request > 0, of_request * 2, 0), MAX_HISTORY)
    offsets = offsets_of(lengths)
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) + np.repeat(first[user], lengths)
    return events[at], offsets


def _candidates(rng: np.random.Generator, num_requests: int) -> tuple[np.ndarray, np.ndarray]:
    """Items shown [B], no one twice in a request, and how many each request has [R]."""
    fan_out = np.exp(np.log(24.6) + 0.98 * rng.standard_normal(num_requests)).astype(np.int64)
    fan_out = np.clip(fan_out, 2, MAX_FAN_OUT)
    drawn = 2 * fan_out
    request = np.repeat(np.arange(num_requests), drawn)
    item = _zipf(rng, CANDIDATE_EXPONENT, len(request))
    _, first = np.unique(request * NUM_ITEMS + item, return_index=True)
    first.sort()
    request, item = request[first], item[first]
    starts = np.flatnonzero(np.diff(request, prepend=-1))
    place = np.arange(len(request)) - np.repeat(starts, np.diff(np.append(starts, len(request))))
    kept = place < fan_out[request]
    return item[kept], np.bincount(request[kept], minlength=num_requests)


def _zipf(rng: np.random.Generator, exponent: float, size: int) -> np.ndarray:
    shares = np.cumsum(np.arange(1, NUM_ITEMS + 1) ** -exponent)
    return np.searchsorted(shares, rng.random(size) * shares[-1]).astype(np.int64)


def _by_first_appearance(values: np.ndarray) -> np.ndarray:
    """New number of each value that is there, [max + 1]; 0 for the others."""
    distinct, first = np.unique(values, return_index=True)
    numbers = np.zeros(int(distinct[-1]) + 1, np.int64)
    numbers[distinct[np.argsort(first)]] = np.arange(len(distinct))
    return numbers


def _texts(letter: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{letter}{number}" for number in numbers.tolist()])
