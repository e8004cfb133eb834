"""From impressions to requests: who owns a request id, where a session starts, what is there twice.

Works on one partition of users, whole. A log without request ids gets sessions: a pause longer than the gap starts a
new request, and the request's time is that of its first row. With candidate lists, and
with a gap of 0, every line is a request of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import polars as pl

from reqdedup.logs.checks import Check, Rejects
from reqdedup.logs.ids import timed_request_ids
from reqdedup.logs.mapping import ITEM_URL, LogMapping
from reqdedup.logs.partitions import Partitions

_PLACE = ("file", "line")
_REQUEST = ("user_id", "request_id")
"""Both, since an id made of a time may be that of another user's request, too."""
_PAIR = (*_REQUEST, "item_id")


def count_owners(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows per (request_id, user_id) of a block, with the first place of each: what `find_disputed` adds up."""
    return frame.group_by("request_id", "user_id").agg(
        pl.len().cast(pl.Int64).alias("rows"),
        (pl.col("file").cast(pl.Int64) * 2**40 + pl.col("line")).min().alias("place"),
    )


def find_disputed(owners: Partitions) -> pl.DataFrame:
    """Requests with rows of several users: columns request_id, owner (the user with most rows; ties: the first)."""
    disputed: list[pl.DataFrame] = [pl.DataFrame(schema={"request_id": pl.Int64, "owner": pl.Int64})]
    for part in range(owners.count):
        counts = owners.read(part)
        if counts is not None:
            disputed.append(disputed_of(counts))
    return pl.concat(disputed)


def disputed_of(counts: pl.DataFrame) -> pl.DataFrame:
    """The same of what `count_owners` gave of all rows of some requests."""
    users = counts.group_by("request_id", "user_id").agg(pl.col("rows").sum(), pl.col("place").min())
    several = users.filter(pl.len().over("request_id") > 1)
    best = several.sort("request_id", "rows", "place", descending=[False, True, False])
    return best.unique("request_id", keep="first", maintain_order=True).select("request_id", owner="user_id")


def form_requests(
    frame: pl.DataFrame,
    mapping: LogMapping,
    *,
    disputed: pl.DataFrame,
    session_gap_s: float,
    rejects: Rejects,
    count_merged: Callable[[int, int], None],
) -> pl.DataFrame:
    """The impressions of a partition's users with request_id and request_ts_us, in (user, request time, place) order.

    Rows of several URLs of one page in a request become one, the first, with the largest of their labels. count_merged:
    is told how many rows went into another, and of how many pages the labels were not the same.
    Rejected are rows of a request that belongs to another user, repeated (request, item) pairs, of URLs those with the
    same text, and rows whose request-level values are not those of most of the request's rows.
    """
    frame = frame.with_columns(pl.format("user={}, item={}, time={} us", "user_id", "item_id", "ts_us").alias("raw"))
    if mapping.request_id:
        if not disputed.is_empty():
            frame = frame.join(disputed, on="request_id", how="left", maintain_order="left")
            other = pl.col("owner") != pl.col("user_id")
            detail = pl.format(
                'most rows of request {} are of user {}; if ids restart for every user, say request_scope = "user"',
                "request_id",
                "owner",
            )
            frame = rejects.split(frame, [Check("two_users", other, detail)]).drop("owner")
        frame = frame.sort("user_id", "ts_us", *_PLACE, maintain_order=True)
    else:
        frame = frame.sort("user_id", "ts_us", *_PLACE, maintain_order=True)
        by_line = mapping.candidates or session_gap_s == 0
        frame = _add_line_requests(frame) if by_line else _add_sessions(frame, session_gap_s)
    frame = _reject_other_values(frame, mapping, rejects)
    if mapping.are_urls:
        num_differing = _num_differing(frame, mapping.label_names)
        # a page was clicked, if it was by any of its URLs
        labels = [pl.col(name).max().over(*_PAIR) for name in mapping.label_names]
        every = _reject_duplicates(frame.with_columns(labels), (*_PAIR, ITEM_URL), rejects)
        frame = every.filter(pl.int_range(pl.len()).over(_PAIR) == 0)
        count_merged(every.height - frame.height, num_differing)
    else:
        frame = _reject_duplicates(frame, _PAIR, rejects)
    frame = frame.with_columns(pl.col("ts_us").min().over(_REQUEST).alias("request_ts_us")).drop("raw")
    if not mapping.request_id:
        return frame
    return frame.sort("user_id", "request_ts_us", "request_id", "ts_us", *_PLACE, maintain_order=True)


def _add_sessions(frame: pl.DataFrame, session_gap_s: float) -> pl.DataFrame:
    user, ts_us = frame["user_id"].to_numpy(), frame["ts_us"].to_numpy()
    starts = np.ones(len(user), bool)
    starts[1:] = (user[1:] != user[:-1]) | (np.diff(ts_us) > session_gap_s * 1e6)
    first = np.flatnonzero(starts)
    session_ids = timed_request_ids(user[first], ts_us[first])
    return frame.with_columns(pl.Series("request_id", session_ids[np.cumsum(starts) - 1], dtype=pl.Int64))


def _add_line_requests(frame: pl.DataFrame) -> pl.DataFrame:
    lines = frame.group_by("user_id", "ts_us", *_PLACE, maintain_order=True).agg(pl.len())
    second = (pl.col("ts_us") // 1_000_000).alias("second")
    nth = lines.select(pl.int_range(pl.len()).over("user_id", second)).to_series().to_numpy()
    ids = timed_request_ids(lines["user_id"].to_numpy(), lines["ts_us"].to_numpy(), nth)
    lines = lines.select(*_PLACE, pl.Series("request_id", ids, dtype=pl.Int64))
    return frame.join(lines, on=_PLACE, how="left", maintain_order="left")


def _num_differing(frame: pl.DataFrame, labels: Collection[str]) -> int:
    """Number of items of requests whose rows have different labels."""
    several = frame.filter(pl.len().over(_PAIR) > 1)
    same = several.group_by(_PAIR).agg(pl.col(name).n_unique() for name in labels)
    return same.select(pl.any_horizontal(pl.col(name) > 1 for name in labels).sum()).item() if labels else 0


def _reject_duplicates(frame: pl.DataFrame, pair: Sequence[str], rejects: Rejects) -> pl.DataFrame:
    """The first row of each item of a request, or of each of its URLs. pair: columns that say which."""
    nth = frame.select(pl.int_range(pl.len()).over(pair)).to_series()
    if not (nth > 0).any():
        return frame
    first = frame.filter(nth == 0).select(*pair, first_file="file", first_line="line")
    frame = frame.with_columns(nth=nth).join(first, on=pair, how="left", maintain_order="left")
    name = pl.col("first_file").replace_strict(dict(enumerate(rejects.files)), return_dtype=pl.String)
    where = pl.when(pl.col("first_file") != pl.col("file")).then(pl.format(" of {}", name)).otherwise(pl.lit(""))
    detail = pl.format(
        "item {} of request {} stands on line {}{} already", "item_id", "request_id", "first_line", where
    )
    frame = rejects.split(frame, [Check("duplicate", pl.col("nth") > 0, detail)])
    return frame.drop("nth", "first_file", "first_line")


def _reject_other_values(frame: pl.DataFrame, mapping: LogMapping, rejects: Rejects) -> pl.DataFrame:
    """The rows whose request-level values are those that most rows of their request have (ties: the first)."""
    names = [rule.name for rule in mapping.request_columns]
    # -0.0 of one row is no other value than 0.0 of the next.
    floats = [name for name in names if frame.schema[name].is_float()]
    frame = frame.with_columns(
        pl.when(pl.col(name) == 0).then(0.0).otherwise(pl.col(name)).alias(name) for name in floats
    )
    names += [name for name in ("history", "history_times") if name in frame.columns]
    for name in names:
        differs = pl.col(name).ne_missing(pl.col(name).first().over(_REQUEST))
        mixed = frame.filter(differs)["request_id"].unique()
        if mixed.is_empty():
            continue
        of_mixed = pl.col("request_id").is_in(mixed.implode())
        votes = frame.filter(of_mixed).group_by(*_REQUEST, name, maintain_order=True).agg(pl.len().alias("votes"))
        kept = votes.sort("votes", descending=True, maintain_order=True).unique(
            _REQUEST, keep="first", maintain_order=True
        )
        frame = frame.join(kept.select(*_REQUEST, kept=name), on=_REQUEST, how="left", maintain_order="left")
        detail = pl.format(
            f"{name} is {{}}, {{}} on most rows of the request; if it differs by row, map it under [item_columns]",
            pl.col(name).cast(pl.String).fill_null("null"),
            pl.col("kept").cast(pl.String).fill_null("null"),
        )
        check = Check("request_value", of_mixed & pl.col(name).ne_missing(pl.col("kept")), detail)
        frame = rejects.split(frame, [check]).drop("kept")
    return frame
