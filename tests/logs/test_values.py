"""One rule for values of text, JSON and Parquet: exactly what they say, or rejected with a reason."""

from __future__ import annotations

import json
import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.logs import read_log
from reqdedup.logs.ids import hash_string

pytestmark = pytest.mark.filterwarnings("ignore:.*missing on every row")
BASE_S = 1_700_000_000
SUFFIXES = ("csv", "jsonl", "parquet")
KEYS = {"user_id": {"column": "u", "type": "int"}, "item_id": {"column": "i", "type": "int"}}
MAPPING = {**KEYS, "time": {"column": "t"}, "labels": {"click": "c"}, "item_columns": {"v": "int32"}}
ROW = {"u": 1, "i": 2, "t": BASE_S, "c": 1, "v": None}


def write(path, rows, types=None):
    """The rows as CSV, JSON Lines or Parquet, by the file's ending."""
    names = list(rows[0])
    if path.suffix == ".parquet":
        columns = {name: pa.array([row[name] for row in rows], (types or {}).get(name)) for name in names}
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def outcomes(found, names):
    """Of each row, its number being its item, the value under the name at that place, or the reason of its reject."""
    of_row = {row["item_id"]: row for row in found.rows}
    header = found.reader.path.suffix == ".csv"
    reasons = {line - header: reason for reason, line in found.reasons}
    assert sorted([*of_row, *reasons]) == list(range(1, len(names) + 1))
    return [of_row[k][name] if k in of_row else reasons[k] for k, name in enumerate(names, 1)]


def one_value_a_row(values):
    """Rows of which the k-th has a value in the column v{k} alone, and the names of these columns."""
    names = [f"v{k}" for k in range(len(values))]
    return [{**ROW, "i": k, **dict.fromkeys(names), f"v{k - 1}": value} for k, value in enumerate(values, 1)], names


NUMBERS = [
    ("int32", 7, 7),
    ("int32", 3.0, 3),
    ("int32", 2.7, "value"),
    ("int32", 2**31 - 1, 2**31 - 1),
    ("int32", 2**31, "value"),
    ("int64", 2**63 - 1, 2**63 - 1),
    ("int64", 2.0**53, "value"),
    ("int64", True, 1),
    ("float32", 1.5, 1.5),
    ("float32", 1e39, "value"),
    ("float32", -1e39, "value"),
    ("float32", float("inf"), float("inf")),
    ("float32", float("nan"), None),
    ("float64", 1e39, 1e39),
    ("bool", True, True),
    ("bool", 0, False),
    ("bool", 1.0, True),
    ("bool", 2, "value"),
    ("bool", 0.5, "value"),
    ("int32", None, None),
]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_number_of_a_column_is_exact_or_rejected(suffix, tmp_path, read):
    rows, names = one_value_a_row([value for _, value, _ in NUMBERS])
    types = {name: pa.float64() for name, row in zip(names, rows) if isinstance(row[name], float)}
    columns = dict(zip(names, (dtype for dtype, _, _ in NUMBERS)))
    found = read(write(tmp_path / f"log.{suffix}", rows, types), mapping={**MAPPING, "item_columns": columns})
    assert outcomes(found, names) == [wanted for _, _, wanted in NUMBERS]


LABELS = [
    ({"range": [0, 1e13]}, 3_000_000_000, 3_000_000_000),
    ({"range": [0, 1e13]}, 5, 5),
    ({"range": [0, 1e20]}, 2**53 - 1, 2**53 - 1),
    ({"range": [0, 1e20]}, 2**53, "label"),
    ({"range": [-1e20, 0]}, -3_000_000_000, -3_000_000_000),
    ({"range": [0, 2**31 - 1]}, 2**31, "label"),
    ({"range": [0, 10]}, 2.5, "label"),
    ({"range": [0, 10]}, 11, "label"),
    ({"range": [0, 10]}, float("inf"), "label"),
    ({"range": [0, 1e13], "at_least": 4}, 3_000_000_000, 1),
    ({"range": [0, 10], "at_least": 4}, 3.5, 0),
    ({"range": [0, 10], "at_least": 4}, float("nan"), None),
    ({}, True, 1),
    ({}, None, None),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_label_is_stored_or_rejected_and_missing_only_if_it_is_missing(suffix, tmp_path, read):
    rows, names = one_value_a_row([value for _, value, _ in LABELS])
    labels = {name: {"column": name, **rule} for name, (rule, _, _) in zip(names, LABELS)}
    mapping = {**MAPPING, "item_columns": {}, "labels": labels}
    found = read(write(tmp_path / f"log.{suffix}", rows), mapping=mapping)
    assert outcomes(found, names) == [wanted for _, _, wanted in LABELS]


INTEGER_IDS = {
    **{"10": 10, "-3": -3, "1.0": 1, str(2**63 - 1): 2**63 - 1},
    **dict.fromkeys(["010", "+1", "-0", "1.5", "1e3", "1_0", "\u0661", str(2**63), "x"], "id"),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_text_of_an_id_means_one_id_or_none(suffix, tmp_path, read):
    rows = [{**ROW, "i": k, "u": text} for k, text in enumerate(INTEGER_IDS, 1)]
    path = write(tmp_path / f"log.{suffix}", rows)
    found = read(path, mapping=MAPPING)
    assert outcomes(found, ["user_id"] * len(rows)) == list(INTEGER_IDS.values())
    found = read(path, mapping={**MAPPING, "user_id": {"column": "u", "type": "string"}})
    assert outcomes(found, ["user_id"] * len(rows)) == [hash_string(text) for text in INTEGER_IDS]


@pytest.mark.parametrize("kind", ["int", "string"])
def test_an_id_is_the_same_in_every_file_and_format(kind, tmp_path, read):
    """1 as text, as an integer, a float or a decimal, and as an element of a list: one user, one item, one request."""
    ids = {"u": 1, "i": 2, "r": 3}
    others = {"t": BASE_S, "c": 1}
    (tmp_path / "a.csv").write_text(f"u,i,r,t,c\n1,2,3,{BASE_S},1\n")
    (tmp_path / "b.jsonl").write_text(f'{{"u": 1, "i": 2.0, "r": "3", "t": {BASE_S}, "c": 1}}\n')
    write(tmp_path / "c.parquet", [{**ids, **others}], {"u": pa.float64(), "i": pa.uint8(), "r": pa.float32()})
    decimals = {name: Decimal(value) for name, value in ids.items()}
    write(tmp_path / "d.parquet", [{**decimals, **others}], dict.fromkeys(ids, pa.decimal128(10, 2)))
    keys = {f"{name}_id": {"column": name[0], "type": kind} for name in ("user", "item", "request")}
    mapping = {**MAPPING, **keys, "item_columns": {}, "request_scope": "user"}
    found = read(tmp_path, mapping=mapping)
    assert [row["request_key"] for row in found.rows] == ["3"]
    assert [(reject["reason"], reject["file"]) for reject in found.rejects] == [
        ("duplicate", name) for name in ("b.jsonl", "c.parquet", "d.parquet")
    ]
    if kind == "string":
        assert (found.rows[0]["user_key"], found.rows[0]["item_key"]) == ("1", "2")


@pytest.mark.slow
def test_a_number_that_is_an_id_is_whole_or_rejected(tmp_path, read):
    for suffix, values in {
        "jsonl": [1.5, True, {"id": 1}, [1], 1e300],
        "parquet": [1.5, 0.1, 1e300, float("inf"), 2.0**60],
    }.items():
        rows = [{**ROW, "u": value} for value in values] + [{**ROW, "i": 99}]
        for kind in ("int", "string"):
            mapping = {**MAPPING, "user_id": {"column": "u", "type": kind}}
            found = read(write(tmp_path / f"log.{suffix}", rows), mapping=mapping)
            assert [row["item_id"] for row in found.rows] == [99]
            assert found.reasons == [("id", line) for line in range(1, len(values) + 1)]


def test_whether_ids_are_text_is_decided_by_the_first_rows_that_have_one(tmp_path, read):
    (tmp_path / "a.jsonl").write_text(f'{{"i": 5, "t": {BASE_S}, "c": 1}}\n')
    (tmp_path / "b.csv").write_text(f"u,i,t,c\n7,5,{BASE_S},1\n1.0,6,{BASE_S},1\n")
    found = read(tmp_path, mapping={**MAPPING, "user_id": "u", "item_id": "i", "item_columns": {}})
    assert sorted(row["user_id"] for row in found.rows) == [1, 7]
    assert found.reasons == [("null_id", 1)]


@pytest.mark.slow
def test_parquet_types_that_mean_text_are_read_and_others_cost_their_row(tmp_path, read):
    uuids = [uuid.UUID(int=2**127 + k) for k in range(4)]
    texts = ["3", "x", None, "\u00e9"]
    columns = {
        "uuid": (pa.array([value.bytes for value in uuids], pa.uuid()), [str(value) for value in uuids]),
        "binary": (pa.array([b"3", b"x", None, b"\xff"]), ["3", "x", None, "reject"]),
        "careless": (pa.array([b"3", b"x", None, b"\xff"]).view(pa.string()), ["3", "x", None, "reject"]),
        "dictionary": (pa.array(texts).dictionary_encode(), texts),
        "view": (pa.array(texts, pa.string_view()), texts),
        "large": (pa.array(texts, pa.large_string()), texts),
        "decimal": (pa.array([Decimal(3), Decimal(10) ** 40, None, Decimal("1.5")], pa.decimal256(50, 1)), ["3", "1" + "0" * 40, None, "1.5"]),
        "date": (pa.array([0, 19_000, None, 2**31 - 1], pa.int32()).view(pa.date32()), ["1970-01-01", "2022-01-08", None, "reject"]),
        "struct": (pa.array([{"x": 1}, None, {"x": 2}, None]), ["reject", None, "reject", None]),
        "list_view": (pa.array([[1], None, [], None], pa.list_view(pa.int64())), ["reject", None, "reject", None]),
        "map": (pa.array([[("k", 1)], None, [], None], pa.map_(pa.string(), pa.int64())), ["reject", None, "reject", None]),
    }  # fmt: skip
    base = {"u": pa.array([1] * 4), "i": pa.array(range(4)), "t": pa.array([BASE_S] * 4), "c": pa.array([1] * 4)}
    for name, (array, wanted) in columns.items():
        pq.write_table(pa.table({**base, "v": array}), tmp_path / "log.parquet")
        found = read(tmp_path / "log.parquet", mapping={**MAPPING, "item_columns": {"v": "string"}})
        values = {row["item_id"]: row["v"] for row in found.rows}
        assert [values.get(number, "reject") for number in range(4)] == wanted, name
        assert found.reasons == [("value", number + 1) for number in range(4) if wanted[number] == "reject"], name


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_every_kind_of_list_gives_its_elements(make, tmp_path, read):
    lists = [[3, 1], [], None, [2], [2, None]]
    array = pa.array(lists, make(pa.int64()))
    base = {
        "u": pa.array([1] * 5),
        "t": pa.array([BASE_S + k for k in range(5)]),
        "c": pa.array([[1, 0], [1], [1], [1], [1, 1]]),
    }
    pq.write_table(pa.table({**base, "items": array}), tmp_path / "log.parquet")
    mapping = {**MAPPING, "item_id": None, "item_columns": {}, "candidates": {"column": "items"}}
    mapping = {key: value for key, value in mapping.items() if value is not None}
    found = read(tmp_path / "log.parquet", mapping=mapping)
    assert [(row["item_id"], row["click"]) for row in found.rows] == [(3, 1), (1, 0), (2, 1), (2, 1)]
    assert found.reasons == [("candidates", 2), ("candidates", 3), ("null_id", 5)]


@pytest.mark.slow
def test_a_history_holds_the_ids_that_items_have_or_the_request_is_rejected(tmp_path, read):
    pasts = [[1.0, "2", 3], ["01"], [1, None], [[1]], ["a\u001fb"], " 4,5 , 6 ", [1.5], 7]
    rows = [{"u": 1, "i": k, "t": BASE_S + k, "c": 1, "past": past} for k, past in enumerate(pasts)]
    mapping = {**MAPPING, "item_columns": {}, "history": {"column": "past", "separator": ","}}
    found = read(write(tmp_path / "log.jsonl", rows), mapping={**mapping, "session_gap_s": 1})
    assert found.reasons == [("history", line) for line in (2, 3, 4, 5, 7)]
    assert {row["item_id"]: row["history_item_id"] for row in found.rows} == {0: [1, 2, 3], 5: [4, 5, 6], 7: [7]}
    assert read_log(tmp_path / "log.jsonl", mapping=mapping).schema["history_item_id"]


def test_times_are_read_alike_from_text_and_types(tmp_path, read):
    (tmp_path / "a.csv").write_text("u,i,t,c\n1,1,20240501,1\n")
    write(tmp_path / "b.parquet", [{"u": 1, "i": 2, "t": 20_240_501, "c": 1}])
    (tmp_path / "c.jsonl").write_text('{"u": 1, "i": 3, "t": 20240501, "c": 1}\n')
    mapping = {**MAPPING, "item_columns": {}, "time": {"column": "t", "format": "%Y%m%d"}}
    found = read(tmp_path, mapping=mapping)
    assert {row["request_ts"].isoformat() for row in found.rows} == {"2024-05-01T00:00:00+00:00"}
    assert len(found.rows) == 3
    moments = {"t": pa.array([BASE_S * 10**6, 2**62, -(2**62)]).view(pa.timestamp("us", "+02:00"))}
    base = {"u": pa.array([1] * 3), "i": pa.array(range(3)), "c": pa.array([1] * 3)}
    pq.write_table(pa.table({**base, **moments}), tmp_path / "d.parquet")
    found = read(tmp_path / "d.parquet", mapping={**MAPPING, "item_columns": {}})
    assert [row["request_ts"].timestamp() for row in found.rows] == [BASE_S]
    assert found.reasons == [("time", 2), ("time", 3)]


TEXTS = ["alice", "alice ", " alice", "\talice", "NULL", "null", "None", "nan"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text_ids_and_text_columns_are_exact(suffix, tmp_path, read):
    """Spaces are part of a text, and a string of JSON or Parquet is one whatever it says."""
    mapping = {"user_id": {"column": "u", "type": "string"}, "item_id": {"column": "i", "type": "int"}}
    mapping |= {"time": {"column": "t"}, "labels": {"click": "c"}, "item_columns": {"v": "string"}}
    rows = [{**ROW, "u": text, "i": k, "v": text} for k, text in enumerate(TEXTS, 1)]
    found = read(write(tmp_path / f"log.{suffix}", rows), mapping=mapping)
    kept = TEXTS[:4] if suffix == "csv" else TEXTS
    by_item = sorted(found.rows, key=lambda row: row["item_id"])
    assert [(row["user_id"], row["user_key"], row["v"]) for row in by_item] == [(hash_string(t), t, t) for t in kept]
    named = read(tmp_path / f"log.{suffix}", mapping={**mapping, "null_values": ["null", "None"]})
    assert sorted(row["v"] for row in named.rows) == sorted(set(TEXTS) - {"null", "None"})
    blank = read(write(tmp_path / f"blank.{suffix}", [{**ROW, "u": "bob"}, {**ROW, "u": "  "}]), mapping=mapping)
    assert [reason for reason, _ in blank.reasons] == ["null_id"]


def test_spaces_of_a_field_do_not_depend_on_quotes_elsewhere_in_its_record(tmp_path, read):
    mapping = {**MAPPING, "item_columns": {"v": "string", "w": "string"}}
    fields = [(" a", "b"), (" a", '"b"'), ('" a"', ' "b"'), (' " a"', "b")]
    lines = [f" 1 , {k}, {BASE_S} ,1 ,{v},{w}" for k, (v, w) in enumerate(fields)]
    (tmp_path / "log.csv").write_text("\n".join(["u,i,t,c,v,w", *lines]) + "\n")
    found = read(tmp_path / "log.csv", mapping=mapping)
    assert [(row["user_id"], row["v"], row["w"]) for row in found.rows] == [(1, " a", "b")] * 4


def test_items_of_a_history_are_the_texts_of_the_items(tmp_path, read):
    mapping = {"user_id": "u", "item_id": {"column": "i", "type": "string"}, "time": {"column": "t"}}
    mapping |= {"labels": {"click": "c"}, "history": {"column": "h"}}
    row = {**ROW, "i": "x ", "h": ["x ", "x", " "]}
    found = read(write(tmp_path / "log.jsonl", [row]), mapping=mapping)
    assert found.rows[0]["history_item_id"] == [hash_string("x "), hash_string("x")]
