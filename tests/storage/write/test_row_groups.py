"""Row groups end by bytes: of distinct values and of scalars; whatever the shape of the requests, all rows come back."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from reqdedup.schema import Column, EngagementSchema, Level
from reqdedup.storage import Layout, TableSource, compact, create_table, write
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.iceberg.settings import ROWS_BEFORE, default_settings
from tests.storage.small_log import log_schema, make_log, make_request, to_batches
from tests.storage.tables import files_of, rows_of


def request_of(user: int, *, events: int, rows: int, seed: int = 0) -> dict[str, object]:
    history = np.random.default_rng(seed).integers(0, 9, (events, 3))
    return make_request(np.random.default_rng(seed), user, user + 100, fan_out=rows, events=history, day=0)


SHAPES = {
    "one row": [request_of(1, events=1, rows=1)],
    "all rows in one request": [request_of(1, events=40, rows=300)],
    "one huge request among small ones": [request_of(u, events=u, rows=400 if u == 3 else 2) for u in range(6)],
    "no histories": [request_of(user, events=0, rows=3) for user in range(20)],
    "one history for all": [request_of(user, events=3, rows=2) for user in range(20)],
}


MANY_ROW_GROUPS = {"all rows in one request", "one huge request among small ones"}
"""Shapes whose rows in the order of arrival take seconds."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        pytest.param(layout, shape, marks=[pytest.mark.soak] if is_arrival and shape in MANY_ROW_GROUPS else [])
        for layout, is_arrival in (
            (Layout.BY_REQUEST, False),
            (Layout.SORTED_LARGE_PAGES, False),
            (Layout.ARRIVAL, True),
        )
        for shape in SHAPES
    ],
)
def test_requests_of_any_shape_come_back_in_small_row_groups_and_large(catalog, monkeypatch, shape, layout):
    batches = to_batches(SHAPES[shape])
    for number, (rows, num_bytes) in enumerate([(2**20, 2**24), (7, 64)]):
        monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", rows)
        monkeypatch.setattr(write_settings, "ROW_GROUP_BYTES", num_bytes)
        monkeypatch.setattr(write_settings, "MIN_ROW_GROUP_ROWS", 1)
        table = create_table(catalog, f"test.t{number}", log_schema(), layout, num_buckets=1)
        write(table, batches)
        assert rows_of(TableSource(table).batches()) == rows_of(batches)


def test_rows_of_a_row_group_follow_the_bytes_of_a_row():
    narrow = log_schema()
    more = [Column(name=f"number_{i}", dtype="float64", level=Level.ITEM) for i in range(2_000)]
    wide = narrow.with_columns(*more)
    rows = [default_settings(Layout.BY_REQUEST, schema).row_group_rows for schema in (narrow, wide)]
    assert rows[0] > 100_000
    assert rows[1] == write_settings.MIN_ROW_GROUP_ROWS
    without = EngagementSchema(tuple(column for column in narrow.columns if not column.is_blob))
    assert default_settings(Layout.BY_REQUEST, without).row_group_rows == write_settings.SCALAR_ROW_GROUP_ROWS


@pytest.mark.slow
def test_short_histories_share_one_row_group_and_long_ones_come_in_several(catalog, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_BYTES", 2**18)
    monkeypatch.setattr(write_settings, "MIN_ROW_GROUP_ROWS", 1)
    short = [request_of(user, events=3, rows=9, seed=user) for user in range(100)]
    long = [request_of(user, events=3_000, rows=1, seed=user) for user in range(16)]
    for name, log in (("short", short), ("long", long)):
        table = create_table(catalog, f"test.{name}", log_schema(), Layout.BY_REQUEST, num_buckets=1)
        write(table, to_batches(log))
        footer = pq.read_metadata(files_of(table)[0])
        if name == "short":
            assert footer.num_row_groups == 1
        else:
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            largest = max(group.column(i).total_uncompressed_size for group in groups for i in range(4, 8))
            assert footer.num_row_groups > 1
            assert largest <= write_settings.ROW_GROUP_BYTES + 2**15


@pytest.mark.slow
def test_a_table_of_before_keeps_its_row_groups_until_a_rewrite_and_a_choice_stays(catalog):
    chosen = {"write.parquet.row-group-limit": "500", "write.parquet.row-group-size-bytes": str(128 * 2**20)}
    for name, before in (("old", ROWS_BEFORE), ("chosen", chosen)):
        table = create_table(catalog, f"test.{name}", log_schema(), Layout.BY_REQUEST, num_buckets=1)
        with table.transaction() as transaction:
            transaction.set_properties(before)
        for seed in (0, 1):
            write(table, to_batches(make_log(num_users=9, seed=seed)[seed::2]), mode="append")
        assert {key: table.refresh().properties[key] for key in before} == before
        rows = rows_of(TableSource(table).batches())
        compact(table, force=True)
        now = default_settings(Layout.BY_REQUEST, log_schema()).properties() if name == "old" else before
        assert {key: table.refresh().properties[key] for key in before} == {key: now[key] for key in before}
        assert rows_of(TableSource(table).batches()) == rows
