import json
import os
import random
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.dedup.encoding import expand_to_lists
from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string
from reqdedup.schema import Level

EVENTS = {
    "user_id": "user",
    "item_id": "item",
    "time": {"column": "ts"},
    "labels": {"click": "click", "like": "like"},
    "session_gap_s": 100,
}
BASE_S = 1_700_000_000


def random_events(seed, num_rows=400, num_users=6, num_items=30, span_s=6_000):
    rng = random.Random(seed)
    return [
        (rng.randrange(num_users), rng.randrange(num_items), BASE_S + rng.randrange(span_s), rng.random() < 0.5, rng.random() < 0.2)
        for _ in range(num_rows)
    ]  # fmt: skip


def write_csv(path, events):
    lines = [f"{u},{i},{ts},{int(click)},{int(like)}" for u, i, ts, click, like in events]
    path.write_text("\n".join(["user,item,ts,click,like", *lines]) + "\n")
    return path


def expected_rows(events, *, gap_s, max_history, stride, engaged_only):
    """The definition, in loops: sessions by time, the first of a repeated item, histories of earlier events."""
    rows, duplicates = [], 0
    for user in sorted({event[0] for event in events}):
        mine = sorted(
            ((event, line) for line, event in enumerate(events) if event[0] == user), key=lambda e: (e[0][2], e[1])
        )
        sessions, last = [], None
        for (_, item, ts, click, like), _line in mine:
            if last is None or ts - last > gap_s:
                sessions.append({})
            last = ts
            if item in sessions[-1]:
                duplicates += 1
            else:
                sessions[-1][item] = (ts, click, like)
        timeline = sorted((ts, item, click, like) for s in sessions for item, (ts, click, like) in s.items())
        for session in sessions:
            start_ts = min(ts for ts, _, _ in session.values())
            before = [
                (item, click + 2 * like, ts * 1000)
                for ts, item, click, like in timeline
                if ts < start_ts and (click or like or not engaged_only)
            ]
            window = before[stride * -(-max(0, len(before) - max_history) // stride) :]
            for item, (_, click, like) in session.items():
                rows.append(
                    (
                        user,
                        item,
                        start_ts,
                        int(click),
                        int(like),
                        len(before),
                        sorted(window, key=lambda e: (e[2], e[0])),
                    )
                )
    return sorted(rows), duplicates


@pytest.mark.parametrize("events_kept", ["engaged", "all"])
@pytest.mark.parametrize("seed", range(4))
def test_sessions_and_histories_agree_with_plain_loops(seed, events_kept, tmp_path, read):
    events = random_events(seed)
    path = write_csv(tmp_path / "log.csv", events)
    found = read(path, mapping={**EVENTS, "history": {"events": events_kept}}, max_history=12, stride=5)
    wanted, duplicates = expected_rows(
        events, gap_s=100, max_history=12, stride=5, engaged_only=events_kept == "engaged"
    )
    rows = []
    for row in found.rows:
        window = list(zip(row["history_item_id"], row["history_action"], row["history_ts"]))
        assert [ts for _, _, ts in window] == sorted(ts for _, _, ts in window)
        assert all(ts < row["request_ts"].timestamp() * 1000 for _, _, ts in window)
        rows.append(
            (row["user_id"], row["item_id"], round(row["request_ts"].timestamp()), row["click"], row["like"],
             row["history_end"], sorted(window, key=lambda e: (e[2], e[0])))
        )  # fmt: skip
    # events of one second may be cut in either order, so windows are compared where no cut lies between equal times
    strip = lambda entry: entry[:6]  # noqa: E731
    assert sorted(map(strip, rows)) == sorted(map(strip, wanted))
    assert found.reader.counts.rejected.get("duplicate", 0) == duplicates
    agreeing = sum(a[6] == b[6] for a, b in zip(sorted(rows), wanted))
    assert agreeing > 0.9 * len(rows)
    assert any(row["history_end"] > 12 for row in found.rows)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_rows=st.integers(1, 120), num_users=st.integers(1, 4), span_s=st.integers(1, 40_000)
)
def test_partitions_on_disk_change_nothing(tmp_path_factory, seed, num_rows, num_users, span_s):
    folder = tmp_path_factory.mktemp("log")
    path = write_csv(folder / "log.csv", random_events(seed, num_rows, num_users, 9, span_s))

    def rows_of(**options):
        reader = read_log(path, mapping=EVENTS, max_history=4, max_rejects=1, **options)
        fat = [expand_to_lists(batch, reader.schema) for batch in reader]
        rows = [json.dumps(row, sort_keys=True, default=str) for row in pa.Table.from_batches(fat).to_pylist()]
        return sorted(rows), sorted(map(str, reader.rejects.to_pylist()))

    assert rows_of() == rows_of(partition_bytes=200, block_bytes=300, spill_folder=folder)
    assert sorted(file.name for file in folder.iterdir()) == ["log.csv"]


@pytest.mark.slow
def test_requests_of_several_users_are_settled_across_partitions(tmp_path):
    """Every request id is used by several users; its owner is the one with most rows, ties: the one seen first."""
    rng = random.Random(7)
    events = [(rng.randrange(9), item, rng.randrange(40), BASE_S + item) for item in range(600)]
    path = tmp_path / "log.csv"
    path.write_text("user,item,request,ts,click,like\n" + "".join(f"{u},{i},{r},{ts},1,0\n" for u, i, r, ts in events))
    owners = {}
    for request in range(40):
        users = [user for user, _, r, _ in events if r == request]
        owners[request] = max(users, key=lambda user: (users.count(user), -users.index(user)))
    for options in ({}, {"partition_bytes": 500, "block_bytes": 700}):
        reader = read_log(path, mapping={**EVENTS, "request_id": "request"}, max_rejects=1, **options)
        found = [row for batch in reader for row in batch.select(["user_id", "request_id", "item_id"]).to_pylist()]
        assert sorted((row["user_id"], row["item_id"], row["request_id"]) for row in found) == sorted(
            (user, item, request) for user, item, request, _ in events if owners[request] == user
        )
        assert reader.counts.rejected == {"two_users": 600 - len(found)}


def test_requests_come_out_whole_and_in_order_of_user_and_time(tmp_path):
    reader = read_log(write_csv(tmp_path / "log.csv", random_events(9)), mapping=EVENTS)
    keys = [
        (row["user_id"], row["request_ts"], row["request_id"])
        for batch in reader
        for row in batch.select(["user_id", "request_ts", "request_id"]).to_pylist()
    ]
    assert keys == sorted(keys)
    by_user = {}
    for user, ts, request in keys:
        by_user.setdefault(user, []).append((ts, request))
    assert all(
        [request for _, request in pairs] == sorted(request for _, request in pairs) for pairs in by_user.values()
    )


@pytest.mark.slow
def test_every_format_gives_the_same_rows(tmp_path, read):
    events = random_events(3, num_rows=120)
    frame = pl.DataFrame(events, schema=["user", "item", "ts", "click", "like"], orient="row")
    write_csv(tmp_path / "log.csv", events)
    frame.with_columns(pl.col("click", "like").cast(pl.Int8)).write_csv(tmp_path / "log.tsv", separator="\t")
    frame.write_ndjson(tmp_path / "log.jsonl")
    frame.with_columns(pl.from_epoch("ts", time_unit="s")).write_parquet(tmp_path / "log.parquet")
    wanted = read(tmp_path / "log.csv", mapping=EVENTS)
    for name in ("log.tsv", "log.jsonl", "log.parquet"):
        assert read(tmp_path / name, mapping=EVENTS).rows == wanted.rows, name


def test_a_log_split_into_files_reads_like_one(tmp_path, read):
    events = random_events(5)
    whole = read(write_csv(tmp_path / "log.csv", events), mapping=EVENTS).rows
    (tmp_path / "parts").mkdir()
    for part in range(4):
        write_csv(tmp_path / "parts" / f"{part}.csv", events[part * 100 : (part + 1) * 100])
    found = read(tmp_path / "parts", mapping=EVENTS)
    assert found.rows == whole
    assert found.reader.counts.files == 4


CANDIDATES = {
    "user_id": "user",
    "time": {"column": "at"},
    "candidates": {"column": "items", "position": True},
    "labels": {"click": "clicks"},
    "item_columns": {"price": {"column": "prices", "dtype": "float32"}},
    "request_columns": {"device": "string"},
    "history": {"column": "past", "time_column": "past_ms"},
}
ONE_ROW_PER_REQUEST = [
    {"user": "a", "at": "2024-05-01T10:00:00Z", "items": ["x", "y"], "clicks": [1, 0], "prices": [1.5, None],
     "device": "tv", "past": ["p", "q", "p"], "past_ms": [1_000, 3_000, 2_000]},
    {"user": "a", "at": "2024-05-01T10:00:00Z", "items": ["x"], "clicks": [0], "prices": [2.5],
     "device": "tv", "past": [], "past_ms": []},
    {"user": "b", "at": "2024-05-01T12:00:00+02:00", "items": ["z"], "clicks": [None], "prices": [1.0],
     "device": None, "past": ["p"], "past_ms": [1_714_557_600_000]},
    {"user": "c", "at": "2024-05-01T10:00:00Z", "items": ["z", "w"], "clicks": [1], "prices": [1.0, 2.0],
     "device": "pc", "past": ["p"], "past_ms": [5]},
    {"user": "d", "at": "2024-05-01T10:00:00Z", "items": ["z", "w", "z"], "clicks": [1, 0, 1], "prices": [1.0, 2.0, 3.0],
     "device": "pc", "past": ["p", "q"], "past_ms": [5]},
    {"user": "e", "at": "2024-05-01T10:00:00Z", "items": ["z", "w", "z"], "clicks": [1, 0, 1], "prices": [1.0, 2.0, 3.0],
     "device": "pc", "past": ["p"], "past_ms": [5]},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_one_row_per_request_with_lists(kind, tmp_path, read):
    path = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ONE_ROW_PER_REQUEST))
    else:
        pl.DataFrame(ONE_ROW_PER_REQUEST).write_parquet(path)
    found = read(path, mapping=CANDIDATES)
    assert [(reject["reason"], reject["line"]) for reject in found.rejects] == [
        ("history", 3), ("candidates", 4), ("history", 5), ("duplicate", 6)
    ]  # fmt: skip
    names = ("user_key", "item_key", "click", "price", "position", "device", "history_end")
    assert sorted(tuple(row[name] for name in names) for row in found.rows) == [
        ("a", "x", 0, 2.5, 0, "tv", 0),
        ("a", "x", 1, 1.5, 0, "tv", 3),
        ("a", "y", 0, None, 1, "tv", 3),
        ("e", "w", 0, 2.0, 1, "pc", 1),
        ("e", "z", 1, 1.0, 0, "pc", 1),
    ]
    first = next(row for row in found.rows if row["history_end"] == 3)
    assert first["history_item_id"] == [hash_string(item) for item in "pqp"]
    assert first["history_ts"] == [1_000, 3_000, 2_000]
    assert found.reader.counts.requests == 3  # two lines of one user in one second are two requests


def test_long_own_histories_are_cut_at_anchors(tmp_path, read):
    lines = [f"{n}\tU{n % 3}\t11/11/2019 9:05:58 AM\t{' '.join(f'N{k}' for k in range(n))}\tN1-0" for n in range(40)]
    (tmp_path / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    found = read(tmp_path, preset="mind", max_history=10, stride=4)
    for row in found.rows:
        end = row["request_id"]
        assert row["history_end"] == end
        start = 4 * -(-max(0, end - 10) // 4)
        assert row["history_item_id"] == [hash_string(f"N{k}") for k in range(start, end)]


def test_the_schema_is_known_before_reading_and_says_what_is_what(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps(ONE_ROW_PER_REQUEST[0]))
    schema = read_log(tmp_path, mapping=CANDIDATES).schema
    assert schema["user_key"].level is schema["device"].level is schema["hour_of_day"].level is Level.REQUEST
    assert schema["item_key"].level is schema["price"].level is schema["position"].level is Level.ITEM
    assert [column.name for column in schema.labels] == ["click"]
    assert all(column.doc for column in schema.columns)


def test_one_bad_id_does_not_turn_a_log_of_integers_into_strings(tmp_path, read):
    (tmp_path / "log.csv").write_text(
        f"user,item,ts,click,like\nx7,1,{BASE_S},1,0\n7,1,{BASE_S},1,0\n8,2,{BASE_S},1,0\n"
    )
    found = read(tmp_path / "log.csv", mapping=EVENTS)
    assert [row["user_id"] for row in found.rows] == [7, 8]
    assert found.reasons == [("id", 2)]
    as_text = read(tmp_path / "log.csv", mapping={**EVENTS, "user_id": {"column": "user", "type": "string"}})
    assert {row["user_key"] for row in as_text.rows} == {"x7", "7", "8"}


def test_unicode_ids_survive(tmp_path, read):
    users = ["ä", "日本", "😀 x", "a:b"]
    (tmp_path / "log.csv").write_text(
        "user,item,ts,click,like\n" + "".join(f"{user},{user}!,{BASE_S},1,0\n" for user in users), encoding="utf-8"
    )
    found = read(tmp_path / "log.csv", mapping=EVENTS)
    assert {row["user_key"]: row["user_id"] for row in found.rows} == {user: hash_string(user) for user in users}
    assert {row["item_key"] for row in found.rows} == {f"{user}!" for user in users}


@pytest.mark.slow
def test_times_are_read_in_their_zone_and_unit(tmp_path, read):
    def request_ts(text, **time):
        path = tmp_path / "log.csv"
        path.write_text(f'user,item,ts,click,like\n1,2,"{text}",1,0\n')
        row = read(path, mapping={**EVENTS, "time": {"column": "ts", **time}}).rows[0]
        return row["request_ts"].isoformat().removesuffix("+00:00")

    wanted = "2024-07-01T10:30:00"
    for text, options in [
        ("1719829800", {}),
        ("1719829800.0", {}),
        ("1719829800000", {"unit": "ms"}),
        ("1719829800000000", {"unit": "us"}),
        ("1719829800000000000", {"unit": "ns"}),
        ("2024-07-01T10:30:00Z", {}),
        ("2024-07-01T12:30:00+02:00", {}),
        ("2024-07-01 12:30:00", {"zone": "Europe/Berlin"}),
        ("1/7/2024, 10:30", {"format": "%d/%m/%Y, %H:%M"}),
        ("7/1/2024 10:30:00 AM", {"format": ["%d.%m.%Y", "%m/%d/%Y %I:%M:%S %p"]}),
    ]:
        assert request_ts(text, **options) == wanted, text


def test_a_zone_or_pattern_that_is_none_is_refused_before_reading(tmp_path):
    path = write_csv(tmp_path / "log.csv", random_events(1))
    with pytest.raises(ValueError, match="zone: an IANA time zone required, found 'Mars/Olympus'"):
        read_log(path, mapping={**EVENTS, "time": {"column": "ts", "zone": "Mars/Olympus"}})
    for pattern in ("%Q", "%H:%M"):
        with pytest.raises(ValueError, match=f"with a date required, found '{pattern}'"):
            read_log(path, mapping={**EVENTS, "time": {"column": "ts", "format": pattern}})


def test_reading_twice_gives_the_same_and_fresh_counts(tmp_path):
    reader = read_log(write_csv(tmp_path / "log.csv", [*random_events(1), ("x", 1, BASE_S, 1, 1)]), mapping=EVENTS)
    first = [batch.to_pydict() for batch in reader]
    counts = reader.counts
    assert [batch.to_pydict() for batch in reader] == first
    assert reader.counts == counts
    assert reader.rejects.num_rows == 1 + counts.rejected.get("duplicate", 0)


def test_progress_is_told_while_reading(tmp_path):
    seen = []
    reader = read_log(
        write_csv(tmp_path / "log.csv", random_events(1)),
        mapping=EVENTS,
        progress=lambda c: seen.append((c.rows_read, c.rows)),
    )
    list(reader)
    assert seen[0] == (400, 0)
    assert seen[-1] == (400, reader.counts.rows)


@pytest.mark.soak
def test_memory_does_not_grow_with_the_log(tmp_path):
    """Peak of a reading's own process, five times the rows with the same bytes per block and partition."""
    program = (
        "import resource, sys\n"
        "from reqdedup.logs import read_log\n"
        f"mapping = {EVENTS!r}\n"
        "for batch in read_log(sys.argv[1], mapping=mapping, partition_bytes=2**19, block_bytes=2**18): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def peak_kib(num_rows):
        rng = np.random.default_rng(0)
        columns = {
            "user": rng.integers(0, 20_000, num_rows),
            "item": rng.integers(0, 20_000, num_rows),
            "ts": BASE_S + rng.integers(0, 100_000, num_rows),
            "click": rng.integers(0, 2, num_rows),
            "like": rng.integers(0, 2, num_rows),
        }
        path = tmp_path / f"{num_rows}.csv"
        pl.DataFrame(columns).write_csv(path)
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert peak_kib(300_000) < 1.2 * peak_kib(60_000)


def test_a_reading_that_is_left_early_leaves_no_files(tmp_path):
    path = write_csv(tmp_path / "log.csv", random_events(2))
    batches = iter(read_log(path, mapping=EVENTS, partition_bytes=1_000, spill_folder=tmp_path))
    assert next(batches).num_rows > 0
    assert len(list(tmp_path.iterdir())) == 2
    batches.close()
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_rows_tell_how_many_a_log_has(tmp_path):
    rows = "".join(f"{user}\t{100 + user} {200 + user} {300 + user}\t{1_700_000_000 + user}\n" for user in range(4_000))
    log = tmp_path / "shown.tsv"
    log.write_text("u\ti\tt\n" + rows)
    mapping = {
        "user_id": "u",
        "candidates": {"column": "i", "separator": " "},
        "time": {"column": "t"},
        "labels": {"shown": {"value": 1}},
    }
    size = log.stat().st_size
    assert (read_log(log, mapping=mapping).num_bytes, read_log(log, mapping=mapping).num_rows) == (size, 12_000)
    os.truncate(log, 3 * 2**30)  # the rest is a hole, which nobody reads
    assert read_log(log, mapping=mapping).num_rows == pytest.approx(12_000 * 3 * 2**30 / size, rel=0.01)
