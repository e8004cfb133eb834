"""From requests to deduplicated batches: the history of every request, anchored and stored once.

Histories come from the log's own column or from the user's earlier rows. Those are in the order of arrival if the log
says when a row arrived, else in that of time. An event is in a history if it had arrived, in whole milliseconds, before
the request; where only its time is known, a late event is in histories of requests that cannot have seen it.
`history_action` has bit i set if label i of the schema was positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from reqdedup.arrays.ranges import offsets_of
from reqdedup.arrays.windows import anchored_start, gather_windows
from reqdedup.dedup.encoding import blobs_from_numpy, deduplicated_schema
from reqdedup.logs.ids import ItemKeys
from reqdedup.logs.impressions import IdTypes
from reqdedup.logs.mapping import ARRIVED_US, ITEM_URL, FeatureRule, LogMapping
from reqdedup.logs.values import LIST_MARK
from reqdedup.schema import HISTORY_TS, Column, EngagementSchema, Kind, Level

BATCH_ROWS = 65_536
BATCH_BYTES = 64 * 2**20
_TOKEN_BYTES = 8 + 4 + 8


def log_schema(mapping: LogMapping, ids: IdTypes, vocabulary: str = "") -> EngagementSchema:
    """The columns of a log read with this mapping. vocabulary: name of the table with the items' keys, if there is
    one; then their ids have 32 bits, and the keys are nowhere else."""

    def request(name: str, dtype: str, doc: str, kind: Kind = Kind.SCALAR, **more: Any) -> Column:
        return Column(name=name, dtype=dtype, level=Level.REQUEST, doc=doc, kind=kind, **more)

    def key(name: str, doc: str, **more: Any) -> Column:
        return Column(name=name, dtype="int64", level=Level.KEY, doc=doc, **more)

    def feature(rule: FeatureRule, level: Level) -> Column:
        return Column(name=rule.name, dtype=rule.dtype, level=level, nullable=True, doc=f"{rule.name}, from the log")

    hashed = "63-bit BLAKE2b hash of {}"
    item = f"dense id of the item, whose key is in {vocabulary}" if vocabulary else "the log's item id"
    is_order = mapping.time.is_order
    when = "order number of the request's first row, as seconds since 1970" if is_order else ""
    columns = [
        key("user_id", hashed.format("user_key") if ids.user else "the log's user id"),
        key("request_id", "the log's request id, or a hash of it" if mapping.request_id else "start of the session"),
        key("item_id", hashed.format("item_key") if ids.item and not vocabulary else item, vocabulary=vocabulary),
        request("request_ts", "timestamp", when or "time of the request's first row, UTC"),
        request("history_end", "int64", "events in the user's timeline before the request, the cut ones included"),
        request("timeline_version", "int32", "version of the timeline that history_end counts in"),
        request(
            *("history_item_id", "int32" if vocabulary else "int64"),
            *("items of the user's past engagements, oldest first", Kind.SEQUENCE),
            vocabulary=vocabulary,
        ),
    ]
    bits = " + ".join(f"{1 << bit} {name}" for bit, name in enumerate(mapping.label_names))
    columns.append(request("history_action", "int32", f"what the user did, bits: {bits}", Kind.SEQUENCE))
    if mapping.history.time_columns or not (mapping.history.columns or is_order):
        columns.append(request(HISTORY_TS, "int64", "when, epoch milliseconds, before request_ts", Kind.SEQUENCE))
    if ids.user:
        columns.append(request("user_key", "string", "the log's user id"))
    if ids.request:
        columns.append(request("request_key", "string", "the log's request id"))
    mapped = {rule.name for rule in mapping.request_columns + mapping.item_columns}
    if "hour_of_day" not in mapped and not is_order:
        columns.append(request("hour_of_day", "int32", "hour of request_ts, UTC, 0 to 23"))
    columns += [feature(rule, Level.REQUEST) for rule in mapping.request_columns]
    if ids.item and not vocabulary:
        columns.append(Column(name="item_key", dtype="string", level=Level.ITEM, doc="the log's item id"))
    if mapping.are_urls:
        columns.append(Column(name=ITEM_URL, dtype="string", level=Level.ITEM, doc="the item's URL, as the log has it"))
    columns += [feature(rule, Level.ITEM) for rule in mapping.item_columns]
    if mapping.candidates and mapping.candidates.position:
        columns.append(Column(name="position", dtype="int32", level=Level.ITEM, doc="place in the list, from 0"))
    columns += [
        Column(
            name=label.name,
            dtype=label.dtype,
            level=Level.LABEL,
            nullable=True,
            doc=f"label {label.name}, null where unknown",
        )
        for label in mapping.labels
    ]
    return EngagementSchema(tuple(columns))


@dataclass(frozen=True, kw_only=True)
class _Histories:
    """Events of a partition, packed [T], and the W distinct windows that its R requests see."""

    item_T: np.ndarray
    action_T: np.ndarray
    ts_ms_T: np.ndarray | None
    window_start_W: np.ndarray
    window_length_W: np.ndarray
    window_of_request_R: np.ndarray
    history_end_R: np.ndarray
    num_leaking: int = 0


def emit_batches(
    frame: pl.DataFrame,
    mapping: LogMapping,
    schema: EngagementSchema,
    *,
    keys: ItemKeys | None,
    max_history: int,
    stride: int,
    count_leaking: Callable[[int], None] = lambda num_requests: None,
) -> Iterator[pa.RecordBatch]:
    """Deduplicated batches of a partition's requests (as `form_requests` orders them), each request whole in one.

    keys: of the items, if they are texts.  count_leaking: is told how many of the requests would have seen a row that
    had not arrived, were histories in the order of time.
    """
    request_id, user_id = frame["request_id"].to_numpy(), frame["user_id"].to_numpy()
    first_row_R = np.flatnonzero(np.diff(request_id, prepend=request_id[0] - 1) | np.diff(user_id, prepend=user_id[0]))
    fan_out_R = np.diff(np.append(first_row_R, len(request_id)))
    requests = frame[first_row_R]
    if mapping.history.columns:
        histories = _own_histories(requests, mapping, keys, max_history, stride)
    else:
        histories = _earlier_rows(frame, requests, mapping, max_history, stride)
    count_leaking(histories.num_leaking)
    lengths = histories.window_length_W[histories.window_of_request_R]
    cost = np.maximum(np.cumsum(fan_out_R) // BATCH_ROWS, np.cumsum(lengths * _TOKEN_BYTES) // BATCH_BYTES)
    for chosen in np.split(np.arange(len(first_row_R)), np.flatnonzero(np.diff(cost)) + 1):
        rows = frame[int(first_row_R[chosen[0]]) : int(first_row_R[chosen[-1]] + fan_out_R[chosen[-1]])]
        yield _batch(rows, chosen, fan_out_R[chosen], histories, schema)


def _batch(
    rows: pl.DataFrame, chosen: np.ndarray, fan_out: np.ndarray, histories: _Histories, schema: EngagementSchema
) -> pa.RecordBatch:
    used, window_of_request = np.unique(histories.window_of_request_R[chosen], return_inverse=True)
    starts, lengths = histories.window_start_W[used], histories.window_length_W[used]
    offsets = offsets_of(lengths)
    indices = pa.array(np.repeat(window_of_request, fan_out).astype(np.int32))

    def blobs(packed: np.ndarray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(
            indices, blobs_from_numpy(gather_windows(packed, starts, lengths), offsets)
        )

    made: dict[str, pa.Array] = {
        "request_ts": pa.array(rows["request_ts_us"].to_numpy()).cast(pa.timestamp("us", tz="UTC")),
        "history_end": pa.array(np.repeat(histories.history_end_R[chosen], fan_out)),
        "timeline_version": pa.array(np.ones(len(indices), np.int32)),
        "history_item_id": blobs(histories.item_T.astype(schema["history_item_id"].dtype)),
        "history_action": blobs(histories.action_T),
    }
    if histories.ts_ms_T is not None:
        made[HISTORY_TS] = blobs(histories.ts_ms_T)
    if "hour_of_day" not in rows.columns:
        made["hour_of_day"] = pa.array((rows["request_ts_us"].to_numpy() // 3_600_000_000 % 24).astype(np.int32))
    arrow = deduplicated_schema(schema)
    arrays = [
        made[field.name] if field.name in made else rows[field.name].rechunk().to_arrow().cast(field.type)
        for field in arrow
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow)


def _earlier_rows(
    frame: pl.DataFrame, requests: pl.DataFrame, mapping: LogMapping, max_history: int, stride: int
) -> _Histories:
    """Histories of the user's earlier rows: all, or those with a positive label."""
    bits = [(pl.col(name).fill_null(0) > 0).cast(pl.Int32) * (1 << bit) for bit, name in enumerate(mapping.label_names)]
    made = [(pl.col("ts_us") // 1000).alias("ts_ms"), pl.sum_horizontal(bits).alias("action")]
    arrived = [ARRIVED_US] if ARRIVED_US in frame.columns else []
    events = frame.select("user_id", "item_id", *made, "ts_us", *arrived, "file", "line")
    if mapping.history.events == "engaged":
        events = events.filter(pl.col("action") > 0)
    num_leaking = 0
    order = "ts_ms"
    if arrived:
        order = "arrived_ms"
        events = events.with_columns((pl.col(ARRIVED_US).fill_null(pl.col("ts_us")) // 1000).alias(order))
        by_time = events.sort("user_id", "ts_us", "file", "line", maintain_order=True)
        begin_R, end_R = _ends(by_time, requests, "ts_ms")
        start_R = begin_R + anchored_start(end_R, max_history, stride)
        num_leaking = _leaking(by_time[order].to_numpy(), start_R, begin_R + end_R, requests)
    events = events.sort("user_id", order, "ts_us", "file", "line", maintain_order=True)
    begin_R, end_R = _ends(events, requests, order)
    start_R = anchored_start(end_R, max_history, stride)
    windows = np.stack([begin_R + start_R, end_R - start_R])
    is_new = np.any(np.diff(windows, axis=1, prepend=windows[:, :1] - 1), axis=0)
    return _Histories(
        item_T=events["item_id"].to_numpy(),
        action_T=events["action"].to_numpy().astype(np.int32),
        ts_ms_T=events["ts_ms"].to_numpy(),
        window_start_W=windows[0, is_new],
        window_length_W=windows[1, is_new],
        window_of_request_R=np.cumsum(is_new) - 1,
        history_end_R=end_R,
        num_leaking=num_leaking,
    )


def _ends(events: pl.DataFrame, requests: pl.DataFrame, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the user of each request begins in the events, and how many of the user's are before the request.

    events: sorted by user and `order`, milliseconds.
    """
    # (user, time) of events and requests as one rising number each, so that one search finds all ends
    users, user_rank = np.unique(
        np.concatenate([events["user_id"].to_numpy(), requests["user_id"].to_numpy()]), return_inverse=True
    )
    times, time_rank = np.unique(
        np.concatenate([events[order].to_numpy(), requests["request_ts_us"].to_numpy() // 1000]), return_inverse=True
    )
    rank = user_rank.astype(np.int64) * len(times) + time_rank
    event_rank, request_rank = np.split(rank, [events.height])
    user_begin = np.searchsorted(user_rank[: events.height], np.arange(len(users)))
    begin_R = user_begin[user_rank[events.height :]]
    return begin_R, np.searchsorted(event_rank, request_rank) - begin_R


def _leaking(arrived_ms_T: np.ndarray, start_R: np.ndarray, end_R: np.ndarray, requests: pl.DataFrame) -> int:
    """How many requests have an event in their window that arrived at their time or later."""
    has = end_R > start_R
    if not has.any():
        return 0
    bounds = np.stack([start_R[has], end_R[has]], axis=1).ravel()
    latest_R = np.maximum.reduceat(np.append(arrived_ms_T, np.iinfo(np.int64).min), bounds)[::2]
    return int((latest_R >= requests["request_ts_us"].to_numpy()[has] // 1000).sum())


def _own_histories(
    requests: pl.DataFrame, mapping: LogMapping, keys: ItemKeys | None, max_history: int, stride: int
) -> _Histories:
    """Histories of the log's own column: every distinct text is read once."""
    names = [name for name in ("history", "history_times") if name in requests.columns]
    texts = requests.select(pl.struct(names).alias("text")).with_columns(
        pl.col("text").rank("dense").cast(pl.Int64).sub(1).alias("window")
    )
    distinct = texts.unique("window", keep="any").sort("window").unnest("text")
    lists = distinct.select(
        pl.when(pl.col(name) != "").then(pl.col(name)).str.split(LIST_MARK).alias(name) for name in names
    )
    length_W = lists["history"].list.len().fill_null(0).to_numpy().astype(np.int64)
    tokens = lists["history"].drop_nulls().explode()
    item_T = tokens.cast(pl.Int64).to_numpy() if keys is None else keys.ids(tokens)
    ts_ms_T = None
    if mapping.history.time_columns:
        ts_ms_T = lists["history_times"].drop_nulls().explode().cast(pl.Int64).to_numpy()
    start_W = anchored_start(length_W, max_history, stride)
    window_of_request_R = texts["window"].to_numpy()
    return _Histories(
        item_T=item_T,
        action_T=np.full(len(item_T), mapping.history.action, np.int32),
        ts_ms_T=ts_ms_T,
        window_start_W=offsets_of(length_W)[:-1] + start_W,
        window_length_W=length_W - start_W,
        window_of_request_R=window_of_request_R,
        history_end_R=length_W[window_of_request_R],
    )
