"""Rows that lie in order are written without a spill, into the same bytes as with one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.dedup.rows import concat, take_rows
from reqdedup.dedup.streams import ROW_KEY, key_columns, merge_streams
from reqdedup.schema import Column, Level
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    write,
)
from reqdedup.storage.iceberg.commit import StagedFiles
from reqdedup.storage.measure import checks
from reqdedup.storage.write.in_order import InOrder, row_groups_in_order
from reqdedup.storage.write.writer import write_in_order, write_rows
from tests.storage.small_log import log_schema, make_log, to_batch, to_batches

SCHEMA = log_schema()
COUNT = Column(name="visits", dtype="int32", level=Level.REQUEST, nullable=True)


def in_order(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    whole = concat(batches)
    return take_rows(whole, np.lexsort(key_columns(whole, ROW_KEY)[::-1]))


def hashes(files: StagedFiles) -> list[str]:
    paths = [urlparse(data_file.file_path).path for data_file in files.data_files]
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED, Layout.SORTED_LARGE_PAGES], ids=lambda x: x.value)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_files_are_those_of_the_spill_bit_for_bit(catalog: Catalog, layout: Layout, size: int) -> None:
    catalog.create_namespace("n")
    table = create_table(catalog, "n.t", SCHEMA, layout, num_buckets=1)
    with table.transaction() as transaction:
        transaction.set_properties({"write.parquet.row-group-limit": "60", "write.target-file-size-bytes": "30000"})
    halved = in_order(to_batches(make_log(num_users=9, seed=3)))  # requests that came in two appends
    is_first = np.arange(halved.num_rows) % 2 == 0
    days = [in_order(to_batches(make_log(num_users=9, seed=seed))) for seed in (1, 2)]
    days += [take_rows(halved, is_first), take_rows(halved, ~is_first)]
    streams = [[day.slice(start, size) for start in range(0, day.num_rows, size)] for day in days]
    with StagedFiles(table) as spilled, StagedFiles(table) as ordered:
        *_, done = write_in_order(ordered, [(0, merge_streams(streams, ROW_KEY, "n.t"))], SCHEMA)
        assert write_rows(spilled, days, SCHEMA) == done
        assert hashes(spilled) == hashes(ordered)
        ordered.verify(num_rows=sum(day.num_rows for day in days), num_requests=None)


@pytest.mark.parametrize(("max_rows", "max_bytes"), [(1, 10**6), (5, 10**6), (40, 10**6), (10**6, 300), (10**6, 10**6)])
def test_row_groups_are_cut_between_requests_and_hold_each_blob_once(max_rows: int, max_bytes: int) -> None:
    day = in_order(to_batches(make_log(num_users=12, seed=5)))
    pieces = [day.slice(start, 3) for start in range(0, day.num_rows, 3)]
    groups = list(row_groups_in_order(pieces, SCHEMA, max_rows=max_rows, max_column_bytes=max_bytes))
    assert sum(group.num_rows for group in groups) == day.num_rows
    requests = [set(zip(*(column.tolist() for column in key_columns(group, ROW_KEY[:2])))) for group in groups]
    assert sum(map(len, requests)) == len(set().union(*requests))
    for group, there in zip(groups, requests):
        assert group.num_rows <= max_rows or len(there) == 1
        for column in SCHEMA.blobs:
            values = group.column(column.name).dictionary
            assert len(values.unique()) == len(values)
    for name in SCHEMA.names:
        assert [value for group in groups for value in group.column(name).to_pylist()] == day.column(name).to_pylist()


def test_rows_out_of_order_and_requests_that_disagree_are_refused() -> None:
    day = in_order(to_batches(make_log(num_users=5, seed=6)))
    with pytest.raises(ValueError, match=r"rows in \(user_id, request_id, item_id\) order required"):
        list(row_groups_in_order([day, day], SCHEMA, max_rows=10**6, max_column_bytes=10**6))
    log = make_log(num_users=1, seed=7)[:1]
    other = [{**log[0], "device": log[0]["device"] + 1}]
    both = in_order([to_batch(log), to_batch(other)])
    with pytest.raises(ValueError, match="one value per request required"):
        list(row_groups_in_order([both], SCHEMA, max_rows=10**6, max_column_bytes=10**6))


@pytest.mark.slow
def test_a_join_is_written_in_order_as_it_is_written_otherwise(catalog: Catalog) -> None:
    catalog.create_namespace("n")
    main = create_table(catalog, "n.main", SCHEMA, Layout.BY_REQUEST, num_buckets=4)
    for seed in (1, 2):
        write(main, to_batches(make_log(num_users=15, seed=seed, mean_fan_out=150)), mode="append")
    side = create_feature_table(catalog, "n.side", main, [COUNT])
    add_request_feature(main, side, lambda requests: list(range(requests.num_rows)))
    joined = bucket_join(main, side)
    reports = {}
    for name, batches in (("spilled", joined.batches()), ("ordered", InOrder(joined.batches()))):
        table = create_table(catalog, f"n.{name}", joined.schema, Layout.BY_REQUEST, num_buckets=4)
        reports[name] = write(table, batches), checks.content_checksum(TableSource(table))
    (spilled, there), (ordered, here) = reports["spilled"], reports["ordered"]
    assert there == here
    assert replace(spilled, seconds=0, spill_bytes=0, snapshot_id=0) == replace(ordered, seconds=0, snapshot_id=0)
    assert ordered.spill_bytes == 0 < spilled.spill_bytes
    other = create_table(catalog, "n.other", joined.schema, Layout.BY_REQUEST, num_buckets=8)
    with pytest.raises(ValueError, match="batches of one bucket of 8 each required"):
        write(other, InOrder(joined.batches()))
    once = list(joined.batches())
    with pytest.raises(ValueError, match=r"but bucket \d comes again"):
        write(table, InOrder([*once, once[0]]))
    assert TableSource(table).num_rows == ordered.rows
