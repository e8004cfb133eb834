"""Requests and rows of every user, counted in one pass over the keys of a source.

Where a source yields the rows of every request in one stretch (sorted tables, joins), each batch is reduced to its
users at once and the count needs about 48 bytes per user. Where it does not (shuffled tables, raw logs), requests are
kept until the end, 48 bytes each, so that one spread over many batches counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reqdedup.arrays.keys import run_starts
from reqdedup.dedup.streams import REQUEST_KEY, key_columns
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID


@dataclass(frozen=True, kw_only=True)
class UserTally:
    """Every user of a source once, by rising user_id.

    user_id, requests, rows: [U] int64.
    codes: for each counted column, the user's value in their latest request (by request_ts, then request_id) as a
        position in `values`, [U] int64.
    values: for each counted column its distinct values, null included.
    """

    user_id: np.ndarray
    requests: np.ndarray
    rows: np.ndarray
    codes: dict[str, np.ndarray] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def num_users(self) -> int:
        return len(self.user_id)


_COUNTS = ("requests", "rows")


def count_requests(batch: pa.RecordBatch, *, with_time: bool) -> dict[str, np.ndarray]:
    """One entry per run of rows of one request: user_id, request_id, time (us; 0 without), requests (1), rows."""
    key = key_columns(batch, REQUEST_KEY)
    starts = run_starts(key)
    time = batch.column(REQUEST_TS).cast(pa.int64()).to_numpy()[starts] if with_time else np.zeros_like(starts)
    return {
        "first_row": starts,
        USER_ID: key[0][starts],
        REQUEST_ID: key[1][starts],
        "time": time,
        "requests": np.ones_like(starts),
        "rows": np.diff(starts, append=batch.num_rows),
    }


def reduce_runs(runs: dict[str, np.ndarray], by: Sequence[str]) -> dict[str, np.ndarray]:
    """Entries with equal `by` as one: counts added up, everything else from the latest (time, then request_id)."""
    order = np.lexsort((runs[REQUEST_ID], runs["time"], *(runs[name] for name in reversed(by))))
    runs = {name: column[order] for name, column in runs.items()}
    starts = run_starts([runs[name] for name in by])
    last = np.append(starts, len(order))[1:] - 1
    reduced = {name: column[last] for name, column in runs.items() if name not in _COUNTS}
    for name in _COUNTS:
        reduced[name] = np.add.reduceat(runs[name], starts) if len(starts) else runs[name]
    return reduced


def tally_users(
    batches: Iterable[pa.RecordBatch], *, columns: Sequence[str] = (), requests_whole: bool = False
) -> UserTally:
    """Count the users of `batches`, which hold user_id, request_id and, when there are `columns`, request_ts and these.

    requests_whole: the rows of every request follow one another; they may cross from one batch into the next.
    """
    parts: list[dict[str, np.ndarray]] = []
    code_of: dict[str, dict[Any, int]] = {name: {} for name in columns}
    last_request = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        runs = count_requests(batch, with_time=bool(columns))
        if (runs[USER_ID][0], runs[REQUEST_ID][0]) == last_request:
            runs["requests"][0] = 0  # counted with the batch before
        last_request = (runs[USER_ID][-1], runs[REQUEST_ID][-1])
        first_row = pa.array(runs.pop("first_row"))
        for name in columns:
            runs[name] = _encode(batch.column(name).take(first_row), code_of[name])
        if not requests_whole:
            runs = reduce_runs(runs, REQUEST_KEY)
            runs["requests"] = np.ones_like(runs["requests"])
        parts.append(reduce_runs(runs, (USER_ID,)) if requests_whole else runs)
    names = (USER_ID, REQUEST_ID, "time", *_COUNTS, *columns)
    runs = {name: np.concatenate([part[name] for part in parts] or [np.zeros(0, np.int64)]) for name in names}
    if not requests_whole:
        runs = reduce_runs(runs, REQUEST_KEY)
        runs["requests"] = np.ones_like(runs["requests"])
    users = reduce_runs(runs, (USER_ID,))
    return UserTally(
        user_id=users[USER_ID],
        requests=users["requests"],
        rows=users["rows"],
        codes={name: users[name] for name in columns},
        values={name: list(code_of[name]) for name in columns},
    )


def _encode(array: pa.Array, code_of: dict[Any, int]) -> np.ndarray:
    """Code of each value, [N] int64; values that are new get the next code."""
    encoded = pc.dictionary_encode(array, null_encoding="encode")
    codes = np.array([code_of.setdefault(v, len(code_of)) for v in encoded.dictionary.to_pylist()], np.int64)
    return codes[encoded.indices.to_numpy(zero_copy_only=False)]
