"""A feature for some users, added columns, carried values: against plain dictionaries of what each request must have."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.schema import Column, Level
from reqdedup.storage import add_request_feature, create_feature_table, realign, write
from reqdedup.storage.features import feature_checks
from reqdedup.storage.iceberg.layout import buckets_of
from reqdedup.storage.read.feature_table import FeatureSource
from tests.storage.feature_tables import (
    COUNT,
    LOG,
    NUM_BUCKETS,
    RATE,
    SCORE,
    SEQUENCE,
    USERS,
    VECTOR,
    constant,
    file_of_bucket,
    main_table,
    of_request,
    requests_of,
    values,
)
from tests.storage.small_log import make_log, to_batches

pytestmark = pytest.mark.parametrize("by_position", [False, True], ids=["keys", "by_position"])


@pytest.mark.slow
def test_some_users_get_new_values_and_only_their_buckets_are_written(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.f", main, [COUNT, VECTOR], by_position=by_position)
    both = lambda n, v: {"count": pa.array([n] * v), "vector": pa.array([[float(n), 0.5]] * v)}  # noqa: E731
    add_request_feature(main, side, lambda r: both(1, r.num_rows))
    before, files = main.current_snapshot(), file_of_bucket(side)
    chosen = USERS[:2]
    buckets = set(buckets_of(np.array(chosen), NUM_BUCKETS).tolist())
    assert 0 < len(buckets) < NUM_BUCKETS
    seen = []

    def compute(requests):
        seen.extend(requests["user_id"].to_pylist())
        return both(2, requests.num_rows)

    report = add_request_feature(main, side, compute, users=pa.array([*chosen, 5]))
    assert set(seen) == set(chosen)
    assert report.computed == len(seen) == len(requests_of(chosen)) < report.requests
    after = file_of_bucket(side)
    assert {bucket for bucket in files if files[bucket] != after[bucket]} <= buckets | set(
        buckets_of(np.array([5]), NUM_BUCKETS)
    )
    assert set(files) == set(after)
    mine = requests_of(chosen)
    assert values(main, side, "count") == {r["request_id"]: 2 if r["request_id"] in mine else 1 for r in LOG}
    assert values(main, side, "vector") == {
        r["request_id"]: np.array([2 if r["request_id"] in mine else 1, 0.5], "<f4").tobytes() for r in LOG
    }
    assert main.refresh().current_snapshot() == before


@pytest.mark.slow
def test_users_without_an_earlier_value_read_as_null_empty_or_zeros(catalog, by_position):
    main = main_table(catalog)
    for column, value, missing in ((COUNT, 3, None), (SEQUENCE, [4, 5], b""), (VECTOR, [1.0, 2.0], bytes(8))):
        side = create_feature_table(catalog, f"lake.{column.name}", main, [column], by_position=by_position)
        add_request_feature(main, side, constant(value), users=np.array(USERS[3:5]))
        found, mine = values(main, side, column.name), requests_of(USERS[3:5])
        assert {request for request, one in found.items() if one != missing} == mine
        assert len(file_of_bucket(side)) <= 2
    side = create_feature_table(catalog, "lake.rate", main, [RATE], by_position=by_position)
    with pytest.raises(ValueError, match="rate: a value for every request required, found none for request"):
        add_request_feature(main, side, constant(0.5), users=np.array(USERS[3:5]))
    assert side.refresh().current_snapshot() is None
    side = create_feature_table(catalog, "lake.other", main, [COUNT], by_position=by_position)
    with pytest.raises(ValueError, match="found none of these 1 users there"):
        add_request_feature(main, side, constant(1), users=np.array([12345]))
    assert side.refresh().current_snapshot() is None


@pytest.mark.slow
def test_a_column_is_added_and_the_others_keep_their_values(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.f", main, [COUNT], by_position=by_position)
    add_request_feature(main, side, of_request)
    first, schema_id = side.current_snapshot(), side.schema().schema_id
    before = values(main, side, "count")
    add_request_feature(
        main,
        side,
        lambda r: {"rate": np.full(r.num_rows, 0.25), "sequence": [[1]] * r.num_rows},
        columns=[RATE, SEQUENCE],
    )
    assert values(main, side, "count") == before == {r["request_id"]: r["request_id"] for r in LOG}
    assert set(values(main, side, "rate").values()) == {0.25}
    assert set(values(main, side, "sequence").values()) == {np.array([1], "<i8").tobytes()}
    assert side.schema().schema_id != schema_id
    assert [c.name for c in FeatureSource(side).feature_schema.features] == ["count", "rate", "sequence"]
    assert [c.name for c in FeatureSource(side, snapshot_id=first.snapshot_id).feature_schema.features] == ["count"]
    add_request_feature(main, side, constant(7), columns=[COUNT])  # one of them again
    assert set(values(main, side, "count").values()) == {7}
    assert set(values(main, side, "rate").values()) == {0.25}
    assert (
        create_feature_table(catalog, "lake.f", main, [COUNT], by_position=by_position).current_snapshot() is not None
    )
    with pytest.raises(ValueError, match="a feature of another form needs another name"):
        add_request_feature(main, side, constant(1), columns=[Column(name="count", dtype="int64", level=Level.REQUEST)])
    with pytest.raises(ValueError, match="found device taken"):
        add_request_feature(
            main, side, constant(1), columns=[Column(name="device", dtype="int32", level=Level.REQUEST)]
        )


@pytest.mark.slow
def test_a_column_added_for_some_users_reads_as_null_elsewhere(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.f", main, [COUNT], by_position=by_position)
    add_request_feature(main, side, constant(1))
    files = file_of_bucket(side)
    add_request_feature(main, side, constant(0.5), users=np.array(USERS[:1]), columns=[SCORE])
    assert sum(files[bucket] != path for bucket, path in file_of_bucket(side).items()) == 1
    mine = requests_of(USERS[:1])
    assert values(main, side, "new_score") == {r["request_id"]: 0.5 if r["request_id"] in mine else None for r in LOG}
    assert set(values(main, side, "count").values()) == {1}
    with pytest.raises(ValueError, match=r"nullable scalars required .*found vector"):
        add_request_feature(main, side, constant([1.0, 2.0]), users=np.array(USERS[:1]), columns=[VECTOR])


@pytest.mark.slow
def test_values_are_carried_over_to_the_requests_that_are_there_now(catalog, by_position):
    main = main_table(catalog)
    side = create_feature_table(catalog, "lake.f", main, [COUNT, VECTOR], by_position=by_position)
    add_request_feature(main, side, lambda r: {"count": of_request(r), "vector": [[1.0, 2.0]] * r.num_rows})
    gone, new = USERS[7], make_log(num_users=5, seed=9)
    present = [r for r in LOG if r["user_id"] != gone] + new
    write(main, to_batches(present))
    assert not feature_checks(main, side, side.current_snapshot().snapshot_id)["requests"].ok
    report = realign(main, side)
    assert (report.requests, report.computed) == (len(present), 0)
    new_ids = {r["request_id"] for r in new}
    found = values(main, side, "count", how="inner")
    assert found == {r["request_id"]: None if r["request_id"] in new_ids else r["request_id"] for r in present}
    assert {k for k, v in values(main, side, "vector").items() if v == bytes(8)} == new_ids
    assert all(result.ok for result in feature_checks(main, side, report.snapshot_id).values())
