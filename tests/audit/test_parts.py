"""The audit's parts against plain loops: key identity, the key scan, leaves, the value store, overlap, the estimator."""

from __future__ import annotations

import decimal
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reqdedup.audit import scan
from reqdedup.audit.estimate import MODEL_ERROR, Population, Written, estimate_columns, interval
from reqdedup.audit.footers import read_facts
from reqdedup.audit.keys import hash_keys, hash_values, null_keys
from reqdedup.audit.repeats import shared_share
from reqdedup.audit.scan import KeyColumns, scan_keys
from reqdedup.audit.values import SampleColumn
from reqdedup.storage.foreign.leaves import Leaf, Shape, leaf_arrays, leaves_of
from reqdedup.storage.foreign.table import open_table


def test_equal_keys_have_equal_hashes_whatever_their_type():
    whole = [0, 1, -1, 2**31 - 1, None]
    assert np.array_equal(hash_values(pa.array(whole, pa.int32())), hash_values(pa.array(whole, pa.int64())))
    text = pa.array(["", "a", "ab", "abcdefgh", "abcdefghi", "Ж" * 40])
    expected = hash_values(text)
    assert len(set(expected.tolist())) == len(text)
    for other in (text.dictionary_encode(), text.cast(pa.large_string()), text.cast(pa.binary())):
        assert np.array_equal(hash_values(other), expected)
    assert np.array_equal(
        hash_values(pa.concat_arrays([text, text]).slice(2, 5)), np.concatenate([expected, expected])[2:7]
    )


def test_the_hash_of_a_key_never_changes():
    assert hash_values(pa.array([1, 2])).tolist() == [10451216379200822465, 10905525725756348110]
    assert hash_values(pa.array(["member-1"])).tolist() == [6020708980802112548]
    assert hash_keys([pa.array(["a"]), pa.array([7])]).tolist() == [8093155814718291624]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([uuid.UUID(int=i).bytes for i in range(50)], pa.binary(16)),
        pa.array([decimal.Decimal(i) for i in range(50)], pa.decimal128(20, 2)),
        pa.array(range(50), pa.timestamp("us", "UTC")),
        pa.array(range(50), pa.uint64()),
        pa.array([f"{i}" for i in range(50)], pa.string_view()),
    ],
    ids=str,
)
def test_distinct_keys_have_distinct_hashes(values):
    assert len(np.unique(hash_values(values))) == 50


def test_floats_and_lists_are_no_keys():
    for values in (pa.array([1.0]), pa.array([[1]])):
        with pytest.raises(ValueError, match="a key must be of integers"):
            hash_values(values)


def test_a_null_in_any_key_column_counts():
    columns = [pa.array([1, None, 3]), pa.array(["a", "b", None])]
    assert null_keys(columns).tolist() == [False, True, True]


def test_the_key_scan_equals_a_plain_loop(tmp_path):
    rng = np.random.default_rng(0)
    user, request = rng.integers(0, 40, 3000), rng.integers(0, 3, 3000)
    request[::3] = request[0]
    table = pa.table({"user": user, "request": pa.array(request, mask=rng.random(3000) < 0.05)})
    for number, start in enumerate((0, 1000, 1001)):
        end = (1000, 1001, 3000)[number]
        pq.write_table(table.slice(start, end - start), tmp_path / f"{number}.parquet", row_group_size=170)

    rows, runs, groups, files = {}, {}, {}, {}
    last = None
    for number, start in enumerate((0, 1000, 1001)):
        last = None
        for row in range(start, (1000, 1001, 3000)[number]):
            key = (int(user[row]), table["request"][row].as_py())
            if key[1] is None:
                last = None
                continue
            rows[key] = rows.get(key, 0) + 1
            runs[key] = runs.get(key, 0) + (key != last)
            groups.setdefault(key, set()).add((number, (row - start) // 170))
            files.setdefault(key, set()).add(number)
            last = key

    opened = open_table(tmp_path)
    index = scan_keys(opened, read_facts(opened), KeyColumns(("request",), ("user",)))
    assert index.rate == 1
    assert (index.num_rows, index.null_rows) == (sum(rows.values()), 3000 - sum(rows.values()))
    assert (index.num_requests, index.num_users) == (len(rows), 40)
    for found, expected in (
        (index.rows, rows.values()),
        (index.runs, runs.values()),
        (index.row_groups, map(len, groups.values())),
        (index.files, map(len, files.values())),
    ):
        assert sorted(found.tolist()) == sorted(expected)
    assert index.shared_ids == 3


def test_a_scan_with_little_memory_follows_some_users_with_all_their_rows(tmp_path, monkeypatch):
    user = np.random.default_rng(0).permutation(np.repeat(np.arange(2000), 10))
    pq.write_table(pa.table({"user": user, "request": user * 2}), tmp_path / "x.parquet", row_group_size=500)
    opened = open_table(tmp_path)
    monkeypatch.setattr(scan, "MAX_REQUESTS", 300)
    index = scan_keys(opened, read_facts(opened), KeyColumns(("request",), ("user",)))
    assert 0 < index.rate < 1
    assert len(index.rows) <= 300
    assert set(index.rows.tolist()) == {10}
    assert abs(index.num_users / 2000 - 1) < 0.2
    assert index.num_rows == 20_000


def test_leaves_come_in_the_order_of_the_parquet_columns(tmp_path):
    schema = pa.schema(
        [
            ("a", pa.int32()),
            ("s", pa.struct([("x", pa.string()), ("l", pa.list_(pa.float32()))])),
            ("h", pa.list_(pa.struct([("item", pa.int64()), ("tags", pa.list_(pa.string()))]))),
            ("m", pa.map_(pa.string(), pa.int32())),
            ("z", pa.list_(pa.list_(pa.int8()))),
            ("e", pa.list_(pa.float32(), 4)),
        ]
    )
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    footer = pq.read_metadata(tmp_path / "x.parquet")
    leaves = leaves_of(schema)
    assert footer.num_columns == len(leaves)
    for position, leaf in enumerate(leaves):
        in_file = [
            part
            for part in footer.schema.column(position).path.split(".")
            if part not in ("list", "element", "key_value")
        ]
        assert leaf.name.split(".") == in_file
    assert [(leaf.name, leaf.shape) for leaf in leaves] == [
        ("a", Shape.SCALAR),
        ("s.x", Shape.SCALAR),
        ("s.l", Shape.LIST),
        ("h.item", Shape.LIST),
        ("h.tags", Shape.NESTED),
        ("m.key", Shape.NESTED),
        ("m.value", Shape.NESTED),
        ("z", Shape.NESTED),
        ("e", Shape.LIST),
    ]


def test_a_list_of_structs_becomes_lists():
    array = pa.array([[{"i": 1, "t": "a"}, {"i": 2, "t": None}], None, [], [{"i": 5, "t": "b"}]]).slice(1)
    found = leaf_arrays("h", array)
    assert found["h.i"].to_pylist() == [None, [], [5]]
    assert found["h.t"].to_pylist() == [None, [], ["b"]]


COLUMNS = {
    "int64 lists": (pa.list_(pa.int64()), [[1, 2, 3], [], None, [1, 2, 3], [2**62] * 1000]),
    "float32 vectors": (pa.list_(pa.float32(), 2), [[1.5, 2.5], [0.0, -0.0], [1.5, 2.5], [3, 4], [5, 6]]),
    "bool lists": (pa.list_(pa.bool_()), [[True, False], [], [True], None, [True, False]]),
    "text lists": (pa.list_(pa.string()), [["N1", "N22"], [], None, ["N22"], ["N1", "N22"]]),
    "decimal lists": (
        pa.large_list(pa.decimal128(10, 2)),
        [[decimal.Decimal("1.25")], [], None, [], [decimal.Decimal("1.25")]],
    ),
    "text": (pa.string(), ["a", None, "", "ünï", "a"]),
    "binary": (pa.binary(), [b"abc" * 400, None, b"", b"\0", b"abc" * 400]),
    "uuid": (pa.binary(16), [b"0" * 16, None, b"1" * 16, b"0" * 16, b"1" * 16]),
    "int32": (pa.int32(), [1, None, 3, 1, 2]),
    "timestamp": (pa.timestamp("us", "UTC"), [1, None, 3, 1, 2]),
    "bool": (pa.bool_(), [True, None, False, True, True]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_value_store_gives_back_what_it_was_given(name, tmp_path):
    kind, values = COLUMNS[name]
    array = pa.array(values, kind)
    (leaf,) = leaves_of(pa.schema([("x", kind)]))
    column = SampleColumn(leaf, tmp_path, 0)
    for start in (0, 2):
        for leaf_array in leaf_arrays("x", array.slice(start, 3)).values():
            column.add(leaf_array, len(leaf_array))
    column.add(None, 2)
    column.finish()
    expected = array.slice(0, 3).to_pylist() + array.slice(2, 3).to_pylist() + [None, None]
    rows = np.array([7, 0, 0, 4, 3, 2, 2, 2, 1, 5, 6])
    wanted = [expected[row] for row in rows]
    assert column.rows(rows).to_pylist() == wanted
    assert [value for chunk in column.chunks(rows) for value in chunk.to_pylist()] == wanted
    for left in range(8):
        for right in range(8):
            assert (column.ids[left] == column.ids[right]) == (expected[left] == expected[right])
    if column.is_list:
        assert column.slots.tolist() == [max(1, len(value or ())) for value in expected]


def test_copies_of_a_long_value_share_one_chunk(tmp_path):
    column = SampleColumn(Leaf("x", "x", Shape.LIST, pa.int64()), tmp_path, 0)
    column.add(pa.array([list(range(16_384))] * 40, pa.list_(pa.int64())), 40)
    column.finish()
    chunks = list(column.chunks(np.arange(40)))
    assert sum(map(len, chunks)) == 40
    assert len({chunk.values.buffers()[1].address for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("earlier", "later", "share"),
    [
        (range(100), range(100), 1.0),
        (range(100), range(20, 120), 0.8),  # a window that slid
        (range(80), range(100), 0.8),  # a history that grew
        (range(100), range(50), 1.0),
        (range(100), range(1000, 1100), 0.0),
        ([], range(5), 0.0),
        ([7], [7], 1.0),
        ([1, 2], [2, 3], 0.5),
    ],
)
def test_shared_elements_are_found_at_any_shift(earlier, later, share):
    assert shared_share(np.array(list(earlier), "u8"), np.array(list(later), "u8")) == pytest.approx(share)


def written(bytes_of_group, group_rows=100.0, **sizes) -> Written:
    return Written(
        {"x": np.asarray(bytes_of_group, float)}, {k: np.asarray(v, float) for k, v in sizes.items()}, group_rows
    )


def test_a_proportional_column_is_estimated_exactly():
    rows = np.array([3.0, 10, 40, 7, 1, 25])
    one = written(2.5 * rows, rows=rows, users=np.ones(6))
    found = estimate_columns(one, one, {"rows": 1e6, "users": 9.0}, table_group_rows=100)["x"]
    assert found.total == pytest.approx(2.5e6)
    assert np.allclose(found.without, 2.5e6)
    only_model = interval([found], Population(1000, 6, False))
    assert only_model.high - only_model.low == pytest.approx(2 * MODEL_ERROR * 2.5e6)


def test_the_jackknife_is_the_spread_of_the_estimates_without_each_group():
    y, x = np.array([5.0, 9, 2, 7]), np.array([2.0, 3, 1, 3])
    one = written(y, rows=x)
    found = estimate_columns(one, one, {"rows": 90.0}, table_group_rows=100)["x"]
    without = [90 * (23 - a) / (9 - b) for a, b in zip(y, x)]
    assert found.total == pytest.approx(90 * 23 / 9)
    assert found.without.tolist() == pytest.approx(without)
    error = (3 / 4 * sum((w - np.mean(without)) ** 2 for w in without)) ** 0.5
    estimate = interval([found], Population(10**9, 4, False))
    assert estimate.high - estimate.bytes == pytest.approx(3.182 * error + MODEL_ERROR * found.total)


def test_what_a_row_group_costs_is_taken_along_the_line_and_counts_as_error():
    """Bytes per row are 2 + 300 / rows of the row group: seen at 50 and 100 rows, the table has 150 in each."""
    rows = np.full(8, 100.0)
    large = written(rows * (2 + 300 / 100), 100.0, rows=rows)
    groups = written(np.full(16, 50.0) * (2 + 300 / 50), 50.0, rows=np.full(16, 50.0))
    found = estimate_columns(large, groups, {"rows": 1e6}, table_group_rows=150)["x"]
    assert found.total == pytest.approx(1e6 * (2 + 300 / 150))
    assert found.correction == pytest.approx(-1e6)
    assert interval([found], Population(10**9, 8, False)).high >= found.total + 1e6


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    num_users, num_sampled, hits = 4000, 96, 0
    requests = 1 + rng.poisson(2, num_users)
    rows = requests * rng.lognormal(3, 0.5, num_users)
    bytes_of_user = 500 * requests * rng.lognormal(0, 0.6, num_users) + 3 * rows
    totals = {"requests": float(requests.sum()), "rows": float(rows.sum()), "users": float(num_users)}
    for _ in range(200):
        drawn = rng.choice(num_users, num_sampled, replace=False)
        group = rng.integers(0, 16, num_sampled)

        def sums(values, drawn=drawn, group=group):
            return np.bincount(group, values[drawn], minlength=16)

        one = written(sums(bytes_of_user), requests=sums(requests), rows=sums(rows), users=sums(np.ones(num_users)))
        found = estimate_columns(one, one, totals, table_group_rows=100)["x"]
        estimate = interval([found], Population(num_users, num_sampled, False))
        hits += estimate.low <= bytes_of_user.sum() <= estimate.high
    assert hits / 200 >= 0.95
