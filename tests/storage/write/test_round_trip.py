"""Any log, in batches of any size and order, comes back row for row from every layout; a plain list of rows is the reference."""

from __future__ import annotations

import struct
from itertools import count

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.dedup.encoding import deduplicated_schema
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, TableSource, compact, create_table, write
from reqdedup.storage.iceberg import settings as write_settings

LOG = EngagementSchema(
    (
        *(Column(name=name, dtype="int64", level=Level.KEY) for name in ("user_id", "request_id", "item_id")),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="history_share", dtype="float32", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="embedding", dtype="float64", level=Level.REQUEST, kind=Kind.VECTOR, width=2),
        Column(name="country", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="score", dtype="float32", level=Level.REQUEST, nullable=True),
        Column(name="title", dtype="string", level=Level.ITEM, nullable=True),
        Column(name="price", dtype="float64", level=Level.ITEM, nullable=True),
        Column(name="is_new", dtype="bool", level=Level.ITEM, nullable=True),
        Column(name="click", dtype="int32", level=Level.LABEL, nullable=True),
    )
)
ids = st.sampled_from([0, 1, -1, 7, 2**31, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
floats = st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.5]) | st.floats(width=32)
texts = st.none() | st.sampled_from(["", "Ж用户", "\U0010ffff" * 20, "a\x00b"]) | st.text(max_size=20)
times_us = st.sampled_from([0, -1, 86_400_000_000, 1_760_000_000_000_000]) | st.integers(-(10**15), 2 * 10**15)
events = st.lists(st.tuples(ids, floats), max_size=4)
doubles = st.tuples(floats, st.floats())
rows = st.tuples(ids, texts, st.none() | st.floats(), st.none() | st.booleans(), st.none() | st.integers(0, 1))
requests = st.tuples(times_us, events, doubles, texts, st.none() | floats, st.lists(rows, min_size=1, max_size=6))
logs = st.dictionaries(st.tuples(ids, ids), requests, min_size=1, max_size=6)

numbers = count()


def rows_of(log: dict) -> list[tuple]:
    """The fat rows, sequences as their little-endian bytes."""
    found = []
    for (user, request), (time, history, vector, country, score, items) in log.items():
        blobs = (
            b"".join(struct.pack("<q", item) for item, _ in history),
            b"".join(struct.pack("<f", share) for _, share in history),
            struct.pack("<2d", *vector),
        )
        found += [(user, request, item[0], time, *blobs, country, score, *item[1:]) for item in items]
    return found


def batch_of(rows: list[tuple]) -> pa.RecordBatch:
    arrays = []
    for field, values in zip(deduplicated_schema(LOG), zip(*rows)):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        array = pa.array(values, kind)
        arrays.append(array.dictionary_encode() if pa.types.is_dictionary(field.type) else array)
    return pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(LOG))


def rows_in(source: TableSource) -> list[tuple]:
    found: list[tuple] = []
    for batch in source.batches():
        columns = [c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in batch.columns]
        found += zip(*(column.to_pylist() for column in columns))
    return found


def canonical(rows: list[tuple]) -> list[str]:
    return sorted(map(repr, rows))  # by text: NaN is itself, and -0.0 is not 0.0


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    log=logs, seed=st.integers(0, 99), pieces=st.integers(1, 7), appended=st.booleans(), group_rows=st.integers(1, 9)
)
def test_any_log_in_batches_of_any_size_and_order_comes_back(
    catalog, layout, monkeypatch, log, seed, pieces, appended, group_rows
):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", group_rows)
    everything = rows_of(log)
    later = {key for number, key in enumerate(log) if appended and number % 2}
    table = create_table(catalog, f"lake.t{next(numbers)}", LOG, layout, num_buckets=2)
    for mode, part in (
        ("replace", [row for row in everything if row[:2] not in later]),
        ("append", [row for row in everything if row[:2] in later]),
    ):
        order = np.random.default_rng(seed).permutation(len(part))
        batches = [batch_of([part[i] for i in piece]) for piece in np.array_split(order, pieces) if len(piece)]
        write(table, batches, mode=mode)
    assert canonical(rows_in(TableSource(table))) == canonical(everything)
    users = sorted({user for user, _ in log})[:2]
    found = [
        row for batch in TableSource(table).batches(["user_id"], users=np.array(users)) for row in batch["user_id"]
    ]
    assert len(found) == sum(row[0] in users for row in everything)
    if not layout.is_bucketed:
        return
    compact(table)
    source = TableSource(table)
    assert canonical(rows_in(source)) == canonical(everything)
    for bucket in range(2):
        groups = [source.read_row_group(group) for group in source.row_groups() if group.bucket == bucket]
        keys = [key for batch in groups for key in zip(*(batch[name].to_pylist() for name in LOG.names[:3]))]
        assert keys == sorted(keys)
        of_group = [{key[:2] for key in zip(*(batch[name].to_pylist() for name in LOG.names[:3]))} for batch in groups]
        assert sum(map(len, of_group)) == len(set().union(*of_group)), "every request in one row group"
        if layout is Layout.BY_REQUEST:
            assert all(batch.num_rows <= group_rows or len(keys) == 1 for batch, keys in zip(groups, of_group))
