"""Merge join of sorted streams against the same join written as SQL and run by DuckDB."""

from __future__ import annotations

import itertools

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.dedup.encoding import BLOB_TYPE
from reqdedup.dedup.rows import compact_batch
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY, Cursor, merge_streams
from reqdedup.schema import Column, Kind, Level
from reqdedup.storage.join.merge import JoinCounts, MergeJoin, join_order

ids = st.one_of(st.integers(0, 3), st.sampled_from([-(2**63), 2**63 - 1]))
rows = st.lists(st.tuples(ids, ids, ids), max_size=25).map(sorted)
cuts = st.lists(st.integers(0, 25), max_size=4)
FEATURES = (
    Column(name="count", dtype="int32", level=Level.REQUEST, nullable=True),
    Column(name="name", dtype="string", level=Level.REQUEST, nullable=True),
    Column(name="sequence", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="vector", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=2),
)


def blob_column(blobs: list[bytes]) -> pa.DictionaryArray:
    return pa.array(blobs, pa.binary()).dictionary_encode()


def left_batch(keys: list[tuple[int, int, int]]) -> pa.RecordBatch:
    columns = {name: pa.array([key[i] for key in keys], pa.int64()) for i, name in enumerate(ROW_KEY)}
    columns["row"] = pa.array(range(len(keys)), pa.int64())
    columns["history"] = blob_column([b"h%d,%d" % key[:2] for key in keys])
    return pa.RecordBatch.from_pydict(columns)


def right_batch(keys: list[tuple[int, int, int]]) -> pa.RecordBatch:
    columns = {name: pa.array([key[i] for key in keys], pa.int64()) for i, name in enumerate(ROW_KEY)}
    columns["count"] = pa.array([None if i % 5 == 3 else i for i in range(len(keys))], pa.int32())
    columns["name"] = pa.array([f"r{i}" for i in range(len(keys))], pa.string())
    columns["sequence"] = blob_column([(i // 3).to_bytes(8, "little") for i in range(len(keys))])
    columns["vector"] = blob_column([i.to_bytes(8, "little") for i in range(len(keys))])
    return pa.RecordBatch.from_pydict(columns)


def split(batch: pa.RecordBatch, cuts: list[int]) -> list[pa.RecordBatch]:
    """The batch in pieces, cut anywhere: inside requests and at the same place twice too."""
    edges = [0, *sorted(min(cut, batch.num_rows) for cut in cuts), batch.num_rows]
    return [batch.slice(start, end - start) for start, end in itertools.pairwise(edges)]


def decoded(table: pa.Table) -> pa.Table:
    return pa.table(
        {n: c.cast(pa.binary()) if c.type == BLOB_TYPE else c for n, c in zip(table.column_names, table.columns)}
    )


def sql_join(left: pa.Table, right: pa.Table, on: tuple[str, ...], how: str) -> list[tuple]:
    """The same join with the first right row of each key, missing blobs filled as documented."""
    using, features = ", ".join(on), [column.name for column in FEATURES]
    connection = duckdb.connect()
    connection.register("l", decoded(left))
    connection.register("r", decoded(right.append_column("place", pa.array(range(len(right)), pa.int64()))))
    fill = {"sequence": "''::BLOB", "vector": "'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'::BLOB"}
    chosen = ", ".join(f"coalesce(r.{n}, {fill[n]})" if n in fill else f"r.{n}" for n in features)
    return connection.execute(
        f"""with first as (select * from r qualify row_number() over (partition by {using} order by place) = 1)
        select l.row, l.history, {chosen} from l {how} join first r using ({using}) order by l.row"""
    ).fetchall()


def join_rows(batches: list[pa.RecordBatch]) -> list[tuple]:
    if not batches:
        return []
    table = decoded(pa.Table.from_batches(batches).select(["row", "history", *(c.name for c in FEATURES)]))
    return list(zip(*(column.to_pylist() for column in table.columns)))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("on", [REQUEST_KEY, ROW_KEY])
def test_the_join_is_the_sql_join_for_any_keys_and_any_batch_cuts(on, how):
    join = MergeJoin(on=on, how=how, right_columns=FEATURES, duplicates="first")

    @settings(max_examples=40, deadline=None)
    @given(left=rows, right=rows, left_cuts=cuts, right_cuts=cuts)
    def check(left, right, left_cuts, right_cuts):
        left_rows, right_rows = left_batch(left), right_batch(right)
        counts = JoinCounts()
        batches = list(join.run(map(compact_batch, split(left_rows, left_cuts)), split(right_rows, right_cuts), counts))
        expected = sql_join(pa.Table.from_batches([left_rows]), pa.Table.from_batches([right_rows]), on, how)
        assert join_rows(batches) == expected

        left_keys, right_keys = [key[: len(on)] for key in left], [key[: len(on)] for key in right]
        matched = sum(key in set(right_keys) for key in left_keys)
        assert counts == JoinCounts(
            left_rows=len(left),
            matched_rows=matched,
            missing_rows=len(left) - matched,
            right_rows=len(right),
            unused_right_keys=len(set(right_keys) - set(left_keys)),
            duplicate_right_keys=len(right) - len(set(right_keys)),
        )
        for batch in batches:
            batch.validate(full=True)
            assert batch.num_rows
            for name in ("history", "sequence", "vector"):
                assert set(batch[name].indices.to_pylist()) == set(range(len(batch[name].dictionary)))

    check()


def test_requests_stay_whole_in_the_batches_of_a_join():
    keys = [(user, request, item) for user in range(3) for request in range(4) for item in range(5)]
    join = MergeJoin(on=REQUEST_KEY, how="inner", right_columns=FEATURES)
    batches = list(
        join.run(split(left_batch(keys), [7, 22, 23]), split(right_batch(keys[::5]), [2, 5, 11]), JoinCounts())
    )
    requests = [set(zip(b["user_id"].to_pylist(), b["request_id"].to_pylist())) for b in batches]
    assert sum(map(len, requests)) == 12
    assert len(batches) > 3


def test_blobs_are_joined_by_index_and_not_copied():
    keys = [(user, 0, item) for user in range(4) for item in range(3)]
    left, right = left_batch(keys), right_batch(keys[::3])
    join = MergeJoin(on=REQUEST_KEY, how="inner", right_columns=FEATURES)
    (batch,) = join.run([left], [right], JoinCounts())
    for name, source in (("history", left), ("sequence", right)):
        assert isinstance(batch[name], pa.DictionaryArray)
        assert batch[name].dictionary.buffers()[2].address == source[name].dictionary.buffers()[2].address


def test_a_duplicate_right_key_is_an_error_that_names_it():
    join = MergeJoin(on=REQUEST_KEY, how="left", right_columns=FEATURES, right_name="lake.features")
    keys = [(1, 10, 0), (1, 11, 0), (1, 11, 1), (2, 5, 0)]
    with pytest.raises(ValueError, match=r"lake.features: every .* found \(1, 11\) more than once"):
        list(join.run([left_batch(keys)], [right_batch(keys)], JoinCounts()))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_side_out_of_order_is_an_error_that_names_side_and_row(side):
    keys = [(1, 10, 0), (1, 12, 0), (1, 11, 0), (2, 5, 0)]
    sides = {"left": split(left_batch(sorted(keys)), []), "right": split(right_batch(sorted(keys)), [])}
    sides[side] = split((left_batch if side == "left" else right_batch)(keys), [2])
    join = MergeJoin(on=REQUEST_KEY, how="left", right_columns=FEATURES)
    with pytest.raises(ValueError, match=rf"{side}: rows must be in \(user_id, request_id\) order, but row 2 "):
        list(join.run(sides["left"], sides["right"], JoinCounts()))


@pytest.mark.parametrize("on", [("user_id",), ("user_id", "item_id"), ("user_id", "user_id"), ("device",)])
def test_only_the_request_key_can_be_joined_on(on):
    with pytest.raises(ValueError, match="on must be"):
        join_order(on)
    assert join_order(("request_id", "user_id")) == REQUEST_KEY


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(streams=st.lists(st.tuples(rows, cuts), min_size=1, max_size=4))
def test_merging_streams_is_sorting_their_rows(streams):
    pieces = [split(right_batch(keys), cut) for keys, cut in streams]
    merged = [batch for batch in merge_streams(pieces, ROW_KEY, "streams") if batch.num_rows]
    everything = decoded(pa.Table.from_batches([batch for piece in pieces for batch in piece]))
    key = list(zip(*(everything[name].to_pylist() for name in ROW_KEY)))
    order = sorted(range(len(key)), key=key.__getitem__)  # stable, as the merge is
    found = decoded(pa.Table.from_batches(merged, schema=pieces[0][0].schema))
    if len(streams) > 1:
        assert found.to_pylist() == everything.take(pa.array(order, pa.int64())).to_pylist()
    cursor = Cursor(merged, ROW_KEY, "merged")
    while cursor.fill():
        cursor.take()
