"""Features without keys: they follow the requests they were made for, or are refused; never a row of another request."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    realign,
    write,
)
from reqdedup.storage.features import values as feature_values
from reqdedup.storage.iceberg import settings as write_settings
from reqdedup.storage.read import buckets
from reqdedup.storage.read.feature_positions import FOOTER_KEY, key_hash
from tests.storage.feature_tables import (
    COUNT,
    LOG,
    NUM_BUCKETS,
    SEQUENCE,
    USERS,
    constant,
    file_of_bucket,
    main_table,
    of_request,
    values,
)
from tests.storage.small_log import log_schema, make_log, make_request, to_batch, to_batches

EXPECTED = {request["request_id"]: request["request_id"] for request in LOG}


def expire_all_but_the_newest(table):
    current = table.refresh().current_snapshot().snapshot_id
    table.maintenance.expire_snapshots().by_ids(
        [s.snapshot_id for s in table.snapshots() if s.snapshot_id != current]
    ).commit()
    table.refresh()


@pytest.fixture
def main(catalog, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 30)
    monkeypatch.setattr(buckets, "ROWS_TOGETHER", 0)
    monkeypatch.setattr(feature_values, "ROW_GROUP_REQUESTS", 5)
    return main_table(catalog)


@pytest.fixture
def side(catalog, main):
    side = create_feature_table(catalog, "lake.f", main, [COUNT, SEQUENCE], by_position=True)
    both = lambda r: {"count": of_request(r), "sequence": [[i, 1] for i in r["request_id"].to_pylist()]}  # noqa: E731
    add_request_feature(main, side, both)
    return side


def test_files_hold_the_values_alone_and_the_footer_says_whose_they_are(main, side):
    assert side.spec().fields[0].name == "user_bucket"
    for bucket, path in file_of_bucket(side).items():
        file = pq.ParquetFile(path.removeprefix("file://"))
        assert file.schema_arrow.names == ["count", "sequence"]
        entry = json.loads(file.metadata.metadata[FOOTER_KEY.encode()])
        assert entry["main_snapshot"] == main.current_snapshot().snapshot_id
        assert len(entry["key_hashes"]) == file.num_row_groups > 1
        in_main = TableSource(main)
        keys = [
            in_main.read_row_group(g, ["user_id", "request_id"]) for g in in_main.row_groups() if g.bucket == bucket
        ]
        requests = sorted({key for batch in keys for key in zip(*(c.to_pylist() for c in batch.columns))})
        assert file.read()["count"].to_pylist() == [request for _, request in requests]
        first = np.array(requests[: file.metadata.row_group(0).num_rows])
        assert entry["key_hashes"][0] == key_hash(first[:, 0], first[:, 1])
    seen = side.scan().to_arrow()  # another reader sees the values and their bucket
    assert sorted(seen["count"].to_pylist()) == sorted(EXPECTED)
    assert set(seen["user_bucket"].to_pylist()) == set(file_of_bucket(side))


@pytest.mark.slow
def test_the_join_reads_them_as_if_they_had_keys(catalog, main, side):
    assert values(main, side, "count", how="inner") == EXPECTED
    joined = bucket_join(main, side, threads=2)
    rows = sum(batch.num_rows for batch in joined.batches())
    assert rows == joined.counts.matched_rows == TableSource(main).num_rows
    some = np.array(USERS[5:8])
    found = {r for b in joined.batches(["request_id", "sequence"], users=some) for r in b["request_id"].to_pylist()}
    assert found == {r["request_id"] for r in LOG if r["user_id"] in some}
    of_users = bucket_join(main, side).batches(["user_id", "request_id", "count"], users=some)
    assert all(b["count"].to_pylist() == b["request_id"].to_pylist() for b in of_users)


@pytest.mark.slow
def test_values_follow_their_requests_through_appends_until_the_snapshot_expires(catalog, main, side):
    new = make_log(num_users=20, seed=9)
    write(main, to_batches(new), mode="append")
    wanted = EXPECTED | {request["request_id"]: None for request in new}
    assert values(main, side, "count") == wanted
    expire_all_but_the_newest(main)
    with pytest.raises(
        ValueError, match="that snapshot expired and the requests changed since; compute the features of"
    ):
        values(main, side, "count")


@pytest.mark.slow
def test_a_table_that_was_realigned_in_time_survives_the_expiry(catalog, main, side):
    new = make_log(num_users=20, seed=9)
    write(main, to_batches(new), mode="append")
    realign(main, side)
    expire_all_but_the_newest(main)
    assert values(main, side, "count") == EXPECTED | {request["request_id"]: None for request in new}


@pytest.mark.slow
def test_compaction_leaves_them_valid_even_when_the_old_snapshot_has_expired(catalog, main, side, monkeypatch):
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", 1000)
    write(main, list(TableSource(main).batches()))  # the same rows in other files and row groups
    expire_all_but_the_newest(main)
    assert values(main, side, "count", how="inner") == EXPECTED


def test_rows_that_another_engine_moved_are_refused(catalog, main, side):
    path = next(iter(file_of_bucket(side).values())).removeprefix("file://")
    file = pq.ParquetFile(path)
    metadata, rows = file.metadata.metadata, file.read().replace_schema_metadata(None)
    pq.write_table(rows, path, row_group_size=5)
    with pytest.raises(ValueError, match=r"footer entry reqdedup\.positions required, found none"):
        values(main, side, "count")
    with pq.ParquetWriter(path, rows.schema) as parquet:  # a row is missing
        parquet.write_table(rows.slice(1), row_group_size=5)
        parquet.add_key_value_metadata(metadata)
    with pytest.raises(ValueError, match="others there: the file was changed"):
        values(main, side, "count")


@pytest.mark.slow
def test_a_main_table_of_the_same_name_is_not_the_same_table(catalog, main, side):
    catalog.purge_table(main.name())
    again = create_table(catalog, ".".join(main.name()), log_schema(), Layout.BY_REQUEST, num_buckets=NUM_BUCKETS)
    write(again, to_batches(LOG))
    with pytest.raises(ValueError, match="found another table of that name; create the feature table again"):
        values(again, side, "count")
    with pytest.raises(ValueError, match="the same main table required, found another one of that name"):
        create_feature_table(catalog, "lake.f", again, [COUNT, SEQUENCE], by_position=True)


@pytest.mark.slow
def test_a_scalar_of_every_request_costs_hardly_more_than_its_values(catalog):
    main = create_table(catalog, "lake.many", log_schema(), Layout.BY_REQUEST, num_buckets=2)
    requests = make_log(num_users=4000, seed=1, max_history=0, mean_fan_out=1)
    write(main, to_batches(requests, size=2000))
    ratio = {}
    for by_position in (False, True):
        side = create_feature_table(catalog, f"lake.f{by_position}", main, [COUNT], by_position=by_position)
        random = lambda r: np.random.default_rng(0).integers(0, 1000, r.num_rows).astype(np.int32)  # noqa: E731
        ratio[by_position] = add_request_feature(main, side, random).ratio_to_minimum
    assert ratio[True] < 1.2
    assert ratio[False] > 2


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=1, max_size=3))
def test_no_history_of_replacements_hands_a_value_to_another_request(catalog, days):
    """Users come and go; whatever the join hands out was computed for that request, or is null."""
    catalog.create_namespace_if_not_exists("lake")
    log = make_log(num_users=12, seed=6, max_history=0, mean_fan_out=2)
    users = sorted({request["user_id"] for request in log})
    name = f"lake.main_{len(catalog.list_tables('lake'))}"
    main = create_table(catalog, name, log_schema(), Layout.BY_REQUEST, num_buckets=3)
    write(main, to_batches(log))
    side = create_feature_table(catalog, f"{name}_f", main, [COUNT], by_position=True)
    add_request_feature(main, side, of_request)
    for day in days:
        present = [request for request in log if users.index(request["user_id"]) in day]
        write(main, to_batches(present))
        found = values(main, side, "count")
        assert set(found) == {request["request_id"] for request in present}
        assert all(value in (None, request) for request, value in found.items())
        add_request_feature(main, side, constant(None), users=np.array([present[0]["user_id"]]))
        expire_all_but_the_newest(main) if len(day) % 2 else None
        realign_or_refused(main, side)


@pytest.mark.slow
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    keys=st.sets(st.tuples(*2 * [st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63)])]), min_size=1, max_size=12),
    main_rows=st.integers(1, 6),
    side_requests=st.integers(1, 6),
    num_buckets=st.integers(1, 3),
)
def test_positions_are_those_of_the_requests_in_order_whatever_the_row_groups(
    catalog, monkeypatch, keys, main_rows, side_requests, num_buckets
):
    """A row group of values may begin and end anywhere in row groups of the main table."""
    monkeypatch.setattr(write_settings, "ROW_GROUP_ROWS", main_rows)
    monkeypatch.setattr(feature_values, "ROW_GROUP_REQUESTS", side_requests)
    catalog.create_namespace_if_not_exists("lake")
    rng, events = np.random.default_rng(len(keys)), np.ones((2, 3), np.int64)
    log = [make_request(rng, 7, 7, fan_out=int(rng.integers(1, 4)), events=events, day=0) for _ in keys]
    log = [request | {"user_id": user, "request_id": number} for request, (user, number) in zip(log, sorted(keys))]
    name = f"lake.main_{len(catalog.list_tables('lake'))}"
    main = create_table(catalog, name, log_schema(), Layout.BY_REQUEST, num_buckets=num_buckets)
    write(main, [to_batch([log[i]]) for i in rng.permutation(len(log)).tolist()])
    side = create_feature_table(catalog, f"{name}_f", main, [SEQUENCE], by_position=True)
    add_request_feature(
        main, side, lambda r: pa.array(list(zip(r["user_id"].to_pylist(), r["request_id"].to_pylist())))
    )
    files = {path: pq.ParquetFile(path.removeprefix("file://")) for path in file_of_bucket(side).values()}
    assert sum(file.metadata.num_rows for file in files.values()) == len(keys)
    found = []
    for batch in bucket_join(main, side, how="inner").batches(["user_id", "request_id", "item_id", "sequence"]):
        for user, request, blob in zip(*(batch[n].to_pylist() for n in ("user_id", "request_id", "sequence"))):
            assert np.frombuffer(blob, "<i8").tolist() == [user, request]
            found.append((user, request))
    rows = {(r["user_id"], r["request_id"]): len(r["items"]) for r in log}
    assert sorted(found) == sorted(key for key, count in rows.items() for _ in range(count))


def realign_or_refused(main, side):
    try:
        realign(main, side)
    except ValueError as error:
        assert "expired and the requests changed" in str(error)  # noqa: PT017
        add_request_feature(main, side, of_request)
