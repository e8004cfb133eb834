"""A sample of whole users, stratified, the same in every process and nested in every larger one.

Training and evaluation want users, not rows: a user's requests share history, so a sample of rows keeps nearly every
history and thins every user. `sample_users` reads the keys once to count, decides, and is then itself a source: its
batches stream from the original with the sampled users alone, files without any of them unread. Users are drawn by
`stable_hash(user_id, seed ^ USER_STREAM)`, so a user of the 1% sample is in the 10% sample at the same seed, on any
day's table; and whoever splits the users of a sample by `stable_hash(user_id, seed)`, as training does, splits them as
those of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from reqdedup.arrays.hashing import below_rate, stable_hash
from reqdedup.arrays.keys import run_starts
from reqdedup.arrays.match import match_keys
from reqdedup.dedup.readable import Readable
from reqdedup.dedup.rows import take_rows
from reqdedup.dedup.source import BatchSource, digest, fingerprint_of
from reqdedup.dedup.streams import REQUEST_KEY, key_columns
from reqdedup.schema import REQUEST_ID, REQUEST_TS, USER_ID, EngagementSchema
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.read.reader import FileSource
from reqdedup.storage.read.table_source import TableSource
from reqdedup.storage.sampling.report import sampling_report
from reqdedup.storage.sampling.strata import Activity, Division, Strata, divide, per_stratum, strata_columns
from reqdedup.storage.sampling.tally import UserTally, count_requests, reduce_runs, tally_users
from reqdedup.storage.tasks.write import write
from reqdedup.storage.write.writer import WriteReport

KEEP_BY_HASH, KEEP_LATEST = "hash", "latest"
USER_STREAM = 0x6A09E667F3BCC908
"""Users are drawn by another seed than the held-out ones of a training: else a sample would lose its training users
first. The fraction of the square root of 2, which no seed is by chance."""
_REQUEST_STREAM = 0x5EED  # requests are drawn by another seed than users: else the first users' requests would lead


class UserSample(Readable):
    """Whole users of a source; itself a source of deduplicated batches, readable any number of times.

    user_ids: the sampled users, rising.
    report: one row per stratum and a last one for all of them, see `sampling_report`.
    schema: the schema of the source.
    """

    def __init__(
        self, source: BatchSource, user_ids: np.ndarray, kept_requests: dict[str, np.ndarray], report: pa.Table
    ) -> None:
        self.user_ids: pa.Array = pa.array(user_ids, pa.int64())
        self.report = report
        self._source, self._user_ids = source, user_ids
        # Users with too many requests, and those requests of theirs that stay, in (user_id, request_id) order.
        self._kept = [kept_requests[name] for name in REQUEST_KEY]
        self._capped_users = np.unique(self._kept[0])

    @property
    def schema(self) -> EngagementSchema:
        return self._source.schema

    def item_keys(self, item_id: np.ndarray) -> np.ndarray | None:
        return self._source.item_keys(item_id) if isinstance(self._source, Readable) else None

    @property
    def requests_whole(self) -> bool:
        return requests_whole(self._source)

    @property
    def num_buckets(self) -> int | None:
        """Of the source, if it lies in buckets."""
        return getattr(self._source, "num_buckets", None)

    @property
    def num_bytes(self) -> int:
        """Of the stored files of the source, as far as it knows."""
        return getattr(self._source, "num_bytes", 0)

    def write_to(self, table: Table, **options: Any) -> WriteReport:
        """Write the sample into a bucketed table of this schema, bucket by bucket, in one commit.

        options: mode, progress, spill_dir, properties and engine of `storage.write`.
        """
        return write(table, self, **options)

    def was_written(self, notes: list[Any]) -> None:
        """See `BucketSource`."""

    def in_order(self, num_units: int) -> bool:
        return self.requests_whole and num_units == self.num_buckets

    @property
    def file_sources(self) -> list[FileSource]:
        """What its source reads, as far as it says."""
        return [self._source] if isinstance(self._source, FileSource) else getattr(self._source, "file_sources", [])

    def weights(self, num_units: int) -> np.ndarray:
        """Users of each unit, [num_units] int64."""
        return np.bincount(buckets_of(self._user_ids, num_units), minlength=num_units)

    def of_unit(
        self, unit: int, num_units: int, notes: list[Any], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """See `BucketSource`; it notes nothing."""
        return self.batches(columns, users=self._user_ids[buckets_of(self._user_ids, num_units) == unit])

    def fingerprint(self) -> dict[str, str] | None:
        """Of the source, of the users, and of the requests kept of those with too many; None if the source has none."""
        source = fingerprint_of(self._source)
        return source and {
            **source,
            "sampled users": digest(self._user_ids),
            "kept requests": digest(*self._kept),
        }

    def batches(
        self, columns: Sequence[str] | None = None, users: pa.Array | np.ndarray | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The sampled rows, in the order of the source; dictionaries hold only values that a row has.

        columns: names of the columns wanted, all by default.  users: only those of them that are sampled.
        """
        wanted = self._user_ids if users is None else np.intersect1d(np.asarray(users), self._user_ids)
        if len(wanted) == 0:
            return
        read = columns
        if columns is not None and len(self._capped_users):
            read = [*columns, *(name for name in REQUEST_KEY if name not in columns)]
        for batch in self._source.batches(read, users=wanted):
            batch = self._keep(batch)
            if batch.num_rows:
                yield batch if columns is None else batch.select([n for n in batch.schema.names if n in set(columns)])

    def _keep(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Without the requests that a user has too many of."""
        if len(self._capped_users) == 0 or batch.num_rows == 0:
            return batch
        key = key_columns(batch, REQUEST_KEY)
        keep = (match_keys(key[:1], [self._capped_users]) < 0) | (match_keys(key, self._kept) >= 0)
        return batch if keep.all() else take_rows(batch, keep)


def sample_users(
    source: Table | BatchSource,
    *,
    rate: float | Mapping[str, float] | None = None,
    target: int | Mapping[str, int] | None = None,
    cap: int | Mapping[str, int] | None = None,
    strata: Strata | Sequence[Strata] = (),
    max_requests_per_user: int | None = None,
    keep: Literal["hash", "latest"] = "hash",
    seed: int = 0,
) -> UserSample:
    """Draw whole users of `source`, per stratum.

    rate: share of the stratum's users, in [0, 1]; nested in every larger rate at the same seed.
    target: number of users of the stratum, all of them where it has fewer; nested in every larger target.
    cap: at most so many users of the stratum, on top of `rate`.
        Each of the three is one value for all strata or a mapping from stratum labels (`Activity.labels`,
        "column=value", joined by ", " for both), where "*" stands for all others. Give rate, cap, both, or target.
    strata: an Activity, the name of a request-level column (a user's value is that of their latest
        request), or several.
    max_requests_per_user: users with more keep so many whole requests: a draw by hash that is nested in every larger
        one (keep="hash"), or the latest by request_ts, then request_id (keep="latest").

    Reads the keys once (and the strata columns), and once more those of users with too many requests.
    Raises ValueError for settings that do not fit together, or name a stratum or column that is not there.
    """
    opened = open_source(source)
    strata = [strata] if isinstance(strata, Activity | str) else list(strata)
    columns = strata_columns(strata, opened.schema)
    _check_settings(rate, target, cap, max_requests_per_user, keep)
    keys = [*REQUEST_KEY, *([REQUEST_TS] if columns else []), *columns]
    tally = tally_users(
        opened.batches(list(dict.fromkeys(keys))), columns=columns, requests_whole=requests_whole(opened)
    )
    division = divide(tally, strata)
    settings = {
        "rate": per_stratum(rate, division.labels, "rate"),
        "target": per_stratum(target, division.labels, "target"),
        "cap": per_stratum(cap, division.labels, "cap"),
    }
    sampled = _draw(tally, division, settings, seed)
    kept, after = _cap_requests(opened, tally, sampled, max_requests_per_user, keep, seed)
    return UserSample(opened, after.user_id, kept, sampling_report(tally, after, division, settings))


def open_source(source: Table | BatchSource) -> BatchSource:
    """The source itself; a table is read by its current snapshot."""
    return TableSource(source) if isinstance(source, Table) else source


def requests_whole(source: BatchSource) -> bool:
    """True if the rows of every request follow one another in the batches of the source, as far as it tells."""
    return bool(getattr(source, "requests_whole", False))


def _check_settings(
    rate: float | Mapping[str, float] | None,
    target: int | Mapping[str, int] | None,
    cap: int | Mapping[str, int] | None,
    max_requests_per_user: int | None,
    keep: str,
) -> None:
    if target is not None and (rate is not None or cap is not None):
        raise ValueError("sample_users: give target alone, or rate and cap; found target with another")
    for name, setting, highest in (("rate", rate, 1.0), ("target", target, None), ("cap", cap, None)):
        for value in setting.values() if isinstance(setting, Mapping) else [setting]:
            if value is not None and not (value >= 0 and (highest is None or value <= highest)):
                raise ValueError(
                    f"sample_users: {name} must be at least 0{' and at most 1' if highest else ''}, found {value}"
                )
    if max_requests_per_user is not None and max_requests_per_user < 1:
        raise ValueError(f"sample_users: max_requests_per_user must be at least 1, found {max_requests_per_user}")
    if keep not in (KEEP_BY_HASH, KEEP_LATEST):
        raise ValueError(f"sample_users: keep must be {KEEP_BY_HASH!r} or {KEEP_LATEST!r}, found {keep!r}")


def _draw(tally: UserTally, division: Division, settings: dict[str, list], seed: int) -> np.ndarray:
    """True for each user that is drawn, [U] bool."""
    hashes = stable_hash(tally.user_id, seed ^ USER_STREAM)
    rates = np.array([1.0 if rate is None else rate for rate in settings["rate"]])
    drawn = below_rate(hashes, rates[division.stratum_of_user])
    for stratum, limits in enumerate(zip(settings["target"], settings["cap"])):
        limit = next((limit for limit in limits if limit is not None), None)
        if limit is not None:
            users = np.flatnonzero(drawn & (division.stratum_of_user == stratum))
            drawn[users[np.argsort(hashes[users])[limit:]]] = False
    return drawn


def _cap_requests(
    source: BatchSource, tally: UserTally, sampled: np.ndarray, limit: int | None, keep: str, seed: int
) -> tuple[dict[str, np.ndarray], UserTally]:
    """Requests that stay of the users with more than `limit`, and the tally of the sample after the cut."""
    users, requests, rows = tally.user_id[sampled], tally.requests[sampled], tally.rows[sampled]
    none = {name: np.zeros(0, np.int64) for name in REQUEST_KEY}
    many = np.zeros(len(users), bool) if limit is None else requests > limit
    if limit is None or not many.any():
        return none, UserTally(user_id=users, requests=requests, rows=rows)
    columns = [*REQUEST_KEY, *([REQUEST_TS] if keep == KEEP_LATEST else [])]
    parts = [
        reduce_runs(count_requests(batch, with_time=keep == KEEP_LATEST), REQUEST_KEY)
        for batch in source.batches(columns, users=users[many])
    ]
    runs = reduce_runs({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, REQUEST_KEY)
    if keep == KEEP_LATEST:
        order = np.lexsort((runs[REQUEST_ID], runs["time"], runs[USER_ID]))
        order = order[::-1]
    else:
        order = np.lexsort((stable_hash(runs[REQUEST_ID], seed ^ _REQUEST_STREAM), runs[USER_ID]))
    starts = run_starts([runs[USER_ID][order]])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    chosen = np.sort(order[place < limit])  # runs are in (user_id, request_id) order, and so are these
    kept = {name: column[chosen] for name, column in runs.items()}
    per_user = reduce_runs(kept, (USER_ID,))
    requests[many], rows[many] = limit, per_user["rows"]
    return {name: kept[name] for name in REQUEST_KEY}, UserTally(user_id=users, requests=requests, rows=rows)
