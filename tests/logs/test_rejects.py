import gzip
import os
import random

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.logs import LogError, read_log
from reqdedup.logs.checks import REASONS

MAPPING = {
    "user_id": "user",
    "item_id": "item",
    "request_id": "request",
    "time": {"column": "ts", "latest": "2026-01-01"},
    "labels": {"click": "click", "like": {"column": "stars", "at_least": 4, "range": [1, 5]}},
    "item_columns": {"price": "float32"},
    "request_columns": {"device": "int32"},
}
HEADER = "user,item,request,ts,click,stars,price,device"
GOOD = "1,10,100,1700000000,1,5,9.5,2"


def write(path, *lines, end="\n"):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in (HEADER, *lines)) + end.encode()
    )
    return path


BAD_LINES = {
    "null user": (",11,100,1700000000,1,5,9.5,2", "null_id"),
    "null item": ("1,NULL,100,1700000000,1,5,9.5,2", "null_id"),
    "null request": ("1,11,\\N,1700000000,1,5,9.5,2", "null_id"),
    "user no integer": ("u1,11,100,1700000000,1,5,9.5,2", "id"),
    "item no integer": ("1,1.5e3x,100,1700000000,1,5,9.5,2", "id"),
    "item too large": ("1,99999999999999999999,100,1700000000,1,5,9.5,2", "id"),
    "no time": ("1,11,100,,1,5,9.5,2", "time"),
    "unparsable time": ("1,11,100,yesterday,1,5,9.5,2", "time"),
    "time in milliseconds": ("1,11,100,1700000000000,1,5,9.5,2", "absurd_time"),
    "time zero": ("1,11,100,0,1,5,9.5,2", "absurd_time"),
    "time negative": ("1,11,100,-5,1,5,9.5,2", "absurd_time"),
    "time huge": ("1,11,100,9e300,1,5,9.5,2", "absurd_time"),
    "time not a number": ("1,11,100,inf,1,5,9.5,2", "absurd_time"),
    "label two": ("1,11,100,1700000000,2,5,9.5,2", "label"),
    "label negative": ("1,11,100,1700000000,-1,5,9.5,2", "label"),
    "label fraction": ("1,11,100,1700000000,0.5,5,9.5,2", "label"),
    "label word": ("1,11,100,1700000000,maybe,5,9.5,2", "label"),
    "label infinite": ("1,11,100,1700000000,1,inf,9.5,2", "label"),
    "stars six": ("1,11,100,1700000000,1,6,9.5,2", "label"),
    "price word": ("1,11,100,1700000000,1,5,cheap,2", "value"),
    "device too large": ("1,11,100,1700000000,1,5,9.5,3000000000", "value"),
    "too few fields": ("1,11,100,1700000000,1,5,9.5", "fields"),
    "too many fields": ("1,11,100,1700000000,1,5,9.5,2,3", "fields"),
    "unbalanced quote": ('1,11,100,1700000000,1,5,"9.5,2', "fields"),
    "latin 1": ("1,11,100,1700000000,1,5,9.5,caf\xe9".encode("latin-1"), "encoding"),
    "the same item twice": (GOOD, "duplicate"),
    "another device": ("1,11,100,1700000000,1,5,9.5,3", "request_value"),
    "another user": ("2,11,100,1700000000,1,5,9.5,2", "two_users"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_rejected_with_its_place_and_costs_no_good_row(case, tmp_path, read):
    line, reason = BAD_LINES[case]
    good = [GOOD, "1,12,100,1700000001,0,3,1.5,2", line, "1,13,100,1700000002,,,,2", "3,10,101,1700000003,0,4,1,"]
    found = read(write(tmp_path / "log.csv", *good), mapping=MAPPING)
    assert found.reasons == [(reason, 4)]
    assert found.rejects[0]["file"] == "log.csv"
    assert reason in REASONS
    if reason not in ("duplicate", "two_users", "request_value"):
        wanted = line if isinstance(line, str) else line.decode(errors="backslashreplace")
        assert found.rejects[0]["raw"] == wanted
    if reason not in ("encoding", "null_id"):
        assert found.rejects[0]["detail"]
    assert sorted((row["user_id"], row["item_id"], row["click"], row["like"]) for row in found.rows) == [
        (1, 10, 1, 1), (1, 12, 0, 0), (1, 13, None, None), (3, 10, 0, 1)
    ]  # fmt: skip


@pytest.mark.slow
def test_many_bad_lines_are_each_counted_once_and_strict_reading_lists_them(tmp_path, read):
    rng = random.Random(0)
    wanted = {}
    lines = []
    for number in range(2, 1_502):
        if rng.random() < 0.3:
            case = rng.choice(
                [c for c, (_, r) in BAD_LINES.items() if r not in ("duplicate", "two_users", "request_value")]
            )
            line, reason = BAD_LINES[case]
            wanted[number] = reason
            lines.append(line)
        else:
            lines.append(f"{number % 50},{number},{number % 50},17000000{number % 50:02d},1,5,1,2")
    path = write(tmp_path / "log.csv", *lines)
    found = read(path, mapping=MAPPING)
    assert {line: reason for reason, line in found.reasons} == wanted
    assert len(found.rejects) == len(wanted)
    assert len(found.rows) == 1_500 - len(wanted)
    with pytest.raises(LogError, match=r"(?s)strict reading requires.*label \(\d+\)") as failure:
        list(read_log(path, mapping=MAPPING, strict=True, max_rejects=0.5))
    assert "log.csv:" in str(failure.value)
    assert "without strict" in str(failure.value)


def test_strict_reading_of_a_clean_log_passes(tmp_path, read):
    assert len(read(write(tmp_path / "log.csv", GOOD), mapping=MAPPING, strict=True).rows) == 1


def test_a_request_belongs_to_the_user_with_most_of_its_rows(tmp_path, read):
    lines = ["9,1,100,1700000000,1,5,1,2"] + [f"1,{item},100,1700000000,1,5,1,2" for item in range(10, 13)]
    found = read(write(tmp_path / "log.csv", *lines), mapping=MAPPING)
    assert {row["user_id"] for row in found.rows} == {1}
    assert found.reasons == [("two_users", 2)]
    scoped = read(tmp_path / "log.csv", mapping={**MAPPING, "request_scope": "user"})
    assert scoped.reader.counts.requests == 2
    assert scoped.rejects == []
    assert {row["request_key"] for row in scoped.rows} == {"100"}


def test_a_request_keeps_the_values_that_most_of_its_rows_have(tmp_path, read):
    lines = ["1,9,100,1700000000,1,5,1,7"] + [f"1,{item},100,1700000000,1,5,1,2" for item in range(10, 13)]
    found = read(write(tmp_path / "log.csv", *lines), mapping=MAPPING)
    assert [(row["item_id"], row["device"]) for row in found.rows] == [(10, 2), (11, 2), (12, 2)]
    assert found.reasons == [("request_value", 2)]
    assert "device is 7, 2 on most rows" in found.rejects[0]["detail"]


def test_a_duplicate_names_the_place_of_the_row_that_stays(tmp_path, read):
    again = GOOD.replace(",1700000000,", ",1700000001,")
    write(tmp_path / "a.csv", "3,10,101,1700000003,0,4,1,", GOOD, "1,12,100,1700000001,0,3,1.5,2", again)
    write(tmp_path / "b.csv", again)
    found = read(tmp_path, mapping=MAPPING)
    assert found.reasons == [("duplicate", 5), ("duplicate", 2)]
    assert found.rejects[0]["detail"].endswith("stands on line 3 already")
    assert found.rejects[1]["detail"].endswith("stands on line 3 of a.csv already")


def test_the_sign_of_zero_costs_no_row_of_a_request(tmp_path, read):
    mapping = {**MAPPING, "request_columns": {"device": "float64"}}
    lines = [f"1,{item},100,1700000000,1,5,1,{zero}" for item, zero in ((10, "0.0"), (11, "-0.0"), (12, "-0"))]
    found = read(write(tmp_path / "log.csv", *lines), mapping=mapping)
    assert [repr(row["device"]) for row in found.rows] == ["0.0"] * 3
    assert found.reasons == []


def test_a_cut_last_line_is_truncated(tmp_path, read):
    found = read(write(tmp_path / "log.csv", GOOD, "1,11,100,17000", end=""), mapping=MAPPING)
    assert found.reasons == [("truncated", 3)]
    assert len(found.rows) == 1


def test_good_files_survive_unreadable_ones(tmp_path, read):
    write(tmp_path / "b.csv", GOOD)
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "c.csv").write_text("who,what\n1,2\n")
    (tmp_path / "d.csv").write_bytes(f"{HEADER}\n{GOOD}\n".encode("utf-16"))
    (tmp_path / "e.csv").write_text(HEADER + "\n")
    (tmp_path / "f.csv").write_bytes(b"\x00\x01\x02\x00" * 100)
    (tmp_path / "g.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    found = read(tmp_path, mapping=MAPPING)
    assert len(found.rows) == 1
    assert [(reject["file"], reject["reason"]) for reject in found.rejects] == [
        ("a.csv", "empty_file"), ("c.csv", "missing_columns"), ("d.csv", "unreadable"), ("e.csv", "empty_file"),
        ("f.csv", "unreadable"), ("g.parquet", "unreadable"),
    ]  # fmt: skip
    missing = found.rejects[1]["detail"]
    assert "user" in missing
    assert "found 'who,what'" in missing
    assert "UTF-16" in found.rejects[2]["detail"]


def test_a_file_whose_name_is_not_utf8_costs_itself(tmp_path, read):
    write(tmp_path / "b.csv", GOOD)
    name = os.fsencode(tmp_path) + b"/a\xff.csv"
    with open(name, "wb") as file:
        file.write(f"{HEADER}\n{GOOD}\n".encode())
    found = read(tmp_path, mapping=MAPPING)
    assert len(found.rows) == 1
    assert [(reject["file"], reject["reason"]) for reject in found.rejects] == [("a\\udcff.csv", "unreadable")]


def test_a_value_of_megabytes_is_not_repeated_in_its_reject(tmp_path, read):
    found = read(write(tmp_path / "log.csv", GOOD, f"1,11,100,1700000000,1,5,{'9x' * 10**6},2"), mapping=MAPPING)
    assert found.reasons == [("value", 3)]
    assert max(len(found.rejects[0][name]) for name in ("detail", "raw")) <= 300


@pytest.mark.slow
def test_a_truncated_compressed_file_keeps_what_could_be_read(tmp_path, read):
    rng = random.Random(1)
    lines = [f"1,{n},{n},17000{rng.randrange(10**5):05d},1,5,1,2" for n in range(60_000)]
    data = gzip.compress("\n".join([HEADER, *lines]).encode(), 1)
    (tmp_path / "log.csv.gz").write_bytes(data[: len(data) - 1000])
    with pytest.raises(LogError, match=r"found 1 of .*, and 100% of the log's bytes in files that cannot be read"):
        list(read_log(tmp_path / "log.csv.gz", mapping=MAPPING))
    reader = read_log(tmp_path / "log.csv.gz", mapping=MAPPING, max_rejects=1)
    rows = sum(batch.num_rows for batch in reader)
    assert rows > 20_000
    assert reader.counts.rejected.get("unreadable") == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty_file"),
        (b"\n\n\n", "empty_file"),
        (f"{HEADER}\n".encode(), "empty_file"),
        (b"who,what\n1,2\n", "columns item, ts, request, device, click, stars, price, user"),
        (b"PAR1\x00\x00", "found Parquet"),
        (b"\xff\xfeu\x00", "found UTF-16"),
        (f"{HEADER}\n1,11,100,1700000000000,1,5,9.5,2\n".encode(), "check its unit"),
    ],
)
def test_a_log_without_any_good_row_is_one_clear_error(content, found, tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(LogError) as failure:
        list(read_log(path, mapping=MAPPING))
    message = str(failure.value)
    assert "log.csv: at least one row with user, item and time required" in message
    assert "docs/mapping.md" in message
    for part in found.removeprefix("columns ").split(", "):
        assert part in message


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".dat"])
)
def test_garbage_is_a_clear_error_and_never_a_traceback_of_a_library(content, suffix, tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / f"log{suffix}"
    path.write_bytes(content)
    for preset in ("movielens", "mind", "kuairand"):
        with pytest.raises(LogError, match="at least one row"):
            list(read_log(path, preset=preset))


def test_an_empty_folder_is_a_clear_error(tmp_path):
    with pytest.raises(LogError, match=r"files like .*\.csv.* required, found no file at all"):
        read_log(tmp_path, mapping=MAPPING)


def test_broken_json_lines_are_rejected_by_line(tmp_path, read):
    lines = [
        '{"user": "a", "item": 5, "ts": "2024-01-02T03:04:05Z", "click": true}',
        '{"user": "a", "item": 6, "ts": ',
        "[1, 2]",
        "",
        "null",
        '{"user": "b", "item": null, "ts": 1700000000, "click": 0}',
        b'{"user": "\xff", "item": 1}',
        '{"user": "b", "item": 7, "ts": 1700000000, "click": false, "other": {"x": 1}}',
        '{"user": "b", "ite',
    ]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    mapping = {"user_id": "user", "item_id": "item", "time": {"column": "ts"}, "labels": {"click": "click"}}
    found = read(path, mapping=mapping)
    assert found.reasons == [
        ("json", 2), ("json", 3), ("json", 5), ("null_id", 6), ("encoding", 7), ("truncated", 9)
    ]  # fmt: skip
    assert sorted((row["user_key"], row["item_id"], row["click"]) for row in found.rows) == [("a", 5, 1), ("b", 7, 0)]


def test_rows_of_parquet_are_rejected_by_row_number(tmp_path, read):
    frame = pl.DataFrame(
        {
            "user": [1.0, None, 3.0, 4.5, 5.0],
            "item": [1, 2, 3, 4, 5],
            "ts": [1_700_000_000, 1_700_000_000, 5, 1_700_000_000, 1_700_000_000],
            "click": [True, True, False, True, False],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    mapping = {"user_id": "user", "item_id": "item", "time": {"column": "ts"}, "labels": {"click": "click"}}
    found = read(tmp_path / "log.parquet", mapping=mapping)
    assert found.reasons == [("null_id", 2), ("absurd_time", 3), ("id", 4)]
    assert found.rejects[0]["raw"].startswith("user=null, item=2")
    assert sorted((row["user_id"], row["click"]) for row in found.rows) == [(1, 1), (5, 0)]


@pytest.mark.slow
def test_a_corrupt_row_group_costs_no_row_of_the_others(tmp_path, read):
    rng = random.Random(0)
    frame = pl.DataFrame(
        {
            "user": [rng.randrange(10**9) for _ in range(20_000)],
            "item": [rng.randrange(10**9) for _ in range(20_000)],
            "ts": [1_700_000_000 + rng.randrange(10**6) for _ in range(20_000)],
        }
    )
    path = tmp_path / "log.parquet"
    pq.write_table(frame.to_arrow(), path, row_group_size=7_000, use_dictionary=False, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    begin = column.data_page_offset + 40
    data[begin : begin + 2_000] = b"\xff" * 2_000
    path.write_bytes(data)
    mapping = {"user_id": "user", "item_id": "item", "time": {"column": "ts"}, "labels": {"view": {"value": 1}}}
    found = read(path, mapping=mapping)
    assert [reject["reason"] for reject in found.rejects] == ["unreadable"]
    assert len(found.rows) == 13_000
    assert found.rejects[0]["line"] == 7_001
    assert "rows 7,001 to 14,000 cannot be read" in found.rejects[0]["detail"]
