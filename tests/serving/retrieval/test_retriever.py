"""A retriever answers with the items nearest to the tower's own user vector, whatever states it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reqdedup.arrays.windows import HistoryCut
from reqdedup.models import TwoTower
from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.models.items import Items
from reqdedup.models.signature import Signature
from reqdedup.models.transforms import Transforms
from reqdedup.models.two_tower import UserHead
from reqdedup.schema import Column, Kind, Level
from reqdedup.sequences.store import StoreUnavailableError, UserRead, Window, events_digest
from reqdedup.serving.requests import ItemFilter, RequestError, RetrieveRequest
from reqdedup.serving.retrieval.approximate_index import INDEX_NAME, build_index
from reqdedup.serving.retrieval.item_index import ExactIndex, nearest
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.state_cache import StateCache, StateKey
from tests.models.batches import two_tower_config

REQUEST = {"device": 3, "user_embedding": [0.5, -1.0, 2.0], "age_days": 40.0}
CUT = HistoryCut(max_events=20, stride=5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TwoTower(two_tower_config()).eval()


@pytest.fixture(scope="module")
def items(model):
    item_id = torch.arange(0, 600, 3)
    category = (item_id % 4).int()
    with torch.no_grad():
        vectors = model.encode_items(item_id, {"item_category": category})
    return ItemVectors.of(item_id.numpy(), vectors.numpy(), {"item_category": category.numpy()})


def window(end, *, seed=0, start=0, version=0):
    rng = np.random.default_rng(seed)
    columns = {"item_id": rng.integers(0, 600, 100), "action": rng.integers(0, 4, 100).astype(np.int32)}
    return Window({name: values[start:end] for name, values in columns.items()}, start, end, version)


class OneTimeline:
    """A store of one timeline, of user 7."""

    is_down = False

    def window(self, user_id, columns, *, start_of, at=None, version=None):
        if self.is_down:
            raise StoreUnavailableError("the store does not answer")
        end = 30 if at is None else at
        return window(end, start=start_of(end)) if user_id == 7 else None

    def fetch(self, user_id, columns, names, **ask):
        return UserRead(window=self.window(user_id, columns, **ask), features=self.request_features(user_id, names))

    def request_features(self, user_id, names):
        return {name: REQUEST[name] for name in names if name in ("device", "user_embedding")}


def transforms():
    columns = (
        Column(name="item_id", dtype="int64", level=Level.KEY),
        Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
        Column(name="device", dtype="int32", level=Level.REQUEST),
        Column(name="user_embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=3),
        Column(name="age_days", dtype="float32", level=Level.REQUEST),
        Column(name="item_category", dtype="int32", level=Level.ITEM),
    )
    return Transforms(columns=columns, cut=CUT)


def retriever(model, items, **options):
    return Retriever(model, transforms(), items, fingerprint="m1", **options)


def ask(**changes):
    return RetrieveRequest(**{"user_id": 7, "k": 10, "request": REQUEST, "history": window(12), **changes})


def answer(found):
    return found.item_id.tolist(), found.score.tobytes()


def test_it_finds_the_items_nearest_to_the_tower_s_user_vector(model, items):
    found = retriever(model, items).retrieve(ask())
    state_D = model.user_state({name: torch.from_numpy(values) for name, values in window(12).columns.items()})
    request = {name: torch.tensor(value)[None] for name, value in REQUEST.items()}
    user_D = UserHead(model)(state_D.numpy(), request)
    row, score, _ = nearest(items, ExactIndex(items), user_D, 10, ItemFilter())
    assert answer(found) == (items.item_id[row].tolist(), score.tobytes())
    assert (found.index, found.model, found.start, found.end, found.context) == ("exact", "m1", 0, 12, "computed")


def test_a_kept_state_gives_the_same_bits_and_another_request_enters_the_head(model, items):
    ours = retriever(model, items)
    first, again, other = (ours.retrieve(ask(**c)) for c in ({}, {}, {"request": REQUEST | {"age_days": 4000.0}}))
    assert (first.context, again.context, other.context) == ("computed", "kept", "kept")
    assert answer(first) == answer(again)
    assert answer(first) != answer(other)


def test_numbers_of_another_type_are_the_same_history(model, items):
    ours = retriever(model, items)
    first = ours.retrieve(ask())
    plain = Window({name: values.tolist() for name, values in window(12).columns.items()}, 0, 12, 0)
    assert ours.retrieve(ask(history=plain)).context == "kept"
    assert first.start == 0


@pytest.mark.parametrize("changes", [{"user_id": 8}, {"history": window(13)}, {"history": window(12, version=1)}, {"history": window(12, seed=1)}], ids=["user", "end", "version", "events"])  # fmt: skip
def test_a_state_serves_only_the_history_that_it_was_computed_from(model, items, changes):
    ours, fresh = retriever(model, items), retriever(model, items)
    ours.retrieve(ask())
    found = ours.retrieve(ask(**changes))
    assert found.context == "computed"
    assert answer(found) == answer(fresh.retrieve(ask(**changes)))


def test_a_history_in_the_body_is_cut_as_the_store_cuts_it(model, items):
    ours = retriever(model, items, store=OneTimeline())
    stored, sent = ours.retrieve(ask(history=None)), ours.retrieve(ask(history=window(30)))
    assert (stored.start, stored.end) == (sent.start, sent.end) == (10, 30)
    assert sent.context == "kept"
    assert answer(stored) == answer(sent)
    earlier = ours.retrieve(ask(history=None, at=12))
    assert answer(earlier) == answer(ours.retrieve(ask()))


def test_unseen_items_are_those_that_the_window_lacks(model, items):
    ours = retriever(model, items)
    for deny in (None, items.item_id[:50]):
        found = ours.retrieve(ask(k=200, filter=ItemFilter(unseen=True, deny=deny))).item_id
        wanted = np.setdiff1d(items.item_id, window(12).columns["item_id"])
        assert sorted(found) == sorted(np.setdiff1d(wanted, [] if deny is None else deny))


def test_request_features_come_from_the_store_unless_sent(model, items):
    ours = retriever(model, items, store=OneTimeline())
    assert answer(ours.retrieve(ask(request={"age_days": 40.0}))) == answer(ours.retrieve(ask()))
    with pytest.raises(RequestError, match="age_days required, found neither"):
        ours.retrieve(ask(request={}))


def test_a_missing_history_is_refused_or_counts_as_empty_and_is_marked(model, items):
    store, empty = OneTimeline(), answer(retriever(model, items).retrieve(ask(history=window(0))))
    unknown = retriever(model, items, store=store).retrieve(ask(history=None, user_id=8))
    assert (answer(unknown), unknown.marks) == (empty, ())  # a user without events misses nothing
    with pytest.raises(RequestError, match="the request has none, and there is no store"):
        retriever(model, items).retrieve(ask(history=None))
    store.is_down = True
    found = retriever(model, items, store=store, on_missing_history="empty").retrieve(ask(history=None))
    assert (answer(found), found.marks) == (empty, ("history",))
    with pytest.raises(StoreUnavailableError):
        retriever(model, items, store=store).retrieve(ask(history=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": 2**63}, "user_id: a whole number"),
        ({"k": 0}, "k: at least 1 item required, found 0"),
        ({"history": Window({"item_id": np.arange(3)}, 0, 3, 0)}, "history: column action required"),
        ({"history": Window(window(3).columns, 1, 3, 0)}, "2 events in each column, from start 1 to end 3, required"),
        ({"history": Window(window(3).columns, 3, 0, 0)}, "history.end: at least the start, 3, required, found 0"),
        ({"request": REQUEST | {"device": "phone"}}, "request.device: a whole number from .* required, found 'phone'"),
        (
            {"request": REQUEST | {"user_embedding": [1.0]}},
            r"request.user_embedding: 3 numbers .float32. required, found \[1.0\]",
        ),
        ({"request": REQUEST | {"device": None}}, "request.device: a whole number from .* required, found none"),
    ],
)
def test_what_cannot_be_answered_says_why(model, items, changes, message):
    with pytest.raises(RequestError, match=message):
        retriever(model, items).retrieve(ask(**changes))


def test_features_that_the_model_cannot_add_up_are_refused(model, items):
    request = {name: torch.tensor(value)[None] for name, value in REQUEST.items()}
    request["user_embedding"] = torch.full((1, 3), 3e38)
    state_D = np.full(8, np.inf, np.float32)
    with pytest.raises(RequestError, match="numbers that the model can add up"):
        retriever(model, items).user_vector(state_D, request)


@pytest.mark.parametrize("has_index", [False, True])
def test_a_bundle_gives_the_retriever_of_its_model_items_and_index(model, items, tmp_path, has_index):
    keys = tuple(f"item {item}" for item in items.item_id)
    known = Items(
        item_id_V=items.item_id, count_V=items.item_id % 7, first_seen_V=items.item_id, columns=items.columns, keys=keys
    )
    signature = Signature(
        transforms=transforms(), outputs=("cosine",), labels=(), positive_label=None, schema="", snapshot_id=None
    )
    artifacts = {}
    if has_index:
        pytest.importorskip("faiss")
        build_index(items.vectors, tmp_path / "index", kind="IVF4,SQ8", probed=1)
        artifacts[INDEX_NAME] = tmp_path / "index"
    folder = write_bundle(
        tmp_path / "bundle", config=model.config, weights=model.state_dict(), signature=signature, items=known,
        item_vectors=items.vectors, artifacts=artifacts,
    )  # fmt: skip
    bundle = Bundle.load(folder)
    ours = Retriever.of(bundle, store=OneTimeline())
    found, exact = ours.retrieve(ask(k=3)), retriever(model, items).retrieve(ask(k=200))
    assert (found.index, found.model) == ("ivf4" if has_index else "exact", bundle.fingerprint)
    scores = dict(zip(exact.item_id.tolist(), exact.score.tolist()))
    assert all(scores[item] == score for item, score in zip(found.item_id.tolist(), found.score.tolist()))
    assert ours.items.keys == keys
    assert set(ours.items.columns) == {"item_category", "count", "first_seen"}
    if has_index:
        (folder / INDEX_NAME).write_bytes(b"another file")
        with pytest.raises(ValueError, match="bytes required, found 12"):
            Retriever.of(bundle)


def test_states_stay_within_their_bytes_and_the_one_not_asked_for_longest_leaves():
    cache, state_D = StateCache(3 * (512 + 32)), np.zeros(8, np.float32)
    keys = [StateKey("m", user, 0, 0, 5) for user in range(4)]
    for key in keys[:3]:
        cache.put(key, b"digest", state_D)
    assert cache.get(keys[0], b"digest") is not None
    cache.put(keys[0], b"other", state_D)
    cache.put(keys[3], b"digest", state_D)
    assert [cache.get(key, b"digest") is not None for key in keys] == [False, False, True, True]
    assert (len(cache), cache.num_bytes) == (3, cache.max_bytes)
    StateCache(10).put(keys[0], b"digest", state_D)


def test_a_digest_tells_names_types_and_values_apart():
    histories = [
        {"a": np.array([1, 2]), "b": np.array([3])},
        {"a": np.array([1]), "b": np.array([2, 3])},
        {"a": np.array([1, 2], np.int32), "b": np.array([3])},
        {"a": np.array([1, 2]), "c": np.array([3])},
        {"a": np.array([1, 2])[:0], "b": np.array([3])[:0]},
    ]
    assert len({events_digest(history) for history in histories}) == len(histories)
