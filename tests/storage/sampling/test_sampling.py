"""User samples of random logs against DuckDB SQL, plain loops and the definition of the hash."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reqdedup.arrays.hashing import below_rate, mix, stable_hash
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.storage.sampling.report import gini, top_share
from reqdedup.storage.sampling.sample import USER_STREAM, UserSample, sample_users
from reqdedup.storage.sampling.strata import Activity

SCHEMA = EngagementSchema(
    (
        *(Column(name=name, dtype="int64", level=Level.KEY) for name in ("user_id", "request_id", "item_id")),
        Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
        Column(name="device", dtype="string", level=Level.REQUEST, nullable=True),
        Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
    )
)


class MemorySource:
    """A log in memory; `whole` as a sorted table, else rows in any order and requests over many batches."""

    def __init__(self, rows: pa.Table, *, whole: bool, batch_rows: int = 7, seed: int = 0) -> None:
        self.requests_whole, self.schema, self._batch_rows = whole, SCHEMA, batch_rows
        self.rows = rows if whole else rows.take(np.random.default_rng(seed).permutation(len(rows))).combine_chunks()

    def batches(self, columns: list | None = None, users: object = None) -> Iterator[pa.RecordBatch]:
        for batch in self.rows.to_batches(max_chunksize=self._batch_rows):
            if users is not None:
                batch = batch.filter(pa.array(np.isin(batch["user_id"].to_numpy(), np.asarray(users))))
            yield batch if columns is None else batch.select([n for n in SCHEMA.names if n in columns])


def random_log(num_users: int, *, seed: int = 0, mean_requests: float = 3.0) -> pa.Table:
    """Users with a heavy-tailed number of requests, of 1 to 4 rows; two requests in three share a second."""
    rng = np.random.default_rng(seed)
    user = np.sort(rng.choice(2**62, num_users, replace=False)) - 2**61
    requests = 1 + np.floor(rng.pareto(1.2, num_users) * (mean_requests - 1)).astype(int).clip(0, 60)
    request_user = np.repeat(user, requests)
    request_id = rng.permutation(len(request_user))
    order = np.lexsort((request_id, request_user))
    request_user, request_id = request_user[order], request_id[order]
    fan_out = rng.integers(1, 5, len(request_user))
    second = rng.integers(0, len(request_user) // 3 + 1, len(request_user))
    device = np.array(["ios", "android", None], object)[rng.integers(0, 3, len(request_user))]
    rows = np.repeat(np.arange(len(request_user)), fan_out)
    return pa.table(
        {
            "user_id": pa.array(request_user[rows]),
            "request_id": pa.array(request_id[rows]),
            "item_id": pa.array(np.arange(len(rows))),
            "request_ts": pa.array(second[rows] * 10**6, pa.timestamp("us", tz="UTC")),
            "device": pa.array(device[rows], pa.string()),
            "history_item_id": pa.array([b"%08d" % (i % 50) for i in rows], pa.binary()).dictionary_encode(),
        }
    )


def sampled_rows(sample: UserSample) -> pa.Table:
    batches = list(sample.batches())
    table = pa.Table.from_batches(
        batches, schema=batches[0].schema if batches else pa.schema([("user_id", pa.int64())])
    )
    return table.unify_dictionaries()


def sql(query: str, **tables: pa.Table) -> pa.Table:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(query).to_arrow_table()


LOG = random_log(400)
SMALL_LOG = random_log(60, seed=1)


def test_the_hash_is_splitmix64_as_published():
    # First outputs of the reference splitmix64.c at seed 1234567.
    golden, state, outputs = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        outputs.append(int(mix(np.array([state], np.uint64))[0]))
        state = (state + golden) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.slow
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), seed=st.integers(-(2**70), 2**70))
def test_the_hash_follows_its_definition_in_python_integers(ids, seed):
    def reference_mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    expected = [reference_mix(reference_mix(i % 2**64) ^ reference_mix(seed % 2**64)) for i in ids]
    assert stable_hash(np.array(ids, np.int64), seed).tolist() == expected


def test_the_drawn_share_is_within_binomial_bounds_for_consecutive_ids():
    ids, hashes = 200_000, [stable_hash(np.arange(200_000), seed) for seed in range(5)]
    for rate in (0.001, 0.01, 0.5):
        sigma = math.sqrt(rate * (1 - rate) / ids)
        for one in hashes:
            assert abs(below_rate(one, rate).mean() - rate) < 5 * sigma
    assert below_rate(hashes[0], 1.0).all()
    assert not below_rate(hashes[0], 0.0).any()
    # Seeds draw independently: two halves share a quarter.
    both = (below_rate(hashes[0], 0.5) & below_rate(hashes[1], 0.5)).mean()
    assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / ids)


@pytest.mark.slow
def test_another_process_draws_the_same_users():
    code = (
        "import json, numpy as np; from reqdedup.arrays.hashing import stable_hash, below_rate;"
        "print(json.dumps(np.flatnonzero(below_rate(stable_hash(np.arange(1000), 7), 0.1)).tolist()))"
    )
    there = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert there == np.flatnonzero(below_rate(stable_hash(np.arange(1000), 7), 0.1)).tolist()


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 5), whole=st.booleans(), cap=st.integers(1, 4))
def test_a_smaller_sample_is_inside_a_larger_one(low, high, seed, whole, cap):
    low, high = sorted((low, high))
    source = MemorySource(SMALL_LOG, whole=whole, batch_rows=97)

    def requests(**settings) -> set:
        rows = sampled_rows(sample_users(source, seed=seed, **settings))
        return set(zip(rows["user_id"].to_pylist(), rows["request_id"].to_pylist())) if len(rows) else set()

    small, large = sample_users(source, rate=low, seed=seed), sample_users(source, rate=high, seed=seed)
    assert set(small.user_ids.to_pylist()) <= set(large.user_ids.to_pylist())
    small, large = (sample_users(source, target=int(rate * 60), seed=seed) for rate in (low, high))
    assert len(small.user_ids) == int(low * 60)
    assert set(small.user_ids.to_pylist()) <= set(large.user_ids.to_pylist())
    fewer, more = requests(rate=low, max_requests_per_user=cap), requests(rate=high, max_requests_per_user=cap + 1)
    assert fewer <= more


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_a_sample_holds_exactly_the_rows_of_its_users(whole):
    source = MemorySource(LOG, whole=whole)
    sample = sample_users(source, rate=0.3, seed=3)
    expected = LOG.filter(pa.array(np.isin(LOG["user_id"], sample.user_ids)))
    for _ in range(2):  # a source can be read again
        found = sampled_rows(sample)
        assert found.sort_by("item_id").to_pylist() == expected.to_pylist()
    one = sample.user_ids[3].as_py()
    assert {r["user_id"] for b in sample.batches(["user_id"], users=[one, -1]) for r in b.to_pylist()} == {one}
    assert next(iter(sample.batches(["item_id", "user_id"]))).schema.names == ["user_id", "item_id"]
    assert not list(sample_users(source, rate=0.0).batches())


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("keep", ["hash", "latest"])
def test_very_active_users_keep_so_many_whole_requests(keep, whole):
    sample = sample_users(MemorySource(LOG, whole=whole), rate=0.5, max_requests_per_user=2, keep=keep, seed=1)
    found = sampled_rows(sample)
    order = "request_ts desc, request_id desc" if keep == "latest" else "h"
    ids = pa.array(np.unique(LOG["request_id"]))
    expected = sql(
        f"""select log.* exclude (request_ts) from log semi join users using (user_id) join hashes using (request_id)
        qualify dense_rank() over (partition by user_id order by {order}) <= 2 order by item_id""",
        log=LOG.drop_columns(["history_item_id"]),
        users=pa.table({"user_id": sample.user_ids}),
        hashes=pa.table({"request_id": ids, "h": pa.array(stable_hash(ids.to_numpy(), 1 ^ 0x5EED))}),
    )
    assert found.sort_by("item_id").select(expected.column_names).to_pylist() == expected.to_pylist()
    total = sample.report.to_pylist()[-1]
    assert total["rows_after"] == len(found)
    assert total["requests_after"] == len(set(found["request_id"].to_pylist()))
    assert 0 < total["users_cut"] < total["users_after"] == len(sample.user_ids)


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "strata",
    [
        Activity(bounds=(1, 3, 10)),
        Activity(quantiles=(0.5, 0.9), measure="rows"),
        "device",
        ("device", Activity(bounds=(2,))),
    ],
)
def test_strata_partition_the_users_as_sql_does(strata, whole):
    report = sample_users(MemorySource(LOG, whole=whole), rate=0.2, strata=strata).report
    users = sql(
        """select user_id, count(*) as rows, count(distinct request_id) as requests,
        arg_max(coalesce(device, 'null'), (request_ts, request_id)) as device from log group by user_id""",
        log=LOG.drop_columns(["history_item_id"]),
    ).to_pylist()

    def label(user: dict, one) -> str:
        if isinstance(one, str):
            return f"{one}={user[one]}"
        count = user[one.measure]
        edges = one.bounds or [
            sorted(u[one.measure] for u in users)[math.ceil(q * len(users)) - 1] for q in one.quantiles
        ]
        return one.labels()[sum(count > edge for edge in edges)]

    strata = strata if isinstance(strata, tuple) else (strata,)
    expected: dict[str, list[int]] = {}
    for user in users:
        counts = expected.setdefault(", ".join(label(user, one) for one in strata), [0, 0, 0])
        for i, count in enumerate((1, user["requests"], user["rows"])):
            counts[i] += count
    found = {row["stratum"]: [row[f"{n}_before"] for n in ("users", "requests", "rows")] for row in report.to_pylist()}
    total = found.pop("total")
    assert {name: counts for name, counts in found.items() if counts[0]} == expected
    assert total == [len(users), sum(u["requests"] for u in users), len(LOG)]


@pytest.mark.slow
def test_each_stratum_has_its_own_rate_target_or_cap():
    activity = Activity(bounds=(1, 3))
    low, middle, high = activity.labels()
    source = MemorySource(LOG, whole=True)

    def users_after(**settings) -> list[int]:
        return [row["users_after"] for row in sample_users(source, strata=activity, **settings).report.to_pylist()]

    before = sample_users(source, strata=activity).report["users_before"].to_pylist()
    assert users_after(target={low: 5, "*": 7}) == [5, 7, 7, 19]
    assert users_after(target=10**6) == before
    capped = users_after(rate={low: 0.0, middle: 1.0, high: 1.0}, cap={low: 5, middle: 5, high: 10**6})
    assert capped == [0, 5, before[2], 5 + before[2]]
    report = sample_users(source, rate={low: 0.5, "*": 1.0}, strata=activity).report
    assert report["rate"].to_pylist() == [0.5, 1.0, 1.0, None]


@pytest.mark.slow
def test_concentration_before_and_after_follows_the_definitions():
    rows = np.array([1, 1, 2, 6])
    mean_difference = sum(abs(a - b) for a in rows for b in rows) / len(rows) ** 2
    assert gini(rows) == pytest.approx(mean_difference / (2 * rows.mean()))
    assert top_share(rows) == 0.6
    assert math.isnan(gini(rows[:0]))
    sample = sample_users(MemorySource(LOG, whole=True), max_requests_per_user=2)
    total = sample.report.to_pylist()[-1]
    assert total["gini_rows_after"] < total["gini_rows_before"]
    per_user = np.unique(LOG["user_id"], return_counts=True)[1]
    assert total["gini_rows_before"] == pytest.approx(gini(per_user))
    assert total["top1_percent_rows_before"] == pytest.approx(np.sort(per_user)[-4:].sum() / per_user.sum())


def test_an_empty_source_has_an_empty_sample():
    sample = sample_users(MemorySource(LOG[:0], whole=True), rate=0.5, strata=Activity(quantiles=(0.5,)))
    assert len(sample.user_ids) == 0
    assert sample.report["users_before"].to_pylist() == [0, 0, 0]
    assert not list(sample.batches())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.5}, "rate must be at least 0 and at most 1, found 1.5"),
        ({"rate": {"*": float("nan")}}, "rate must be"),
        ({"target": -1}, "target must be at least 0"),
        ({"target": 3, "rate": 0.1}, "target alone"),
        ({"rate": {"everyone": 0.1, "nobody": 1.0}}, "strata that are not there: \\['nobody'\\]"),
        ({"rate": {}}, "no value for \\['everyone'\\]"),
        ({"strata": "item_id"}, "request-level scalar required"),
        ({"strata": "history_item_id"}, "request-level scalar required"),
        ({"strata": ("device", "device")}, "every one once"),
        ({"max_requests_per_user": 0}, "at least 1"),
        ({"keep": "first"}, "keep must be 'hash' or 'latest'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sample_users(MemorySource(LOG, whole=True), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "bounds or quantiles"),
        ({"bounds": (1,), "quantiles": (0.5,)}, "bounds or quantiles"),
        ({"bounds": (3, 1)}, "must rise"),
        ({"quantiles": (0.5, 1.0)}, "between 0 and 1"),
        ({"bounds": (1,), "measure": "clicks"}, "measure must be"),
    ],
)
def test_activity_strata_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Activity(**settings)


EXTREME_IDS = st.sampled_from([0, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1)


def python_hash(value: int, seed: int) -> int:
    """`stable_hash` in Python's own integers."""

    def mix_(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    return mix_(mix_(value % 2**64) ^ mix_(seed % 2**64))


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(
    log=st.dictionaries(st.tuples(EXTREME_IDS, EXTREME_IDS), st.integers(1, 3), max_size=12),
    shares=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    seed=st.integers(-5, 5),
    order=st.randoms(use_true_random=False),
    how=st.sampled_from(["rate", "target", "cap"]),
    amount=st.integers(0, 4),
    limit=st.none() | st.integers(1, 2),
)
def test_a_sample_follows_a_plain_loop_whatever_the_order_of_files_and_batches(
    log, shares, seed, order, how, amount, limit
):
    # A few users with several requests each: every third request is the first user's.
    users = sorted({user for user, _ in log})
    keys = {
        (users[0] if share == 0 else user, request): rows for ((user, request), rows), share in zip(log.items(), shares)
    }
    rows = [(user, request, item) for (user, request), count in keys.items() for item in range(count)]
    order.shuffle(rows)
    columns = [pa.array(column, pa.int64()) for column in (zip(*rows) if rows else [[], [], []])]
    table = pa.table(
        {
            **dict(zip(("user_id", "request_id", "item_id"), columns)),
            "request_ts": pa.array([0] * len(rows), pa.timestamp("us", tz="UTC")),
            "device": pa.nulls(len(rows), pa.string()),
            "history_item_id": pa.array([b""] * len(rows), pa.binary()).dictionary_encode(),
        }
    )
    settings_ = {how: amount / 4 if how == "rate" else amount}
    sample = sample_users(
        MemorySource(table, whole=False, batch_rows=5), **settings_, seed=seed, max_requests_per_user=limit
    )

    drawn = sorted({user for user, _ in keys}, key=lambda user: python_hash(user, seed ^ USER_STREAM))
    if how == "rate":
        drawn = [user for user in drawn if python_hash(user, seed ^ USER_STREAM) >> 11 < amount / 4 * 2**53]
    else:
        drawn = drawn[:amount]
    assert sample.user_ids.to_pylist() == sorted(drawn)
    found = sampled_rows(sample)
    found_rows = (
        list(zip(*(found[name].to_pylist() for name in ("user_id", "request_id", "item_id")))) if len(found) else []
    )
    kept = {key[:2] for key in found_rows}
    assert sorted(found_rows) == sorted(row for row in rows if row[:2] in kept), "requests are whole"
    for user in drawn:
        own = sorted((request for owner, request in keys if owner == user), key=lambda r: python_hash(r, seed ^ 0x5EED))
        assert {request for owner, request in kept if owner == user} == set(own[:limit])
    assert {user for user, _ in kept} == set(drawn)
    assert sample.report.to_pylist()[-1]["users_after"] == len(drawn)
