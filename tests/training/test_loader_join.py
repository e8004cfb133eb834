"""Request-level features from a side table reach the batch through the bucket join, once per request, on every rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCATConfig
from reqdedup.storage import (
    Layout,
    TableSource,
    add_request_feature,
    bucket_join,
    create_feature_table,
    create_table,
    open_catalog,
    recent_event_counts,
    sample_users,
    write,
)
from reqdedup.training import RequestLoader, TrainingConfig, train
from reqdedup.training.launch import RankError, run_ranks
from reqdedup.training.plan import Wanted, source_for_ranks
from reqdedup.training.split import UserSplit
from tests.training import ranks
from tests.training.logs import number_wanted

LOG = SyntheticLogConfig(seed=5, num_users=40, mean_fan_out=5, max_fan_out=20, max_history=32, history_scale=1 / 100)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake")
    lake = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}"}
    catalog = open_catalog(properties=lake)
    main = create_table(catalog, "lake.main", synthetic_schema(LOG), Layout.BY_REQUEST, num_buckets=4)
    write(main, synthesize(LOG))
    feature = recent_event_counts(86_400)
    side = create_feature_table(catalog, "lake.side", main, [feature.column])
    add_request_feature(main, side, feature)
    return main, side, bucket_join(main, side)


def of_requests(batches, name):
    """request id -> value, each request once."""
    pairs = [
        pair for batch in batches for pair in zip(batch.request["request_id"].tolist(), batch.request[name].tolist())
    ]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.slow
def test_a_join_or_sample_is_resumed_exactly_and_no_other_in_its_place(joined):
    main, side, join = joined
    for source in (join, sample_users(join, rate=0.5), sample_users(TableSource(main), rate=1.0)):
        one = RequestLoader(source, requests_per_batch=8)
        whole = [batch.request["request_id"] for batch in one]
        one.set_epoch(0)
        iterator = iter(one)
        begun = [next(iterator).request["request_id"] for _ in range(2)]
        other = RequestLoader(source, requests_per_batch=8)
        other.load_state_dict(one.state_dict())
        assert torch.equal(torch.cat([*begun, *(b.request["request_id"] for b in other)]), torch.cat(whole))
    state = RequestLoader(sample_users(join, rate=0.5), requests_per_batch=8, columns=["click"]).state_dict()
    for source, named in (
        (sample_users(join, rate=0.4), "sampled users"),
        (sample_users(join, rate=0.5, max_requests_per_user=1), "kept requests"),
        (sample_users(TableSource(main), rate=0.5), "files"),
        (sample_users(bucket_join(main, side, how="left"), rate=0.5), "join"),
    ):
        with pytest.raises(ValueError, match=f"source, {named}"):
            RequestLoader(source, requests_per_batch=8, columns=["click"]).load_state_dict(state)


@pytest.mark.slow
def test_ranks_get_equally_many_of_the_counted_requests_of_a_join_and_go_on_anywhere(joined):
    wanted = Wanted(users=UserSplit(held_out=0.6, part="train"))
    for source in (joined[2], sample_users(joined[2], rate=0.8)):
        counts = number_wanted(source, wanted, world_size=2)
        assert len(counts) > 1
        options = {"requests_per_batch": 4, "users": wanted.users, "columns": ["click"], "num_wanted": counts}
        found = []
        for rank in range(3):
            loader = RequestLoader(source, **options, rank=rank, world_size=3)
            whole = [batch.request["request_id"].tolist() for batch in loader]
            found.append([request for batch in whole for request in batch])
            loader.set_epoch(0)
            next(iter(loader))
            other = RequestLoader(source, **options, rank=rank, world_size=3)
            other.load_state_dict(loader.state_dict())
            assert [batch.request["request_id"].tolist() for batch in other] == whole[1:]
        wanted_ids = [r for batch in RequestLoader(source, **options) for r in batch.request["request_id"].tolist()]
        assert sorted(request for of_rank in found for request in of_rank) == sorted(wanted_ids)
        assert len(set(wanted_ids)) == len(wanted_ids) == sum(counts.values())
        assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_side_feature_arrives_once_per_request_on_one_rank(joined, world_size):
    main, _, join = joined
    name = "recent_event_count"
    wanted = {}
    for rows in join.batches(["request_id", name]):
        wanted |= dict(zip(rows.column("request_id").to_pylist(), rows.column(name).to_pylist()))
    loaders = [
        RequestLoader(join, requests_per_batch=8, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    found = [of_requests(loader, name) for loader in loaders]
    assert {request: value for part in found for request, value in part.items()} == wanted
    assert sum(len(part) for part in found) == len(wanted) > 50
    assert max(wanted.values()) > 0
    rows = sum(batch.num_rows for loader in loaders for batch in loader)
    assert rows == TableSource(main).num_rows


def requests_of(loader) -> list[int]:
    return [request for batch in loader for request in batch.request["request_id"].tolist()]


class Buckets:
    """A source that can be read bucket by bucket alone. read: which were."""

    def __init__(self, source):
        self.schema, self.num_buckets, self.weights = source.schema, source.num_buckets, source.weights
        self._source, self.read = source, []

    def of_unit(self, unit, *more):
        self.read.append(unit)
        return self._source.of_unit(unit, *more)


def sources_of(main, join):
    return {
        "join": join,
        "sample of a table": sample_users(main, rate=0.8),
        "sample of a join": sample_users(join, rate=0.8),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["join", "sample of a table", "sample of a join"])
def test_ranks_read_their_own_buckets_and_together_every_request_once(joined, name):
    main, _, join = joined
    source = sources_of(main, join)[name]
    plain = [one for batch in source.batches(["request_id"]) for one in batch.column("request_id").to_pylist()]
    wanted = list(dict.fromkeys(plain))
    assert requests_of(RequestLoader(source, requests_per_batch=7, shuffle="none")) == wanted, "in the table's order"
    for shuffle in ("requests", "users", "none"):
        for world_size in (2, 3, 7):
            read, found = [], []
            for rank in range(world_size):
                of_rank = Buckets(source)
                options = {"shuffle": shuffle, "rank": rank, "world_size": world_size}
                found.append(requests_of(RequestLoader(of_rank, requests_per_batch=4, **options)))
                read += of_rank.read
            assert sorted(one for part in found for one in part) == sorted(wanted)
            assert len(read) <= 4 + world_size - 1, "of each bucket one rank, or those at its ends"


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["requests", "none"])
def test_every_position_of_a_rank_is_resumed_without_the_buckets_before(joined, shuffle):
    main, _, join = joined
    options = {"requests_per_batch": 3, "shuffle": shuffle, "buffer_requests": 5, "rank": 1, "world_size": 3}
    for source in (join, sample_users(main, rate=0.8)):
        one = RequestLoader(source, **options)
        whole = [batch.request["request_id"].tolist() for batch in one]
        for position in range(1, len(whole)):
            one.set_epoch(0)
            iterator = iter(one)
            for _ in range(position):
                next(iterator)
            iterator.close()
            other = RequestLoader(source, **options)
            other.load_state_dict(one.state_dict())
            assert [batch.request["request_id"].tolist() for batch in other] == whole[position:]


def test_a_position_among_rows_that_every_rank_read_is_refused(joined):
    state = RequestLoader(joined[2], requests_per_batch=3).state_dict()
    del state["order"]["units"]
    with pytest.raises(ValueError, match="units = None required to continue, found 4"):
        RequestLoader(joined[2], requests_per_batch=3).load_state_dict(state)


SIZES = {"width": 8, "num_layers": 1, "item_table_rows": 64, "category_table_rows": 8, "hidden_widths": (8,)}


def config_of_ranks(join) -> TrainingConfig:
    return TrainingConfig(
        model=DCATConfig.from_schema(join.schema, **SIZES),
        num_steps=12,
        requests_per_step=8,
        learning_rate=0.01,
        checkpoint_every=4,
        held_out=0.2,
        world_size=2,
    )


@pytest.mark.slow
def test_a_join_that_nobody_wrote_is_trained_on_by_a_rank(joined, tmp_path):
    config = replace(config_of_ranks(joined[2]), world_size=1)
    assert "recent_event_count" in config.model.columns
    whole = train(config, joined[2], out_dir=tmp_path)
    assert whole.rows > 0
    assert whole.steps == 12


@pytest.mark.soak
def test_a_run_on_a_join_is_resumed_bit_for_bit(joined, tmp_path):
    join, config = joined[2], config_of_ranks(joined[2])
    whole = train(config, join, out_dir=tmp_path / "whole")
    with pytest.raises(RankError, match="killed by SIGKILL"):
        run_ranks(ranks.train_and_die, config, join, tmp_path / "cut", 6, world_size=2)
    assert train(config, join, out_dir=tmp_path / "cut", resume=True).losses == whole.losses


def test_a_join_whose_keys_no_rank_would_have_is_refused_by_name(joined, tmp_path, monkeypatch):
    join = joined[2]
    for files in join.file_sources:
        monkeypatch.setattr(files, "_paths", ["s3://lake/part.parquet"])
        monkeypatch.setattr(files._io, "properties", {"s3.secret-access-key": "of the catalog"})
    with pytest.raises(
        ValueError, match=r"keys of its store that other processes have too required.*s3.secret-access-key"
    ):
        source_for_ranks(join)
