"""One pass over the key columns: how many rows each request has, and how far apart they lie.

Only the keys are read, streamed. A request is one (user key, request key); a run is a stretch of neighbouring rows of
one request in one file. Memory is bounded: where a table has more requests than `MAX_REQUESTS`, only users whose hash
is below a threshold are followed, halved whenever it gets tight, so what is followed stays a uniform sample of users
with all their rows (adaptive sampling). Totals of rows, nulls and runs are exact at any size.

Source: M. Wegman's adaptive sampling, in Flajolet, "On adaptive sampling", Computing 43, 1990.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reqdedup.audit.footers import TableFacts
from reqdedup.audit.keys import hash_keys, null_keys
from reqdedup.display import counted
from reqdedup.storage.foreign.files import DataFile, TableFiles
from reqdedup.storage.foreign.leaves import Shape

MAX_REQUESTS = 1_000_000
"""Requests followed at most; about 200 bytes each while they are merged."""

BATCH_ROWS = 1 << 18

_FIELDS = ("request", "user", "plain_request", "rows", "runs", "groups", "last_group", "files", "last_file")
_TYPES = (np.uint64, np.uint64, np.uint64, *[np.int64] * 6)


@dataclass(frozen=True)
class KeyColumns:
    """The columns that identify a request and, where given, its user; `item` orders the rows inside a request."""

    request: tuple[str, ...]
    user: tuple[str, ...] = ()
    item: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.user + self.request))


@dataclass(frozen=True)
class RequestIndex:
    """What the keys say. Arrays have one entry per followed request.

    user: hash of its user (of the request itself where no user key was given).  rate: part of the users followed.
    rows, runs, row_groups, files: of each request.  num_rows: with keys; null_rows: without.
    request_runs, user_runs: of the whole table.  shared_ids: request keys that several users have.
    """

    user: np.ndarray
    rows: np.ndarray
    runs: np.ndarray
    row_groups: np.ndarray
    files: np.ndarray
    rate: float
    num_rows: int
    null_rows: int
    request_runs: int
    user_runs: int
    shared_ids: int

    @property
    def num_requests(self) -> int:
        """Exact where every user was followed, else estimated."""
        return round(len(self.rows) / self.rate)

    @property
    def num_users(self) -> int:
        return round(len(np.unique(self.user)) / self.rate)


def read_keys(
    batch: pa.RecordBatch, keys: KeyColumns, file: DataFile
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of a batch's keys: request (its user included), user, request alone, and where one of them is null."""
    arrays = file.arrays(batch, keys.all)
    request_columns = [arrays[name] for name in keys.request]
    plain = hash_keys(request_columns)
    missing = null_keys(request_columns)
    user, request = plain, plain
    if keys.user:
        user_columns = [arrays[name] for name in keys.user]
        user = hash_keys(user_columns)
        missing |= null_keys(user_columns)
        request = hash_keys([pa.array(user), pa.array(plain)])
    return np.where(missing, np.uint64(0), request), user, plain, missing


def check_keys(table: TableFiles, keys: KeyColumns) -> None:
    """Raise ValueError, naming what is there, where a key column is missing or of a type that cannot be a key."""
    if not keys.request:
        raise ValueError(
            "at least one request key column required, found none; name the column that says which request a row is of"
        )
    leaves = {leaf.name: leaf for leaf in table.leaves}
    if missing := [name for name in dict.fromkeys((*keys.all, *keys.item)) if name not in leaves]:
        names = f"key column{'s' * (len(missing) > 1)} {', '.join(missing)}"
        raise ValueError(f"{table.name}: {names} required, found columns {', '.join(leaves)}")
    for name in (*keys.all, *keys.item):
        absent = [file.path for file in table.files if name not in file.leaf_in_file and name not in file.constants]
        if absent:
            raise ValueError(
                f"{table.name}: key column {name} required in every file, not found in {absent[0]} "
                f"({counted(len(absent), 'such file')})"
            )
        try:
            kind = leaves[name].type
            hash_keys([pa.array([], kind if leaves[name].shape is Shape.SCALAR else pa.list_(kind))])
        except ValueError as error:
            raise ValueError(f"{table.name}: key column {name}: {error}") from error


def scan_keys(
    table: TableFiles,
    facts: TableFacts,
    keys: KeyColumns,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RequestIndex:
    """Read the keys of every row. Raises ValueError if no row has a whole key."""
    kept = {name: np.zeros(0, kind) for name, kind in zip(_FIELDS, _TYPES)}
    pending: list[dict[str, np.ndarray]] = []
    num_pending = null_rows = done_rows = request_runs = user_runs = 0
    shift, group_number = 0, -1
    by_file: dict[int, list[int]] = {}
    for group in facts.row_groups:
        by_file.setdefault(group.file, []).append(group.index)
    for file_number, indices in by_file.items():
        file = table.files[file_number]
        last = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        with file.parquet(keys.all) as parquet:
            for index in indices:
                group_number += 1
                for batch in file.batches(parquet, BATCH_ROWS, row_groups=[index], columns=file.columns(keys.all)):
                    request, user, plain, missing = read_keys(batch, keys, file)
                    null_rows += int(missing.sum())
                    done_rows += len(request)
                    starts = _run_starts(request, last[0])
                    user_starts = _run_starts(user, last[1])
                    last = (request[-1:], user[-1:])
                    request_runs += int((starts & ~missing).sum())
                    user_runs += int((user_starts & ~missing).sum())
                    records = _per_request(request, user, plain, starts, ~missing & _below(user, shift))
                    records |= {
                        "groups": np.ones(len(records["rows"]), np.int64),
                        "last_group": np.full(len(records["rows"]), group_number, np.int64),
                        "files": np.ones(len(records["rows"]), np.int64),
                        "last_file": np.full(len(records["rows"]), file_number, np.int64),
                    }
                    pending.append(records)
                    num_pending += len(records["rows"])
                    if num_pending > MAX_REQUESTS:
                        kept, pending, num_pending = _merge([kept, *pending]), [], 0
                        while len(kept["rows"]) > MAX_REQUESTS:
                            shift += 1
                            kept = {name: values[_below(kept["user"], shift)] for name, values in kept.items()}
                progress(done_rows, facts.num_rows)
    kept = _merge([kept, *pending])
    kept = {name: values[_below(kept["user"], shift)] for name, values in kept.items()}
    if not done_rows:
        raise ValueError(
            f"{table.name}: a table with rows required, found {counted(len(table.files), 'file')} without any"
        )
    if done_rows == null_rows:
        raise ValueError(
            f"{table.name}: rows with a request key required, found {counted(done_rows, 'row')} and a null in "
            f"{' or '.join(keys.all)} of each; name other key columns"
        )
    return RequestIndex(
        user=kept["user"],
        rows=kept["rows"],
        runs=kept["runs"],
        row_groups=kept["groups"],
        files=kept["files"],
        rate=0.5**shift,
        num_rows=done_rows - null_rows,
        null_rows=null_rows,
        request_runs=request_runs,
        user_runs=user_runs,
        shared_ids=_shared_ids(kept["plain_request"]) if keys.user else 0,
    )


def _below(hashes: np.ndarray, shift: int) -> np.ndarray:
    return hashes <= np.uint64((2**64 - 1) >> shift)


def _run_starts(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    starts = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=starts[1:])
    if len(before) and len(values):
        starts[0] = values[0] != before[0]
    return starts


def _per_request(
    request: np.ndarray, user: np.ndarray, plain: np.ndarray, starts: np.ndarray, wanted: np.ndarray
) -> dict[str, np.ndarray]:
    request, user, plain, starts = request[wanted], user[wanted], plain[wanted], starts[wanted]
    unique, first, inverse = np.unique(request, return_index=True, return_inverse=True)
    return {
        "request": unique,
        "user": user[first],
        "plain_request": plain[first],
        "rows": np.bincount(inverse, minlength=len(unique)),
        "runs": np.bincount(inverse, weights=starts, minlength=len(unique)).astype(np.int64),
    }


def _merge(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One record per request of several lists in reading order."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in _FIELDS}
    if not len(joined["rows"]):
        return joined
    order = np.argsort(joined["request"], kind="stable")
    joined = {name: values[order] for name, values in joined.items()}
    same = joined["request"][1:] == joined["request"][:-1]
    for count, last in (("groups", "last_group"), ("files", "last_file")):
        joined[count][1:] -= same & (joined[last][1:] == joined[last][:-1])
    first = np.flatnonzero(np.concatenate([[True], ~same]))
    end = np.append(first[1:], len(joined["rows"])) - 1
    merged = {name: joined[name][first] for name in ("request", "user", "plain_request")}
    merged |= {name: np.add.reduceat(joined[name], first) for name in ("rows", "runs", "groups", "files")}
    merged |= {name: joined[name][end] for name in ("last_group", "last_file")}
    return merged


def _shared_ids(plain_request: np.ndarray) -> int:
    _, counts = np.unique(plain_request, return_counts=True)
    return int((counts > 1).sum())
