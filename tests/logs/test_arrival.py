"""Histories of a log that says when rows arrived: what had arrived, and how many requests time alone would mislead."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from reqdedup.dedup.encoding import numpy_from_blobs
from reqdedup.logs import read_log
from reqdedup.logs.mapping import HistoryRule

MAPPING = {
    "user_id": "user",
    "item_id": "item",
    "request_id": "request",
    "time": {"column": "ts", "unit": "ms"},
    "labels": {"click": {"column": "click"}},
    "history": {"events": "all", "arrival_column": "received"},
}
MAX_HISTORY = 4


def make_log(path: Path, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(60):
        ts = 1_700_000_000_000 + int(rng.integers(0, 40)) * 1000
        late = int(rng.choice([0, 0, 1, 5_000, 30_000]))
        received = None if rng.random() < 0.1 else ts + late
        rows.append(
            {
                "user": int(rng.integers(1, 4)),
                "item": number,
                "request": number,
                "ts": ts,
                "click": 1,
                "received": received,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def by_loops(rows: list[dict]) -> tuple[dict[int, list[int]], int]:
    """Request -> its history; and how many would hold a row that had not arrived, in the order of time."""
    found, num_leaking = {}, 0
    for request in rows:
        arrived = [
            (row["ts"] if row["received"] is None else row["received"], row["ts"], place, row["item"])
            for place, row in enumerate(rows)
            if row["user"] == request["user"]
        ]
        seen = sorted(one for one in arrived if one[0] < request["ts"])
        end = len(seen)
        start = -(-max(0, end - MAX_HISTORY) // 1)
        found[request["request"]] = [item for *_, item in seen[start:]]
        by_time = sorted((ts, place, when) for when, ts, place, _ in arrived if ts < request["ts"])
        num_leaking += any(when >= request["ts"] for *_, when in by_time[-MAX_HISTORY:])
    return found, num_leaking


@pytest.mark.parametrize("seed", range(4))
def test_a_history_holds_what_had_arrived_and_the_rest_is_counted(tmp_path: Path, seed: int):
    rows = make_log(tmp_path / "log.jsonl", seed)
    reader = read_log(tmp_path / "log.jsonl", mapping=MAPPING, max_history=MAX_HISTORY, stride=1)
    required, num_leaking = by_loops(rows)
    found = {}
    for batch in reader:
        column = batch.column("history_item_id")
        values, offsets = numpy_from_blobs(column.dictionary, "int64")
        for request, code in zip(batch.column("request_id").to_pylist(), column.indices.to_pylist()):
            found[request] = values[offsets[code] : offsets[code + 1]].tolist()
    assert found == required
    assert reader.counts.leaking == num_leaking > 0


def test_a_time_of_arrival_that_cannot_be_read_is_rejected(tmp_path: Path):
    rows = [
        {"user": 1, "item": 1, "request": 1, "ts": 1_700_000_000_000, "click": 1, "received": "soon"},
        {"user": 1, "item": 1, "request": 2, "ts": 1_700_000_000_000, "click": 1, "received": "1700000000000"},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = read_log(tmp_path / "log.jsonl", mapping=MAPPING, max_rejects=1)
    assert sum(batch.num_rows for batch in reader) == 1
    assert reader.rejects.column("detail").to_pylist() == ["time of arrival soon cannot be read"]


def test_histories_of_the_log_itself_have_no_arrival():
    with pytest.raises(ValueError, match="arrival_column only where histories are made of earlier rows"):
        HistoryRule(columns=("history",), arrival_columns=("received",))
