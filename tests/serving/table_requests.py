"""Requests of a table as a caller would send them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from reqdedup.sequences.store import Window
from reqdedup.serving.requests import RankRequest


def plain_requests(source, transforms):
    """(user_id, request_id) -> a request of plain values, straight from the table's rows."""
    requests: dict[tuple[int, int], dict] = {}
    sequences = {column.name: column for column in transforms.history_columns}
    for rows in source.batches():
        for row in rows.to_pylist():
            values = requests.setdefault((row["user_id"], row["request_id"]), {**row, "candidates": []})
            values["candidates"].append(
                {name: row[name] for name in ("item_id", *(c.name for c in transforms.item_columns))}
            )
    for (user_id, request_id), row in requests.items():
        events = {n.removeprefix("history_"): np.frombuffer(row[n], c.dtype) for n, c in sequences.items()}
        end, length = row["history_end"], len(events["item_id"])
        request = {column.name: _plain(row[column.name], column) for column in transforms.request_columns}
        columns = {name: [one[name] for one in row["candidates"]] for name in row["candidates"][0]}
        window = Window(events, end - length, end, row["timeline_version"])
        yield request_id, RankRequest(user_id=user_id, candidates=columns, request=request, history=window)


def _plain(value, column):
    if column.dtype == "timestamp":
        return (value - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
    return np.frombuffer(value, column.dtype) if column.width else value
