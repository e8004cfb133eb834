"""States computed ahead are those that a server computes, and serve only the events that they were computed from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from reqdedup.arrays.windows import HistoryCut
from reqdedup.models import TwoTower
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, Kind, Level
from reqdedup.sequences.store import UserRecord, Window
from reqdedup.serving.requests import RetrieveRequest
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.states_file import delete_states
from reqdedup.serving.retrieval.user_states import (
    MODEL_PROPERTY,
    export_user_states,
    keep_user_states,
    replace_user_states,
    user_states,
)
from reqdedup.serving.routing import worker_of
from tests.models.batches import two_tower_config

CONFIG = two_tower_config(request_categories=(), request_vectors=(), request_numbers=(), item_categories=())
CUT = HistoryCut(max_events=20, stride=5)


def retriever(fingerprint="m1", **options):
    torch.manual_seed(0)
    model = TwoTower(CONFIG).eval()
    with torch.no_grad():
        vectors = model.encode_items(torch.arange(50), {}).numpy()
    columns = (
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
    )
    transforms, items = Transforms(columns=columns, cut=CUT), ItemVectors.of(np.arange(50), vectors)
    return Retriever(model, transforms, items, fingerprint=fingerprint, **options)


def record(user_id, first, length, version=0):
    rng = np.random.default_rng(user_id)
    events = {"item_id": rng.integers(0, 99, length), "action": rng.integers(0, 4, length).astype(np.int32)}
    older = {"item_id": np.array([1]), "action": np.array([1], np.int32)}
    timelines = {version: (first, events)} | ({version - 1: (0, older)} if version else {})
    return UserRecord(user_id=user_id, timelines=timelines, features={})


USERS = [
    record(3, 0, 7),
    record(4, 0, 50),
    record(5, 30, 20, version=2),
    record(6, 0, 0),
    UserRecord(user_id=9, timelines={}, features={}),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    from pyiceberg.catalog import load_catalog

    folder = tmp_path_factory.mktemp("lake")
    catalog = load_catalog("test", type="sql", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    catalog.create_namespace("logs")
    for users in (USERS[:2], USERS):  # the second replaces the first
        states = user_states(retriever(), users)
        num = replace_user_states(
            catalog, "logs.user_states", states, model="m1", snapshots={"main": 17}, num_buckets=4
        )
    assert num == 4
    return catalog.load_table("logs.user_states")


@pytest.fixture(scope="module")
def states_file(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("serving") / "user_states.parquet"
    assert export_user_states(table, path) == 4
    return path


@pytest.mark.slow
@pytest.mark.parametrize("form", ["table", "states_file"])
def test_a_retriever_keeps_them_from_its_start_and_answers_in_the_same_bits(form, request):
    ours = retriever()
    assert keep_user_states(ours, request.getfixturevalue(form)) == len(ours.states) == 4
    for user in USERS[:4]:
        version = max(user.timelines)
        first, events = user.timelines[version]
        end = first + len(events["item_id"])
        request = RetrieveRequest(user_id=user.user_id, k=10, history=Window(events, first, end, version))
        found, fresh = ours.retrieve(request), retriever().retrieve(request)
        assert (found.context, fresh.context) == ("kept", "computed")
        assert found.item_id.tolist() == fresh.item_id.tolist()
        assert found.score.tobytes() == fresh.score.tobytes()
    first, events = USERS[0].timelines[0]
    moved_on = Window({name: np.append(values, 1) for name, values in events.items()}, 0, 8, 0)
    assert ours.retrieve(RetrieveRequest(user_id=3, k=10, history=moved_on)).context == "computed"


def test_the_table_says_what_it_was_made_from_and_is_bucketed_by_user(table):
    assert table.properties[MODEL_PROPERTY] == "m1"
    assert table.properties["reqdedup.snapshots"] == '{"main": 17}'
    assert [str(field.transform) for field in table.spec().fields] == ["bucket[4]"]
    rows = sorted(table.scan().to_arrow().to_pylist(), key=lambda row: row["user_id"])
    windows = [(row["user_id"], row["timeline_version"], row["start"], row["history_end"]) for row in rows]
    assert windows == [(3, 0, 0, 7), (4, 0, 30, 50), (5, 2, 30, 50), (6, 0, 0, 0)]


def test_states_of_another_model_are_refused_and_those_kept_stay_within_their_bytes(table):
    with pytest.raises(ValueError, match="states of the model m2 required, found those of m1"):
        keep_user_states(retriever("m2"), table)
    small = retriever(state_bytes=1200)
    assert keep_user_states(small, table) == 4
    assert len(small.states) == 2


def test_a_worker_keeps_the_states_of_its_own_users(states_file):
    kept = [retriever(), retriever()]
    for number, ours in enumerate(kept):
        keep_user_states(ours, states_file, is_ours=lambda user_id, number=number: worker_of(user_id, 2) == number)
    by_worker = [sum(worker_of(user_id, 2) == number for user_id in (3, 4, 5, 6)) for number in (0, 1)]
    assert [len(ours.states) for ours in kept] == by_worker


def test_a_deleted_user_leaves_the_file_and_nothing_else_does(states_file, tmp_path):
    path = tmp_path / "user_states.parquet"
    path.write_bytes(states_file.read_bytes())
    assert delete_states(path, {4, 99}, dry_run=True) == 1
    assert path.read_bytes() == states_file.read_bytes()
    assert delete_states(path, {4, 99}, dry_run=False) == 1
    before, after = (pq.read_table(one) for one in (states_file, path))
    assert after.equals(before.filter(pc.not_equal(before["user_id"], 4)))
    assert after.schema.metadata == before.schema.metadata
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_file_of_other_things_is_refused(tmp_path):
    pq.write_table(pa.table({"user_id": [1]}), path := tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="a file of user states required, found another Parquet file"):
        keep_user_states(retriever(), path)
    with pytest.raises(ValueError, match="a file of user states required, found none"):
        keep_user_states(retriever(), tmp_path / "nothing")
