"""Delimited text: records as RFC 4180 has them, the separator by structure, and what a stray quote costs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import time

import polars as pl
import pytest

from reqdedup.logs import read_log, records
from reqdedup.logs.text import line_blocks
from tests.logs import mutations

BASE_S = 1_700_000_000
MAPPING = {"user_id": "u", "item_id": "i", "time": {"column": "t"}, "labels": {"click": "c"}}
NOTED = {**MAPPING, "item_columns": {"note": "string"}}
FORGED = f'nice\n9,66,{BASE_S},1,"'


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('"x", b', ["x", " b"]),
        ("x, b", ["x", " b"]),
        ('"x", "b, ""c""", d', ["x", 'b, "c"', " d"]),
        (' "x",b, ', ["x", "b", " "]),
        ('"x, y", z', ["x, y", " z"]),
    ],
)
def test_spaces_go_before_a_quote_alone_whatever_else_the_line_holds(text, fields):
    assert records.split_record(text, ",") == fields
    for others in (["a,b,c"], ['"a",b,c'], ['a, "b",c']):
        frame = pl.DataFrame({"line": [1, 2], "raw": [text, *others]}).with_columns(pl.col("line").cast(pl.Int64))
        row = records.split_records(frame, ",", len(fields)).row(0, named=True)
        assert [row[f"field_{k}"] for k in range(len(fields))] == fields


@pytest.mark.slow
def test_a_line_that_grows_block_by_block_is_copied_once(tmp_path):
    path, started = tmp_path / "long.csv", time.monotonic()
    path.write_bytes(b"\xef\xbb\xbf" + b"x" * 2**24 + b"\ny\n")
    lines = [line for block in line_blocks(path, 1024) for line in block.frame["raw"]]
    assert ([len(line) for line in lines], lines[1]) == ([2**24, 1], "y")
    assert time.monotonic() - started < 10  # minutes, if each of the 16,384 blocks copied the line


@pytest.mark.slow
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("block_bytes", [40, 2**20])
def test_what_the_csv_module_writes_comes_back(separator, block_bytes, tmp_path, read):
    notes = [
        "plain",
        'say "hi"',
        "two\nlines",
        "a\r\n\r\nb",
        FORGED,
        f"x{separator}y",
        '"',
        "\n",
        "",
        'end "',
        "ü\n日本",
        " ",
    ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(["u", "i", "t", "c", "note"])
    writer.writerows([1, item, BASE_S, 1, note] for item, note in enumerate(notes))
    (tmp_path / "log.csv").write_text(text.getvalue(), newline="")
    found = read(tmp_path / "log.csv", mapping=NOTED, block_bytes=block_bytes)
    assert found.rejects == []
    assert {row["user_id"] for row in found.rows} == {1}
    assert {row["item_id"]: row["note"] for row in found.rows} == {
        item: note or None for item, note in enumerate(notes)
    }


@pytest.mark.slow
def test_a_comment_never_becomes_an_engagement_whatever_is_wrong_with_its_record(tmp_path, read):
    comment = f"nice\n9,66,{BASE_S},1\n9,67,{BASE_S},1\n"
    good = f"1,5,{BASE_S},1,x\n"
    for name, record in {
        "a field too many": f'1,7,{BASE_S},1,"{comment}",more\n',
        "a field too few": f'1,{BASE_S},1,"{comment}"\n',
        "not UTF-8 on its first line": f'1,7,{BASE_S},1,"\xff{comment}"\n',
        "not UTF-8 on its last line": f'1,7,{BASE_S},1,"{comment}\xff"\n',
        "no time": f'1,7,never,1,"{comment}"\n',
        "a bad id": f'one,7,{BASE_S},1,"{comment}"\n',
    }.items():
        data = f"u,i,t,c,note\n{good}{record}1,6,{BASE_S},1,y\n".encode("latin-1")
        (tmp_path / "log.csv").write_bytes(data)
        for block_bytes in (20, 2**20):
            found = read(tmp_path / "log.csv", mapping=NOTED, block_bytes=block_bytes)
            assert sorted(row["item_id"] for row in found.rows) == [5, 6], name
            assert [line for _, line in found.reasons] == [3], name
            assert "66" in found.rejects[0]["raw"]


def test_a_file_that_ends_inside_a_quoted_field_was_cut_there(tmp_path, read):
    opened = f'1,7,{BASE_S},1,"nice\n9,66,{BASE_S},1,forged\n9,67,{BASE_S},1,fo'
    (tmp_path / "log.csv").write_text(f"u,i,t,c,note\n1,5,{BASE_S},1,x\n{opened}")
    found = read(tmp_path / "log.csv", mapping=NOTED)
    assert [row["item_id"] for row in found.rows] == [5]
    assert found.reasons == [("truncated", 3)]


@pytest.mark.slow
def test_a_compressed_file_that_ends_inside_a_quoted_field_was_cut_there(tmp_path, read):
    rng = random.Random(0)
    good = "".join(f"1,{item},{BASE_S},1,{rng.getrandbits(64)}\n" for item in range(5_000))
    forged = "".join(f"9,{item},{BASE_S},1,{rng.getrandbits(64)}\n" for item in range(20_000))
    data = gzip.compress(f'u,i,t,c,note\n{good}1,7777,{BASE_S},1,"nice\n{forged}'.encode())
    (tmp_path / "log.csv.gz").write_bytes(data[:-50_000])
    found = read(tmp_path / "log.csv.gz", mapping=NOTED)
    assert {row["user_id"] for row in found.rows} == {1}
    assert len(found.rows) == 5_000
    assert sorted(reason for reason, _ in found.reasons) == ["truncated", "unreadable"]


def test_a_stray_quote_costs_its_own_line(tmp_path, read):
    strays = {
        "opens a field": f'1,7,{BASE_S},1,"nice\n',
        "opens a field, and another line closes one": f'1,7,{BASE_S},1,"nice\n1,8,{BASE_S},1,"fine"\n',
        "follows a quoted field": f'1,7,{BASE_S},1,"nice" one\n',
        "in the middle of a text": f'1,8,{BASE_S},1,5" wide\n',
    }
    for name, lines in strays.items():
        (tmp_path / "log.csv").write_text(f"u,i,t,c,note\n1,5,{BASE_S},1,x\n{lines}1,6,{BASE_S},1,y\n")
        found = read(tmp_path / "log.csv", mapping=NOTED)
        assert sorted(row["item_id"] for row in found.rows) == ([5, 6] if ",8," not in lines else [5, 6, 8]), name
        assert found.reasons == ([("fields", 3)] if ",7," in lines else []), name


def test_a_quote_that_nothing_closes_is_given_up_after_a_bound(tmp_path, read, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2_000)
    body = f'1,7,{BASE_S},1,"nice\n' + "".join(f"1,{item},{BASE_S},1,x\n" for item in range(100, 400))
    (tmp_path / "log.csv").write_text("u,i,t,c,note\n" + body)
    found = read(tmp_path / "log.csv", mapping=NOTED, block_bytes=500)
    assert len(found.rows) == 300
    assert found.reasons == [("fields", 2)]


def test_long_quoted_fields_are_read(tmp_path, read):
    """The csv module takes 128 KiB at most, a limit that is one for the whole process."""
    note = "x, " * 70_000
    (tmp_path / "log.csv").write_text(f'u,i,t,c,note\n1,5,{BASE_S},1,"{note}"\n')
    assert read(tmp_path / "log.csv", mapping=NOTED).rows[0]["note"] == note


def test_records_are_those_of_plain_loops():
    rng = random.Random(3)
    alphabet = ['"', '"', ",", "a", '""', "::", ":", " "]
    for _ in range(3_000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(12)))
        separator = rng.choice([",", "::"])
        fields = records.split_record(text, separator)
        broken = '"' in text and mutations.state_after(text, separator) != "closed"
        assert (fields is None) == broken, (text, separator)
        if fields is not None and '"' not in text:
            assert fields == text.split(separator)


def test_escaped_quotes_are_those_of_the_csv_module():
    rng = random.Random(5)
    alphabet = ["\\", '"', ",", "a", " ", "\n"]
    for _ in range(2_000):
        fields = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(6))) for _ in range(3)]
        quoted = ['"' + field.replace("\\", "\\\\").replace('"', '\\"') + '"' for field in fields]
        text = ",".join(quoted)
        dialect = {"escapechar": "\\", "doublequote": False, "strict": True}
        assert records.split_record(text, ",", "\\") == fields == next(csv.reader(io.StringIO(text, ""), **dialect))


@pytest.mark.slow
def test_a_backslash_before_a_quote_means_what_the_mapping_says_and_without_a_word_nothing(tmp_path, read):
    forged = f'1,7,{BASE_S},1,"nice\\"\n9,66,{BASE_S},1,"\n'
    lines = [f'1,5,{BASE_S},1,"say \\"hi\\", ok"\n', forged, f'1,8,{BASE_S},1,"C:\\a"\n', f'1,9,{BASE_S},1,a\\"b\n']
    (tmp_path / "log.csv").write_text("u,i,t,c,note\n" + "".join(lines))
    plain = {8: "C:\\a", 9: 'a\\"b'}
    for block_bytes in (30, 2**20):
        found = read(tmp_path / "log.csv", mapping={**NOTED, "escape": "\\"}, block_bytes=block_bytes)
        escaped = {5: 'say "hi", ok', 7: f'nice"\n9,66,{BASE_S},1,', **plain}
        assert {row["item_id"]: row["note"] for row in found.rows} == escaped
        assert not found.rejects
        found = read(tmp_path / "log.csv", mapping={**NOTED, "escape": ""}, block_bytes=block_bytes)
        assert {row["item_id"]: row["note"] for row in found.rows} == {7: "nice\\", **plain}
        found = read(tmp_path / "log.csv", mapping=NOTED, block_bytes=block_bytes)
        assert {row["item_id"]: row["note"] for row in found.rows} == plain
        assert found.reasons == [("fields", 2), ("fields", 3), ("fields", 4)]
        assert all("escape = '\\' or" in reject["detail"] for reject in found.rejects[:2])
    with pytest.raises(ValueError, match="escape"):
        read(tmp_path / "log.csv", mapping={**NOTED, "escape": "/"})


SNIFFED = {
    "pk.csv": f"PKEY,u,i,t,c\nx,1,10,{BASE_S},1\n",
    "par1.csv": f"PAR1,u,i,t,c\nx,1,10,{BASE_S},1\n",
    "colons.csv": f"u,i,t,c,page::name\n1,10,{BASE_S},1,home\n",
    "commas.csv": f'u;i;t;c;"a,b,c,d,e,f,g"\n1;10;{BASE_S};1;x\n',
    "comma.tsv": f"u,i,t,c\n1,10,{BASE_S},1\n",
    "tabs.csv": f'"u"\t"i"\t"t"\t"c"\n"1"\t"10"\t{BASE_S}\t1\n',
    "colons.dat": f"u::i::t::c\n1::10::{BASE_S}::1\n",
    "lines.csv": f'"a\nname",u,i,t,c\nx,1,10,{BASE_S},1\n',
    "pipe.txt": f"u|i|t|c|x,y\n1|10|{BASE_S}|1|2,3\n",
}


@pytest.mark.parametrize("name", SNIFFED)
def test_the_separator_is_the_one_that_gives_the_mapped_columns(name, tmp_path, read):
    (tmp_path / name).write_text(SNIFFED[name])
    found = read(tmp_path / name, mapping=MAPPING)
    assert [(row["user_id"], row["item_id"], row["click"]) for row in found.rows] == [(1, 10, 1)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::"])
def test_without_a_header_the_separator_is_the_one_that_gives_as_many_columns(separator, tmp_path, read):
    lines = [[1, 10, BASE_S, 1, "a,b;c|d"], [2, 11, BASE_S, 0, "x:y:z"], [3, 12, BASE_S, 0, "say hi"]]
    names = ["u", "i", "t", "c", "note"]
    text = "".join(separator.join(f'"{v}"' if separator in str(v) else str(v) for v in line) + "\n" for line in lines)
    (tmp_path / "log.txt").write_text(text)
    found = read(tmp_path / "log.txt", mapping={**NOTED, "columns": names})
    assert [row["note"] for row in found.rows] == [line[4] for line in lines]


def test_spaces_before_a_quote_are_no_part_of_an_id(tmp_path, read):
    forged = f'1, "7", {BASE_S}, 1, "nice\n9,66,{BASE_S},1,"\n'
    (tmp_path / "log.csv").write_text(f'"u", "i", "t", "c", "note"\n"1", "5", {BASE_S}, 1,  "a, b"\n{forged}')
    for block_bytes in (30, 2**20):
        found = read(tmp_path / "log.csv", mapping=NOTED, block_bytes=block_bytes)
        assert {row["item_id"]: row["note"] for row in found.rows} == {5: "a, b", 7: f"nice\n9,66,{BASE_S},1,"}


def test_quotes_of_tab_separated_files_are_no_part_of_an_id(tmp_path, read):
    (tmp_path / "log.tsv").write_text(f'u\ti\tt\tc\n"u1"\t"i\t1"\t{BASE_S}\t"1"\nu1\ti2\t{BASE_S}\t0\n')
    found = read(tmp_path / "log.tsv", mapping=MAPPING)
    assert {row["user_key"] for row in found.rows} == {"u1"}
    assert {row["item_key"]: row["click"] for row in found.rows} == {"i\t1": 1, "i2": 0}


def test_a_header_that_names_a_mapped_column_twice_is_refused(tmp_path, read):
    (tmp_path / "a.csv").write_text(f"u,i,t,c,c\n1,10,{BASE_S},1,0\n")
    (tmp_path / "b.csv").write_text(f"u,i,t,c,x,x\n1,10,{BASE_S},1,0,0\n")
    found = read(tmp_path, mapping=MAPPING)
    assert [(reject["file"], reject["reason"]) for reject in found.rejects] == [("a.csv", "missing_columns")]
    assert "c more than once" in found.rejects[0]["detail"]
    assert len(found.rows) == 1


@pytest.mark.slow
def test_a_key_that_a_json_line_lacks_is_null(tmp_path, read):
    lines = [
        '{"u": 1, "i": 2, "t": 1700000000}',
        '{"i": 3, "t": 1700000001}',
        '{"uid": 1, "u": null, "i": 4, "t": 1700000002, "c": 1}',
        '{"u": 1, "i": 5, "t": 1700000003, "c": 1, "c": 0}',
        '{"u": 1, "i": 6, "t": 1700000004, "c": 0, "x": 1, "x": 2}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    for block_bytes in (10, 2**20):
        found = read(tmp_path / "log.jsonl", mapping={**MAPPING, "user_id": ["u", "uid"]}, block_bytes=block_bytes)
        assert {row["item_id"]: row["click"] for row in found.rows} == {2: None, 4: 1, 6: 0}
        assert found.reasons == [("null_id", 2), ("json", 4)]


def test_a_column_that_no_row_has_is_said_once(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"u": 1, "i": 2, "t": 1700000000}\n{"u": 1, "i": 3, "t": 1700000001}\n')
    mapping = {**MAPPING, "item_columns": {"price": "float32"}}
    with pytest.warns(
        UserWarning, match=r"log\.jsonl: click, price missing on every row; check what the mapping names"
    ):
        rows = sum(batch.num_rows for batch in read_log(tmp_path / "log.jsonl", mapping=mapping))
    assert rows == 2


@pytest.mark.parametrize("key", ["*", "", "$", "a.b", "a/b", "~1", "0", '"', "'", "\\", "[*]", "ü", "#"])
def test_every_json_key_can_be_mapped(key, tmp_path, read):
    lines = [{key: 7, "i": 2, "t": BASE_S, "c": 1, "past": [1, 2]}, {key: 8, "i": 3, "t": BASE_S, "c": 0, "past": [1]}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read(tmp_path / "log.jsonl", mapping={**MAPPING, "user_id": key, "history": {"column": "past"}})
    assert [row["user_id"] for row in found.rows] == [7, 8]
