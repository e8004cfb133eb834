"""Items that are texts: dense ids of a vocabulary, or hashes, and nothing else differs between the two."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from pyiceberg.schema import Schema

import reqdedup as rd
from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string

MAPPING = {
    "user_id": "user",
    "request_id": "request",
    "time": {"column": "ts"},
    "candidates": {"column": "shown", "type": "string"},
    "labels": {"click": "clicks"},
    "history": {"column": "seen"},
}
NUMBERS = {**MAPPING, "candidates": {"column": "shown"}}
HASHED = {**MAPPING, "candidates": {"column": "shown", "type": "hash"}}
ODD = ["7", "07", "7.0", "N 1", "é", "e\u0301", "日本", "🙂", "NULLS", "x" * 5_000]


def write_log(path, *, num_requests=40, seed=0, items=tuple(ODD)):
    rng, lines = np.random.default_rng(seed), []
    for request in range(num_requests):
        shown = rng.choice(items, rng.integers(1, 5), replace=False).tolist()
        seen = None if request % 7 == 0 else rng.choice(items, rng.integers(0, 6)).tolist()
        row = {"user": request % 9, "request": 1_000 * seed + request, "ts": 1_700_000_000 + 60 * request}
        lines.append(json.dumps({**row, "shown": shown, "clicks": [0] * len(shown), "seen": seen}))
    path.write_text("\n".join(lines) + "\n")
    return path


def keyed(lake, name):
    """The rows of a table with keys in place of ids, in the order of keys."""
    table = lake.table(name)
    rows = table.to_arrow().to_pylist()
    ids = {row["item_id"] for row in rows} | {item for row in rows for item in row["history_item_id"]}
    if "item_key" in table.schema:
        key_of = {hash_string(item): item for item in ODD}
    else:
        key_of = dict(zip(ids, lake.items(name, list(ids))["item_key"].to_pylist(), strict=True))
    for row in rows:
        assert row.pop("item_key", key_of[row["item_id"]]) == key_of[row["item_id"]]
        row["item_id"] = key_of[row["item_id"]]
        row["history_item_id"] = [key_of[item] for item in row["history_item_id"]]
    return sorted(rows, key=lambda row: (row["request_id"], row["item_id"]))


@pytest.fixture
def lake(tmp_path):
    return rd.open(tmp_path / "lake")


def test_dense_and_hashed_tables_hold_the_same_rows_but_for_the_ids(lake, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    lake.ingest(log, "a.dense", mapping=MAPPING)
    lake.ingest(log, "b.hashed", mapping=HASHED)
    wanted = [json.loads(line) for line in log.read_text().splitlines()]
    rows = keyed(lake, "a.dense")
    assert rows == keyed(lake, "b.hashed")
    assert {row["request_id"]: row["history_item_id"] for row in rows} == {
        row["request"]: row["seen"] or [] for row in wanted
    }
    schema = lake.table("a.dense").schema
    assert "item_key" not in schema
    assert (schema["item_id"].vocabulary, schema["history_item_id"].vocabulary) == ("a.items", "a.items")
    assert schema["history_item_id"].dtype == "int32"
    ids = lake.items("a.dense")
    assert ids["item_id"].to_pylist() == list(range(len(ODD)))
    assert sorted(ids["item_key"].to_pylist()) == sorted(ODD)
    assert "b.items" not in lake.tables().rows["table"].to_pylist()
    assert lake.tables("a").rows.select(["table", "kind"]).to_pylist() == [
        {"table": "a.dense", "kind": "engagements"},
        {"table": "a.items", "kind": "items"},
        {"table": "a.rejected_engagements", "kind": "rejects"},
    ]


def test_ids_stay_when_a_log_comes_again_and_another_adds_to_them(lake, tmp_path):
    lake.ingest(write_log(tmp_path / "one.jsonl", items=ODD[:4]), "a.one", mapping=MAPPING)
    before = lake.items("a.one")
    lake.ingest(write_log(tmp_path / "two.jsonl", items=ODD, seed=1), "a.two", mapping=MAPPING)
    lake.ingest(tmp_path / "one.jsonl", "a.one", mapping=MAPPING)
    assert lake.items("a.one").slice(0, len(before)).equals(before)
    assert sorted(lake.items("a.one")["item_key"].to_pylist()) == sorted(ODD)


def test_the_most_frequent_item_has_the_smallest_id(lake, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    lake.ingest(log, "a.t", mapping=MAPPING)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    histories = {tuple(row["seen"]) for row in rows if row["seen"]}
    count = {item: sum(row["shown"].count(item) for row in rows) for item in ODD}
    count = {item: n + sum(history.count(item) for history in histories) for item, n in count.items()}
    assert lake.items("a.t")["item_key"].to_pylist() == sorted(ODD, key=lambda item: (-count[item], item))


def test_a_table_of_hashes_stays_one_until_it_is_replaced(lake, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    lake.ingest(log, "a.t", mapping=HASHED)
    lake.ingest(log, "a.t", mapping=MAPPING)
    assert lake.table("a.t").schema["item_id"].vocabulary == ""
    assert set(lake.table("a.t").to_arrow()["item_id"].to_pylist()) == {hash_string(item) for item in ODD}
    assert "a.items" not in lake.tables().rows["table"].to_pylist()
    with pytest.raises(ValueError, match=re.escape("a.t: its items' keys are in its column item_key")):
        lake.items("a.t")
    lake.ingest(log, "a.t", mapping=MAPPING, replace=True)
    assert lake.table("a.t").schema["item_id"].vocabulary == "a.items"
    with pytest.raises(ValueError, match="vocabulary of column item_id"):
        lake.ingest(log, "a.t", mapping=HASHED)
    assert keyed(lake, "a.t")


def test_a_killed_ingest_leaves_keys_without_rows_and_no_row_without_key(lake, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    program = f"""
import os, reqdedup as rd
from reqdedup.storage.iceberg.commit import StagedFiles
StagedFiles.commit = lambda *arguments, **options: os._exit(9)
rd.open({str(tmp_path / "lake")!r}).ingest({str(log)!r}, "a.t", mapping={MAPPING!r})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    left = lake.items("a.t")
    assert sorted(left["item_key"].to_pylist()) == sorted(ODD)
    assert lake.table("a.t").source.num_rows == 0
    lake.ingest(log, "a.t", mapping=MAPPING)
    assert lake.items("a.t").equals(left)
    assert keyed(lake, "a.t")


def test_a_log_of_numbers_has_no_vocabulary(lake, tmp_path):
    lake.ingest(write_log(tmp_path / "log.jsonl", items=(3, 5, 8, 13, 21)), "a.t", mapping=NUMBERS)
    assert lake.table("a.t").schema["item_id"].vocabulary == ""
    with pytest.raises(ValueError, match=re.escape("a.t: its items' ids are those of the log")):
        lake.items("a.t")


def test_a_name_that_is_taken_is_refused_before_anything_is_written(lake, tmp_path):
    log = write_log(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match="a name other than items required"):
        lake.ingest(log, "a.items", mapping=MAPPING)
    lake.make().create_namespace("a")
    lake.make().create_table("a.items", Schema())
    with pytest.raises(ValueError, match=r"a\.items: a table of items"):
        lake.ingest(log, "a.t", mapping=MAPPING)
    assert lake.tables().rows["table"].to_pylist() == ["a.items"]


def test_a_log_read_without_a_table_has_hashes(tmp_path):
    log = read_log(write_log(tmp_path / "log.jsonl"), mapping=MAPPING)
    assert "item_key" in log.schema
    assert {row for batch in log for row in batch.column("item_id").to_pylist()} == {hash_string(one) for one in ODD}


def test_lengths_of_histories_are_counted_whatever_the_width_of_ids(lake, tmp_path):
    log, counts = write_log(tmp_path / "log.jsonl"), []
    feature = rd.storage.recent_event_counts(60)
    for name, mapping in (("a.dense", MAPPING), ("b.hashed", HASHED)):
        lake.ingest(log, name, mapping=mapping, num_buckets=2)
        table = lake.table(name)
        table.feature(f"{name}_features", feature.column, feature)
        rows = table.join(f"{name}_features").to_arrow(["history_item_id", feature.name]).to_pylist()
        assert [row[feature.name] for row in rows] == [len(row["history_item_id"]) for row in rows]
        counts.append(len(rows))
    assert counts[0] == counts[1] > 0
