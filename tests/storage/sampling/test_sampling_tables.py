"""Samples of real tables and joins: the same users whatever the physical form, and no file read in vain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog

from reqdedup.dedup.encoding import BLOB_TYPE, check_deduplicated
from reqdedup.storage import (
    Activity,
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    compact,
    create_feature_table,
    create_table,
    recent_event_counts,
    sample_users,
    write,
)
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.iceberg.layout import buckets_of
from tests.storage.small_log import log_schema, make_log, to_batch, to_batches

LOG = make_log(num_users=60, seed=6, max_requests=6)
SETTINGS = {
    "rate": {"requests <= 2": 0.5, "*": 0.8},
    "strata": Activity(bounds=(2,)),
    "max_requests_per_user": 3,
    "seed": 5,
}


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 60)


def make_table(catalog: Catalog, layout: Layout, *, num_buckets: int = 4):
    table = create_table(catalog, f"lake.{layout.value}", log_schema(), layout, num_buckets=num_buckets)
    write(table, to_batches(LOG))
    return table


def plain(batches) -> pa.Table:
    """Rows in key order, blobs as bytes."""
    table = pa.Table.from_batches(batches)
    columns = [c.cast(pa.binary()) if c.type == BLOB_TYPE else c for c in table.columns]
    keys = [(name, "ascending") for name in ("user_id", "request_id", "item_id")]
    return pa.table(columns, names=table.column_names).sort_by(keys)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.SORTED, Layout.SHUFFLED, Layout.ARRIVAL])
def test_every_layout_gives_the_same_sample(catalog, layout):
    expected = sample_users(make_table(catalog, Layout.BY_REQUEST), **SETTINGS)
    found = sample_users(make_table(catalog, layout), **SETTINGS)
    assert found.user_ids.equals(expected.user_ids)
    assert 0 < len(found.user_ids) < 60
    assert found.report.to_pylist() == expected.report.to_pylist()
    assert plain(found.batches()).to_pylist() == plain(expected.batches()).to_pylist()


@pytest.mark.slow
def test_a_join_is_sampled_like_its_table_and_counted_whole(catalog):
    main = make_table(catalog, Layout.BY_REQUEST)
    feature = recent_event_counts(3 * 24 * 3600)
    side = create_feature_table(catalog, "lake.features", main, [feature.column])
    add_request_feature(main, side, feature)
    join = bucket_join(main, side, threads=2)
    sample, alone = sample_users(join, **SETTINGS), sample_users(main, **SETTINGS)
    assert sample.schema == join.schema
    assert sample.user_ids.equals(alone.user_ids)
    assert sample.report.to_pylist() == alone.report.to_pylist()
    batches = list(sample.batches())
    for batch in batches:
        check_deduplicated(batch, sample.schema)
    assert plain(batches).drop_columns(["recent_event_count"]).to_pylist() == plain(alone.batches()).to_pylist()
    assert join.counts.left_rows == TableSource(main).num_rows
    copy = create_table(catalog, "lake.sample", sample.schema, Layout.BY_REQUEST, num_buckets=4)
    report = write(copy, sample.batches())
    total = sample.report.to_pylist()[-1]
    assert (report.users, report.requests, report.rows) == tuple(
        total[f"{n}_after"] for n in ("users", "requests", "rows")
    )
    assert plain(TableSource(copy).batches()).to_pylist() == plain(batches).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("joined", [False, True])
def test_files_without_sampled_users_are_not_read(catalog, joined):
    main = make_table(catalog, Layout.BY_REQUEST, num_buckets=16)
    source: object = main
    if joined:
        feature = recent_event_counts(60)
        side = create_feature_table(catalog, "lake.features", main, [feature.column])
        add_request_feature(main, side, feature)
        source = bucket_join(main, side)
    sample = sample_users(source, target=3)
    before = plain(sample.batches()).to_pylist()
    buckets = set(buckets_of(np.asarray(sample.user_ids), 16).tolist())
    tables = [main, side] if joined else [main]
    for table in tables:
        gone = [t.file for t in table.scan().plan_files() if t.file.partition[0] not in buckets]
        assert len(gone) >= 10
        for file in gone:
            Path(file.file_path.removeprefix("file://")).unlink()
    assert plain(sample.batches()).to_pylist() == before
    assert set(plain(sample.batches())["user_id"].to_pylist()) == set(sample.user_ids.to_pylist())
    with pytest.raises(FileNotFoundError):
        list(TableSource(main).batches())


@pytest.mark.slow
def test_the_keys_alone_decide_the_sample(catalog, monkeypatch):
    main = make_table(catalog, Layout.BY_REQUEST)
    asked = []
    batches = TableSource.batches

    def spy(self, columns=None, users=None):
        asked.append(columns)
        return batches(self, columns, users)

    monkeypatch.setattr(TableSource, "batches", spy)
    sample_users(main, rate=0.5, max_requests_per_user=2)
    sample_users(main, rate=0.5, strata="device", keep="latest", max_requests_per_user=2)
    assert asked == [
        ["user_id", "request_id"],
        ["user_id", "request_id"],
        ["user_id", "request_id", "request_ts", "device"],
        ["user_id", "request_id", "request_ts"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout.BY_REQUEST, Layout.SORTED])
def test_a_request_that_came_in_two_appends_counts_once(catalog, layout):
    """The same sample before and after compaction, of users whose requests are split over files."""
    whole = to_batch(make_log(num_users=20, seed=3))
    table = create_table(catalog, "lake.split", log_schema(), layout, num_buckets=2)
    for start in (0, 1):
        write(table, [whole.take(pa.array(range(start, whole.num_rows, 2)))], mode="append")

    def drawn() -> tuple[list[int], list[dict]]:
        settings = {"rate": {"requests <= 2": 1.0, "requests > 2": 0.5}, "strata": [Activity(bounds=(2,))]}
        sample = sample_users(table.refresh(), **settings, max_requests_per_user=2)
        return sample.user_ids.to_pylist(), sample.report.to_pylist()

    before = drawn()
    compact(table)
    assert before == drawn()
    requests = len({*zip(whole["user_id"].to_pylist(), whole["request_id"].to_pylist())})
    assert before[1][-1]["requests_before"] == requests
