"""A ranker's answers have the bits of a fresh computation, whatever it kept and whatever was asked beside."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from reqdedup.models.items import Items
from reqdedup.models.signature import Signature
from reqdedup.sequences.store import StoreUnavailableError, Window
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import RankRequest, RequestError
from tests.sequences.plain_store import PlainStore, make_events
from tests.serving.rankers import (
    SCHEMA,
    batch_of,
    candidates,
    features,
    fresh,
    rank_request,
    small_model,
    small_ranker,
    stacked,
    window,
)


@pytest.mark.slow
def test_a_request_alone_has_the_bits_of_any_step():
    rng, ranker = np.random.default_rng(0), small_ranker(small_model(max_history=700))
    requests = [
        rank_request(rng, int(rng.choice([0, 1, 15, 64, 257, *rng.integers(0, 400, 5)])), int(m), user_id=user)
        for user, m in enumerate(rng.integers(1, 40, 100))
    ]
    alone = [small_ranker(ranker.model).rank(request) for request in requests]
    for size in (7, 50):
        at = 0
        while at < len(requests):
            together = requests[at : at + size]
            for request, answer, one in zip(together, ranker.step(together), alone[at : at + size], strict=True):
                assert np.array_equal(stacked(answer), stacked(one))
                assert np.array_equal(stacked(answer), fresh(ranker, request))
            at += size
    assert ranker.cache.counts.kept >= 80  # the second time round


class Machine(RuleBasedStateMachine):
    """Two users, two models, one store and one cache; after every change both are ranked now and at an earlier moment,
    and compared with a computation that kept nothing."""

    cache_bytes = 300_000

    @initialize(ends=st.tuples(st.integers(0, 90), st.integers(130, 190)))
    def begin(self, ends):
        self.store, self.cache, self.rng = PlainStore(), self.new_cache(), np.random.default_rng(0)
        self.models, self.number = [small_model(seed, max_history=200) for seed in (0, 1)], 0
        self.swap(0, False)
        for user, end in enumerate(ends):
            self.append(user, end, 0)

    def new_cache(self):
        return ContextCache(self.cache_bytes)

    @rule(variant=st.integers(0, 2), evicts=st.booleans())
    def swap(self, variant, evicts):
        """Another model, another window and type of keys and values, or an empty cache."""
        model, stride, kv_type = [(0, 0, "full"), (1, 0, "full"), (0, 70, "int8")][variant]
        options = {"fingerprint": str(model), "stride": stride, "kv_type": kv_type}
        self.ranker = small_ranker(self.models[model], store=self.store, cache=self.cache, **options)
        if evicts:
            self.cache.forget()

    @rule(user=st.integers(0, 1), count=st.integers(0, 30), back=st.integers(0, 40))
    def append(self, user, count, back):
        self.number += count
        events = make_events(range(self.number, self.number + count))
        self.store.append(user, events, key=f"{self.number}, {user}, {len(self.store.answers)}")
        self.rank(back)

    @rule(user=st.integers(0, 1), first=st.integers(0, 190), is_new_version=st.booleans(), back=st.integers(0, 40))
    def change(self, user, first, is_new_version, back):
        """Events from one on are others: in a new version, or in the same one, which nobody should do."""
        newest = self.store.newest(user)
        _, held = self.store.timelines[user, newest]
        others = [(item_id + 5, *rest) for item_id, *rest in held[first:]]
        self.store.timelines[user, newest + is_new_version] = 0, held[:first] + others
        self.rank(back)

    def rank(self, back):
        requests = []
        for user in (0, 1):
            end = self.store.end(user)
            for at in (None, max(0, end.end - back)) if end else (None,):
                asked = {"candidates": candidates(self.rng, 3), "request": features(self.rng)}
                requests.append(RankRequest(user_id=user, at=at, **asked))
        for request, answer in zip(requests, self.ranker.step(requests), strict=True):
            found = self.store.window(request.user_id, ["item_id", "action"], start_of=lambda end: 0, at=request.at)
            whole = found or Window({"item_id": np.zeros(0, np.int64), "action": np.zeros(0, np.int32)}, 0, 0, 0)
            history = self.ranker.transforms.history(whole.columns, end=whole.end)
            context = self.ranker.model.encode_blocks(history, kv_type=self.ranker.kv_type)
            batch = batch_of(self.ranker, replace(request, history=whole, at=None))
            assert np.array_equal(stacked(answer), self.ranker.model.predict_exact(batch, [context]).numpy())
            start = whole.end - len(history["item_id"])
            assert (answer.start, answer.end, answer.model) == (start, whole.end, self.ranker.fingerprint)

    @invariant()
    def the_cache_knows_its_size(self):
        entries = self.cache._entries.values()
        assert self.cache.num_bytes == sum(entry.num_bytes for entry in entries) <= self.cache_bytes


MACHINE = settings(
    max_examples=6, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.slow
def test_answers_never_depend_on_what_was_kept():
    run_state_machine_as_test(Machine, settings=MACHINE)


class BlindCache(ContextCache):
    """Takes a kept context for a beginning of any longer history of the user."""

    def contexts(self, asked, compute):
        for one in asked:
            if (entry := self._entries.get(one.key)) is not None:
                self._entries[one.key] = replace(entry, window=one.window, events=one.events)
        return super().contexts(asked, compute)


@pytest.mark.slow
def test_a_cache_that_trusts_lengths_is_caught():
    class Blind(Machine):
        def new_cache(self):
            return BlindCache(self.cache_bytes)

        def rank(self, back):
            super().rank(back)
            self.cache.num_bytes = sum(entry.num_bytes for entry in self.cache._entries.values())

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Blind, settings=settings(MACHINE, phases=[Phase.generate]))


def test_users_models_tables_schemas_windows_types_and_modes_share_nothing():
    rng, cache = np.random.default_rng(0), ContextCache(10_000_000)
    request, model = rank_request(rng, 70, 4), small_model()
    variants = [
        {},
        {"fingerprint": "other"},
        {"tables": "other"},
        {"schema": "other"},
        {"stride": 3},
        {"kv_type": "float16"},
        {"kv_type": "int8"},
        {"deterministic": False},
    ]
    for variant in variants:
        answer = small_ranker(model, cache=cache, **variant).rank(request)
        assert answer.context == "computed", variant
    assert small_ranker(model, cache=cache).rank(replace(request, user_id=2)).context == "computed"
    assert len(cache) == len(variants) + 1
    for variant in variants:
        assert small_ranker(model, cache=cache, **variant).rank(request).context == "kept"
    cache.forget("other")
    assert len(cache) == len(variants)


def test_a_context_is_extended_until_its_window_moves():
    rng, ranker = np.random.default_rng(0), small_ranker(stride=20)
    whole = window(rng, 200)
    origins = []
    for end in (70, 80, 80, 81, 101, 103, 75):
        columns = {name: values[:end] for name, values in whole.columns.items()}
        request = replace(rank_request(rng, 0, 3), history=Window(columns, 0, end, 0))
        answer = ranker.rank(request)
        assert np.array_equal(stacked(answer), fresh(ranker, request))
        origins.append((answer.context, answer.start))
    assert origins == [
        ("computed", 0),
        ("extended", 0),
        ("kept", 0),
        ("computed", 20),
        ("computed", 40),
        ("extended", 40),
        ("computed", 0),
    ]


def test_a_step_that_runs_out_of_memory_is_tried_once_more_without_the_kept_contexts():
    rng, ranker = np.random.default_rng(0), small_ranker()
    request, score, left = rank_request(rng, 50, 4), ranker.folded.score, [1, 2]
    wanted = fresh(ranker, request)

    def short_of_memory(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(*arguments, **options)

    ranker.folded.score = short_of_memory
    assert np.array_equal(stacked(ranker.rank(request)), wanted)
    assert len(ranker.cache) == 0
    left[:] = [2]
    with pytest.raises(torch.OutOfMemoryError):
        ranker.rank(request)
    assert np.array_equal(stacked(ranker.rank(request)), wanted)


def test_threads_that_ask_for_one_context_compute_it_once():
    rng, ranker = np.random.default_rng(0), small_ranker(small_model(max_history=600))
    request = rank_request(rng, 600, 20)
    wanted = fresh(ranker, request)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ranker.rank, [request] * 24))
    assert all(np.array_equal(stacked(answer), wanted) for answer in answers)
    assert sorted(answer.context for answer in answers) == ["computed"] + ["kept"] * 23


@pytest.mark.slow
def test_threads_over_many_users_get_the_bits_of_one():
    rng, ranker = np.random.default_rng(1), small_ranker(cache=ContextCache(120_000))
    requests = [rank_request(rng, int(rng.integers(0, 100)), 5, user_id=int(rng.integers(6))) for _ in range(60)]
    wanted = [fresh(ranker, request) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ranker.rank, requests))
    assert all(map(np.array_equal, map(stacked, answers), wanted))


@pytest.mark.slow
@pytest.mark.parametrize("kv_type", ["full", "int8"])
def test_the_fast_mode_has_the_same_values(kv_type):
    rng, model = np.random.default_rng(0), small_model(max_history=300)
    fast = small_ranker(model, deterministic=False, kv_type=kv_type)
    requests = [rank_request(rng, int(n), 6, user_id=user) for user, n in enumerate(rng.integers(0, 300, 12))]
    shorter = [
        replace(
            one,
            history=Window({n: x[: len(x) // 2] for n, x in one.history.columns.items()}, 0, one.history.end // 2, 0),
        )
        for one in requests
    ]
    for together in (shorter, requests):
        wanted = np.concatenate([fresh(fast, request) for request in together])
        found = np.concatenate([stacked(answer) for answer in fast.step(together)])
        error = np.abs(found - wanted).max()
        assert error <= (1e-4 if kv_type == "full" else 0.03 * wanted.std())
    assert fast.cache.counts.extended >= 10


def test_no_candidates_make_an_empty_answer_and_a_kept_context():
    rng, ranker = np.random.default_rng(0), small_ranker()
    request = rank_request(rng, 50, 4)
    empty = ranker.rank(replace(request, candidates={name: x[:0] for name, x in request.candidates.items()}))
    assert {label: logit.shape for label, logit in empty.logits.items()} == {"click": (0,), "save": (0,)}
    assert ranker.rank(request).context == "kept"


class DownStore(PlainStore):
    def window(self, *arguments, **options):
        raise StoreUnavailableError("no answer in 1 s")

    fetch = request_features = window


def test_a_missing_history_is_refused_or_marked_and_an_unknown_user_has_none():
    rng = np.random.default_rng(0)
    request = replace(rank_request(rng, 0, 4), history=None)
    wanted = fresh(small_ranker(), replace(request, history=window(rng, 0)))
    with pytest.raises(
        RequestError, match="a history required, found none: the request has none, and there is no store"
    ):
        small_ranker().rank(request)
    with pytest.raises(StoreUnavailableError, match="no answer"):
        small_ranker(store=DownStore()).rank(request)
    for store in (None, DownStore()):
        answer = small_ranker(store=store, on_missing_history="empty").rank(request)
        assert (answer.marks, answer.end) == (("history",), 0)
        assert np.array_equal(stacked(answer), wanted)
    with pytest.raises(StoreUnavailableError):
        small_ranker(store=DownStore(), on_missing_history="empty").rank(without(request, "request", "age_days"))
    marked = small_ranker(store=DownStore(), on_missing_history="empty").rank(without(request, "request", "device"))
    assert marked.marks == ("history", "device")
    unknown = small_ranker(store=PlainStore()).rank(request)
    assert (unknown.marks, unknown.end) == ((), 0)
    assert np.array_equal(stacked(unknown), wanted)


def test_features_of_the_request_stand_before_those_of_the_store():
    rng, store = np.random.default_rng(0), PlainStore()
    store.features[1] = features(rng)
    ranker = small_ranker(store=store)
    request = rank_request(rng, 30, 4)
    age_alone = replace(request, request={"age_days": 5.0})
    both = replace(request, request={**store.features[1], "age_days": 5.0})
    assert np.array_equal(stacked(ranker.rank(age_alone)), fresh(ranker, both))
    with pytest.raises(RequestError, match="user_embedding required, found neither in the request nor stored"):
        ranker.rank(replace(age_alone, user_id=2))


def test_a_forgotten_feature_counts_as_null_and_marks_the_answer():
    model, request = small_model(), rank_request(np.random.default_rng(0), 30, 4)
    signature = Signature.of(model.config, SCHEMA)
    loaded = Signature.from_dict(json.loads(json.dumps(signature.to_dict(model.config))))
    for transforms in (signature.transforms, loaded.transforms):  # as trained, and as a bundle brings it
        ranker = Ranker(model, transforms, fingerprint="model", store=PlainStore())
        null = ranker.rank(changed(request, "request", device=None))
        forgotten = ranker.rank(without(request, "request", "device"))
        assert np.array_equal(stacked(forgotten), stacked(null))
        assert (null.marks, forgotten.marks) == ((), ("device",))


def test_columns_of_known_items_may_be_left_out():
    count_V = np.ones(3, np.int64)
    columns = {"item_category": np.array([1, 2, 3], np.int32)}
    items = Items(item_id_V=np.array([3, 5, 9]), count_V=count_V, first_seen_V=count_V, columns=columns)
    request, ranker = rank_request(np.random.default_rng(0), 30, 3), small_ranker(items=items)
    short = replace(request, candidates={"item_id": [9, 3, 9]})
    long = replace(request, candidates={"item_id": [9, 3, 9], "item_category": [3, 1, 3]})
    assert np.array_equal(stacked(ranker.rank(short)), fresh(ranker, long))
    for unknown in (4, 10, -1):
        with pytest.raises(RequestError, match=f"item_category of item {unknown} required"):
            ranker.rank(replace(request, candidates={"item_id": [3, unknown]}))


def changed(request, part, **values):
    return replace(request, **{part: {**getattr(request, part), **values}})


def without(request, part, name):
    return replace(request, **{part: {n: x for n, x in getattr(request, part).items() if n != name}})


NAN, BIG = float("nan"), 2**40
REFUSED = {
    "no item_id": (lambda r: without(r, "candidates", "item_id"), "column item_id required, found item_category"),
    "no category": (lambda r: without(r, "candidates", "item_category"), "item_category required, found neither"),
    "two lengths": (lambda r: changed(r, "candidates", item_category=[1]), "candidates.item_category: 4 values, one for each item_id, required, found 1"),
    "text": (lambda r: changed(r, "candidates", item_id=list("abcd")), "candidates.item_id: a list of int64 required, found 'a' at place 0"),
    "a category too large": (lambda r: changed(r, "candidates", item_category=[BIG] * 4), "candidates.item_category: a list of int32 required, found 1099511627776 at place 0"),
    "an id too large": (lambda r: changed(r, "candidates", item_id=[2**64] * 4), "item_id"),
    "a null id": (lambda r: changed(r, "candidates", item_id=[1, None, 2, 3]), "candidates.item_id: a list of int64 required, found None at place 1"),
    "too many": (lambda r: changed(r, "candidates", item_id=range(9999)), "at most 4096 required, found 9999"),
    "no feature": (lambda r: without(r, "request", "age_days"), "age_days required, found neither"),
    "a null feature": (lambda r: changed(r, "request", age_days=None), "request.age_days: a finite float32 required, found None"),
    "NaN in a vector": (lambda r: changed(r, "request", user_embedding=[1, NAN, 2]), "request.user_embedding: 3 numbers (float32) required, found nan at place 1"),
    "another width": (lambda r: changed(r, "request", user_embedding=[1.0, 2.0]), "request.user_embedding: 3 numbers (float32) required, found [1.0, 2.0]"),
    "ragged": (lambda r: changed(r, "request", user_embedding=[[1], [2, 3]]), "user_embedding"),
    "infinite": (lambda r: changed(r, "request", age_days=float("inf")), "request.age_days: a finite float32 required, found inf"),
    "a real device": (lambda r: changed(r, "request", device=1.5), "request.device: a whole number"),
    "a huge user": (lambda r: replace(r, user_id=2**70), "user_id"),
    "a history shorter than it says": (lambda r: replace(r, history=replace(r.history, end=99)), "99 events in each column"),
    "a history before the first event": (lambda r: replace(r, history=replace(r.history, start=-1)), "history.start: at least 0 required, found -1"),
    "half a history": (lambda r: replace(r, history=Window({"item_id": np.arange(3)}, 0, 3, 0)), "column action required"),
    "a history of another moment": (lambda r: replace(r, at=7), "at: 30 of the request's own history required, found 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_and_others_of_the_step_are_answered(case):
    change, message = REFUSED[case]
    ranker, good = small_ranker(), rank_request(np.random.default_rng(0), 30, 4)
    first, refused, last = ranker.step([good, change(good), good])
    assert isinstance(refused, RequestError)
    assert message in str(refused)
    assert np.array_equal(stacked(first), fresh(ranker, good))
    assert np.array_equal(stacked(last), stacked(first))


def test_duplicates_and_columns_of_others_are_no_fault():
    ranker, request = small_ranker(), rank_request(np.random.default_rng(0), 30, 4)
    twice = changed(request, "candidates", item_id=[7] * 4, item_category=[1] * 4, colour=list("abcd"))
    logits = stacked(ranker.rank(changed(twice, "request", mood="good")))
    assert (logits == logits[0]).all()
