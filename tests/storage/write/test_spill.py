"""The spill gives every row back, and its pieces against plain loops; sizes stay bounded whatever shares what."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.arrays.ranges import greedy_ranges
from reqdedup.dedup.encoding import expand_to_lists, lists_from_blobs
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.write import arrange, form
from reqdedup.storage.write import spill as spill_module
from reqdedup.storage.write.arrange import (
    NUM_SHUFFLE_PARTITIONS,
    DealRows,
    gather,
    in_arrival_order,
    in_random_order,
    in_request_order,
)
from reqdedup.storage.write.spill import Spill
from tests.storage.small_log import log_schema, make_log, to_batch

EXTREMES = st.sampled_from([0, 1, -1, 2**31, -(2**63), 2**63 - 1])
SMALL = EngagementSchema(
    (
        Column(name="user_id", dtype="int64", level=Level.KEY),
        Column(name="request_id", dtype="int64", level=Level.KEY),
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="name", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="history", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="click", dtype="int32", level=Level.LABEL, nullable=True),
    )
)
requests = st.fixed_dictionaries(
    {
        "ts": st.integers(-(10**15), 10**15),
        "name": st.none() | st.text(max_size=3),
        "history": st.lists(EXTREMES, max_size=5),
        "rows": st.lists(st.tuples(EXTREMES, st.sampled_from([None, 0, 1])), min_size=1, max_size=9),
    }
)
logs = st.dictionaries(st.tuples(EXTREMES, EXTREMES), requests, max_size=8)


def rows_of_log(log: dict) -> list[tuple]:
    return [
        (user, request, item, one["ts"], one["name"], np.array(one["history"], "<i8").tobytes(), click)
        for (user, request), one in log.items()
        for item, click in one["rows"]
    ]


def batch_of(rows: list[tuple]) -> pa.RecordBatch:
    columns = list(zip(*rows))
    types = [pa.int64()] * 3 + [pa.timestamp("us", tz="UTC"), pa.string(), pa.binary(), pa.int32()]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, types)]
    arrays[5] = arrays[5].dictionary_encode()
    return pa.RecordBatch.from_arrays(arrays, names=list(SMALL.names))


def plain(batch: pa.RecordBatch) -> list[tuple]:
    columns = dict(zip(SMALL.names, batch.columns))
    columns["request_ts"] = columns["request_ts"].cast(pa.int64())
    return list(zip(*(column.to_pylist() for column in columns.values())))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    log=logs,
    seed=st.integers(0, 2**32 - 1),
    pieces=st.integers(1, 5),
    max_rows=st.integers(1, 12),
    small_rows=st.sampled_from([1, 9, 10**6]),
    flush_bytes=st.sampled_from([1, 1_000, 10**6]),
    hold_bytes=st.sampled_from([0, 1_000, 10**6]),
)
def test_any_log_comes_back_in_request_order_whatever_the_order_of_arrival(
    log, seed, pieces, max_rows, small_rows, flush_bytes, hold_bytes
):
    rows = rows_of_log(log)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    made = Spill(SMALL, lambda users, request_ts: users % 3, hold_bytes=hold_bytes)
    with pytest.MonkeyPatch.context() as patch, made as spill:
        patch.setattr(spill_module, "SMALL_ROWS", small_rows)
        patch.setattr(spill_module, "FLUSH_BYTES", flush_bytes)
        for piece in np.array_split(shuffled, pieces):
            if len(piece):
                spill.add(batch_of([rows[i] for i in piece]))
        spill.finish()
        for partition in spill.partitions():
            batches = list(in_request_order(spill, partition, max_rows=max_rows, max_column_bytes=100))
            found = [row for batch in batches for row in plain(batch)]
            wanted = sorted((row for row in rows if row[0] % 3 == partition), key=lambda row: row[:3])
            assert [row[:3] for row in found] == [row[:3] for row in wanted]
            assert sorted(map(repr, found)) == sorted(map(repr, wanted))
            for batch in batches:
                keys = set(zip(batch.column("user_id").to_pylist(), batch.column("request_id").to_pylist()))
                assert batch.num_rows <= max_rows or len(keys) == 1
                array = batch.column("history")
                assert len(set(array.dictionary.to_pylist())) == len(array.dictionary)
                assert array.dictionary.nbytes <= 100 + 8 * len(array.dictionary) or len(keys) == 1


def test_random_order_is_a_permutation_that_keeps_rows_together():
    batch = to_batch(make_log(num_users=25))
    deal = DealRows(3)
    with Spill(log_schema(), lambda users, ts: np.zeros(len(users), np.int64), rows_partition_of=deal) as spill:
        for start in range(0, batch.num_rows, 50):
            spill.add(batch.slice(start, 50))
        spill.finish()
        assert len(spill.partitions()) == NUM_SHUFFLE_PARTITIONS
        found = pa.Table.from_batches(in_random_order(spill, seed=3, max_fat_bytes=20_000)).to_pylist()
    assert sorted(map(repr, found)) == sorted(map(repr, batch.to_pylist()))
    assert found != batch.to_pylist()


def test_arrival_order_is_kept_and_cut_where_dictionaries_grow():
    batch = to_batch(make_log(num_users=25))
    with Spill(log_schema(), lambda users, ts: np.zeros(len(users), np.int64)) as spill:
        for start in range(0, batch.num_rows, 33):
            spill.add(batch.slice(start, 33))
        spill.finish()
        batches = list(in_arrival_order(spill, 0, max_rows=100, max_column_bytes=1_000))
    assert pa.Table.from_batches(batches).to_pylist() == batch.to_pylist()
    assert max(batch.num_rows for batch in batches) <= 100
    for one in batches:
        array = one.column("history_ts")
        assert pa.compute.sum(pa.compute.binary_length(array.dictionary)).as_py() <= 1_000 or len(array.dictionary) == 1


def test_a_small_dictionary_that_fans_out_to_much_is_spilled_in_pieces(monkeypatch):
    """Many requests may share one value; laid out per request it may pass any limit, 2^31 bytes included."""
    monkeypatch.setattr(spill_module, "FLUSH_BYTES", 10_000)
    rows = [(1, request, 0, 0, None, np.arange(100, dtype="<i8").tobytes(), 1) for request in range(200)]
    with Spill(SMALL, lambda users, request_ts: np.zeros(len(users), np.int64)) as spill:
        spill.add(batch_of(rows))
        spill.finish()
        sizes = [batch.column("history").nbytes for batch in spill.requests(0)]
        assert len(sizes) > 10
        assert max(sizes) < 25_000
        (batch,) = in_request_order(spill, 0, max_rows=10**6, max_column_bytes=10**9)
        assert len(batch.column("history").dictionary) == 1, "and stored once all the same"


def test_the_spill_file_has_no_name_and_frees_its_space(tmp_path):
    with Spill(SMALL, lambda users, request_ts: users * 0, directory=tmp_path) as spill:
        spill.add(batch_of([(1, 1, 1, 0, "a", b"", None)]))
        spill.finish()
        assert spill.num_bytes > 0
        assert not list(Path(tmp_path).iterdir())
        with pytest.raises(ValueError, match="user_id"):
            spill.add(batch_of([(1, 1, 1, 0, "a", b"", None)]).drop_columns(["user_id"]))


@given(sizes=st.lists(st.integers(0, 10), max_size=30), more=st.data(), limit=st.integers(0, 20))
def test_greedy_ranges_against_a_loop(sizes, more, limit):
    others = more.draw(st.lists(st.integers(0, 10), min_size=len(sizes), max_size=len(sizes)))
    ranges, start = [], 0
    for end in range(1, len(sizes) + 1):
        fits = sum(sizes[start:end]) <= limit and sum(others[start:end]) <= 15
        if not fits and end - 1 > start:
            ranges.append((start, end - 1))
            start = end - 1
    if sizes:
        ranges.append((start, len(sizes)))
    assert greedy_ranges((limit, np.array(sizes, np.int64)), (15, np.array(others, np.int64))) == ranges


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), data=st.data())
def test_gather_against_a_list(lengths, data):
    values = [f"{i}-{j}" for i, length in enumerate(lengths) for j in range(length)]
    starts = np.cumsum([0, *lengths])
    batches = [pa.record_batch({"x": pa.array(values[a:b])}) for a, b in pairwise(starts)]
    positions = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=12))
    assert gather(batches, np.array(positions, np.int64), "x").to_pylist() == [values[p] for p in positions]


@pytest.mark.parametrize("max_chunk_bytes", [1, 100, 700, 2**20])
def test_fat_rows_are_the_expanded_rows_however_chunks_are_reused(monkeypatch, max_chunk_bytes):
    monkeypatch.setattr(form, "MAX_CHUNK_BYTES", max_chunk_bytes)
    batch = to_batch(make_log(num_users=12))
    for one in (batch, batch.slice(5, 40), batch.take(pa.array(np.random.default_rng(0).permutation(batch.num_rows)))):
        fat = form.fat_rows(one, log_schema())
        assert fat.to_pylist() == expand_to_lists(one, log_schema()).to_pylist()
        for column in log_schema().blobs:
            array = one.column(column.name)
            assert (
                fat.column(column.name).to_pylist()
                == lists_from_blobs(array.dictionary, column).take(array.indices).to_pylist()
            )


def test_long_lists_are_laid_down_a_few_times_only():
    column = Column(name="x", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE)
    values = pa.array([np.arange(10_000, dtype="<i8").tobytes()])
    before = pa.total_allocated_bytes()
    lists = form._repeated_lists(pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), values), column)
    assert len(lists) == 5_000
    assert pa.total_allocated_bytes() - before < 2_000_000, "400 MB of rows"


def test_numbers_of_parts_are_put_together_once_however_many_batches_a_bucket_has(monkeypatch):
    monkeypatch.setattr(spill_module, "FLUSH_BYTES", 1)
    monkeypatch.setattr(spill_module, "SMALL_ROWS", 1)
    calls: list[str] = []
    numbers = arrange._numbers
    monkeypatch.setattr(arrange, "_numbers", lambda batches, name: calls.append(name) or numbers(batches, name))
    requests = make_log(num_users=10)
    with Spill(log_schema(), lambda users, request_ts: np.zeros(len(users), np.int64)) as spill:
        for request in requests:
            spill.add(to_batch([request]))
        spill.finish()
        assert len(spill.row_batches(0)) == len(requests) > 10
        rows = sum(one.num_rows for one in in_request_order(spill, 0, max_rows=2**20, max_column_bytes=2**20))
    assert rows == sum(len(request["items"]) for request in requests)
    assert calls == [spill_module.PART]
