"""Bucket joins of written tables against a dictionary in plain Python, for whatever shapes hypothesis thinks of."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reqdedup.dedup.encoding import check_deduplicated, deduplicated_schema
from reqdedup.dedup.streams import REQUEST_KEY, ROW_KEY
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage import Layout, TableSource, bucket_join, create_table, write
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.read import buckets

ROW_GROUP_ROWS = 5
KEYS = (
    *(Column(name=name, dtype="int64", level=Level.KEY) for name in ROW_KEY),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
)
LEFT = EngagementSchema(
    (
        *KEYS,
        Column(name="city", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="history", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="score", dtype="float64", level=Level.ITEM, nullable=True),
    )
)
RIGHT = EngagementSchema(
    (
        *KEYS,
        Column(name="segment", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="recent", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="label", dtype="int32", level=Level.LABEL, nullable=True),
        Column(name="note", dtype="string", level=Level.ITEM, nullable=True),
    )
)
ADDED = {REQUEST_KEY: ["segment", "recent"], ROW_KEY: ["segment", "recent", "label", "note"]}

text = st.one_of(st.none(), st.sampled_from(["", "Ж用户", "e\u0301", "🙂"]), st.text(max_size=4))
events = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
ids = st.one_of(st.integers(0, 3), st.sampled_from([-(2**63), 2**63 - 1]))
items = st.lists(st.tuples(ids, st.one_of(st.none(), st.integers(0, 9)), text), min_size=1, max_size=12)
sides = st.dictionaries(st.tuples(ids, ids), st.tuples(text, events, items), max_size=8)
LARGE = {
    (0, 0): ("a", [], [(item, item, None) for item in range(4 * ROW_GROUP_ROWS)]),
    (0, 1): (None, [1], [(0, 0, "")]),
}
SMALL = {(0, 0): (None, [2], [(item, None, "ü") for item in range(1, 4 * ROW_GROUP_ROWS, 3)])}


def batch(side: dict, schema: EngagementSchema) -> pa.RecordBatch:
    """The rows of {(user, request): (text, events, [(item, number, text)])}."""
    rows = [(*key, *item, request) for request, key in enumerate(side) for item in side[key][2]]
    user, request, item, number, note, of = (list(column) for column in zip(*rows, strict=True))
    requests = list(side.values())
    blobs = pa.array([np.array(each[1], "<i8").tobytes() for each in requests], pa.binary())
    values = {
        "user_id": user,
        "request_id": request,
        "item_id": item,
        "request_ts": [0] * len(rows),
        "city": [requests[row][0] for row in of],
        "segment": [requests[row][0] for row in of],
        "score": number,
        "label": number,
        "note": note,
    }
    sequence = pa.DictionaryArray.from_arrays(pa.array(of, pa.int32()), blobs)
    fields = deduplicated_schema(schema)
    arrays = [
        sequence if field.name in ("history", "recent") else pa.array(values[field.name], field.type)
        for field in fields
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=fields)


def rows_of(batches: list[pa.RecordBatch]) -> list[tuple]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize("on", [REQUEST_KEY, ROW_KEY])
def test_joined_rows_are_those_of_a_dictionary(catalog, monkeypatch, on, how):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", ROW_GROUP_ROWS)
    monkeypatch.setattr(buckets, "ROWS_TOGETHER", 3 * ROW_GROUP_ROWS)
    numbers = itertools.count()

    def table(side: dict, schema: EngagementSchema, num_buckets: int):
        name = f"lake.t{next(numbers)}"
        created = create_table(catalog, name, schema, Layout.BY_REQUEST, num_buckets=num_buckets)
        if side:
            write(created, [batch(side, schema)])
        return created

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        left=sides,
        right=sides,
        num_buckets=st.sampled_from([(1, 1), (2, 2), (1, 4), (4, 2)]),
        threads=st.integers(1, 2),
    )
    @example(left=LARGE, right=SMALL, num_buckets=(2, 1), threads=1)
    @example(left=SMALL, right=LARGE, num_buckets=(1, 2), threads=2)
    @example(left={}, right=SMALL, num_buckets=(1, 1), threads=1)
    @example(left=LARGE, right={}, num_buckets=(2, 2), threads=1)
    def check(left, right, num_buckets, threads):
        left_table, right_table = table(left, LEFT, num_buckets[0]), table(right, RIGHT, num_buckets[1])
        join = bucket_join(
            left_table, right_table, on=on, how=how, columns=ADDED[on], duplicates="first", threads=threads
        )
        joined = list(join.batches())
        depth, names = len(on), RIGHT.names
        first: dict[tuple, tuple] = {}
        for row in rows_of(list(TableSource(right_table).batches())):
            first.setdefault(row[:depth], tuple(row[names.index(name)] for name in ADDED[on]))
        missing = tuple(b"" if name == "recent" else None for name in ADDED[on])
        left_rows = rows_of([batch(left, LEFT)]) if left else []
        expected = [
            (*row, *first.get(row[:depth], missing)) for row in left_rows if how == "left" or row[:depth] in first
        ]
        assert Counter(rows_of(joined)) == Counter(expected)
        for each in joined:
            check_deduplicated(each, join.schema)
            each.validate(full=True)
            keys = list(zip(*(each[name].to_pylist() for name in REQUEST_KEY)))
            assert keys == sorted(keys)
        matched = sum(row[:depth] in first for row in left_rows)
        assert (join.counts.left_rows, join.counts.matched_rows) == (len(left_rows), matched)
        assert join.counts.unused_right_keys == len(set(first) - {row[:depth] for row in left_rows})
        num_right = sum(len(request[2]) for request in right.values())
        assert join.counts.duplicate_right_keys == num_right - len(first)

    check()
