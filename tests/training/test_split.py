"""Parts of a table that share no request, whatever they are split by, and the leaks that would be found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reqdedup.dedup.encoding import deduplicated_schema
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Activity, sample_users
from reqdedup.training import RequestLoader, UserSplit
from reqdedup.training.split import LastSplit, Splits, TimeSplit, leaks
from tests.training.logs import SCHEMA, RandomLog, random_log


@pytest.fixture(scope="module")
def log():
    return random_log(num_groups=4, requests_per_group=20)


def parts_of(by, log, **shares):
    def loader(**options):
        return RequestLoader(log, requests_per_batch=7, columns=(), prefetch_batches=0, **options)

    splits = Splits.of(by, loader(), seed=3, **{"held_out": 0.25, "validation": 0.2, **shares})
    keys = []
    for part in (splits.train, splits.validation, splits.test):
        batches = list(loader(users=part))
        rows = [
            zip(b.user_id_R.tolist(), b.request["request_id"].tolist(), b.request["request_ts"].tolist())
            for b in batches
        ]
        keys.append([key for one in rows for key in one])
    return splits, keys


@pytest.mark.parametrize("by", ["user", "time", "last"])
def test_the_parts_are_the_table_and_share_no_request(by, log):
    _, (train, validation, test) = parts_of(by, log)
    every = [(user, request, value["request_ts"]) for (user, request), value in log.requests.items()]
    assert sorted(train + validation + test) == sorted(every)
    assert train
    assert validation
    assert test


def test_by_time_training_is_before_validation_and_that_before_the_test(log):
    _, (train, validation, test) = parts_of("time", log)
    assert max(ts for *_, ts in train) < min(ts for *_, ts in validation)
    assert max(ts for *_, ts in validation) < min(ts for *_, ts in test)
    assert len(test) == pytest.approx(0.25 * 80, abs=1)
    assert len(validation) == pytest.approx(0.2 * 80, abs=1)


def test_by_last_every_user_with_enough_requests_loses_the_last_ones(log):
    _, (train, validation, test) = parts_of("last", log)
    times = {}
    for (user, _), value in log.requests.items():
        times.setdefault(user, []).append(value["request_ts"])
    long = {user: sorted(found) for user, found in times.items() if len(found) > 2}
    assert sorted((user, ts) for user, _, ts in test) == sorted((user, found[-1]) for user, found in long.items())
    assert sorted((user, ts) for user, _, ts in validation) == sorted((u, found[-2]) for u, found in long.items())
    assert {user for user, *_ in train} == set(times)


@pytest.mark.parametrize("by", ["time", "last"])
def test_without_validation_nothing_is_lost(by, log):
    _, (train, validation, test) = parts_of(by, log, validation=0.0)
    assert not validation
    assert len(train) + len(test) == len(log.requests)


def test_a_part_that_would_be_empty_is_refused(log):
    one = random_log(num_groups=1, requests_per_group=2)
    with pytest.raises(ValueError, match="requests to hold out for test required, split by last, found none"):
        parts_of("last", one)
    with pytest.raises(ValueError, match="requests to hold out for validation required, split by user, found none"):
        parts_of("user", one, validation=0.0001)


def test_leaks_are_found():
    user, time = np.array([1, 1, 2, 2]), np.array([10, 20, 10, 30])
    none = TimeSplit(begin_us=0, end_us=0)

    class Rows:
        def __init__(self, *rows):
            self.rows = rows

        def contains(self, user_id_R, request_ts_R):
            return np.isin(np.arange(len(user_id_R)), self.rows)

    def found(by, train, test):
        return leaks(Splits(Rows(*train), none, Rows(*test)), user, time, by=by)

    assert found("user", (0, 1), (2, 3)) == []
    assert found("user", (0, 2), (1,)) == ["1 users among training and held-out ones, user 1 for one"]
    assert found("time", (0, 2), (1, 3)) == []
    assert found("time", (0, 1), (2, 3)) == ["2 training requests that are not before all held-out ones"]
    assert found("last", (0, 2), (1, 3)) == []
    assert found("last", (1, 2), (0, 3)) == ["1 training requests that are not before the user's held-out ones"]
    assert found("user", (0, 1, 2), (2,))[0] == "1 requests in two parts"


def test_a_loader_of_a_part_says_what_it_depends_on(log):
    old = UserSplit(held_out=0.1, part="train").state()
    assert old == {"held_out": 0.1, "part": "train", "seed": 0}, "as earlier versions wrote it"
    splits, _ = parts_of("last", log)
    assert isinstance(splits.test, LastSplit)
    loader = RequestLoader(log, requests_per_batch=7, columns=(), users=splits.train)
    assert loader.state_dict()["order"]["users"] == {"place": None, "parts": 2, "users": 28}
    with pytest.raises(ValueError, match="part one of train, validation, test and shares from 0 to 1 required"):
        UserSplit(held_out=0.7, validation=0.4, part="train")


@pytest.mark.parametrize("rate", [0.1, 0.25, {"requests <= 1": 1.0, "*": 0.1}])
def test_a_sample_of_users_is_split_as_the_whole_table_is(rate, tmp_path):
    users = np.arange(40_000)
    user_R = np.sort(np.concatenate([users, users[::2]]))  # every other one has two requests
    columns = EngagementSchema(SCHEMA.columns[:4])
    row_R = np.arange(len(user_R))
    arrays = [pa.array(x) for x in (user_R, row_R, row_R)] + [pa.array(row_R, pa.timestamp("us", tz="UTC"))]
    rows = pa.RecordBatch.from_arrays(arrays, schema=deduplicated_schema(columns))
    source = RandomLog([rows], {}, columns).write(tmp_path / "log.parquet")
    sampled = sample_users(source, rate=rate, strata=Activity(bounds=(1,))).user_ids.to_numpy()
    splits = Splits.by_user(0.1, 0.1, seed=0)
    for few in (sampled[sampled % 2 == 0], sampled[sampled % 2 == 1]):
        for part, share in ((splits.train, 0.8), (splits.validation, 0.1), (splits.test, 0.1)):
            sigma = (share * (1 - share) / len(few)) ** 0.5
            assert part.contains(few, few).mean() == pytest.approx(share, abs=5 * sigma)
