"""What serves changes by one assignment; nothing that goes wrong beside it ends the watch for the next change."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from reqdedup.models.bundle import Bundle, write_bundle
from reqdedup.models.items import Items
from reqdedup.models.signature import Signature
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.scheduler import OverloadedError, Scheduler, Work
from reqdedup.serving.server.loading import Loader
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.swap import Models, Part, Served
from reqdedup.serving.server.watching import Watch
from reqdedup.serving.wire.bodies import Inputs
from tests.serving.rankers import SCHEMA, rank_request, small_model, small_ranker, stacked


def part(task: str, fingerprint: str) -> Part:
    return Part(task=task, bundle=fingerprint, fingerprint=fingerprint, run=list, inputs=Inputs())


def put(bundle: str, served: Served) -> Served:
    """`ranking-2` in the place of the ranking model."""
    return replace(served, parts={**served.parts, (task := bundle.partition("-")[0]): part(task, bundle)})


def test_a_shadow_that_is_promoted_brings_no_other_model_back():
    first = put("retrieval-1", put("ranking-1", Served(parts={})))
    with Scheduler() as scheduler:
        models = Models(put, first, scheduler)
        models.start_shadow("ranking-2")
        models.load("retrieval-2")
        with pytest.raises(ValueError, match="models that the shadow began beside required, found others"):
            models.promote_shadow()
        assert [one.fingerprint for one in models.current.parts.values()] == ["ranking-1", "retrieval-2"]
        models.start_shadow("ranking-2")
        models.stop_shadow()
        with pytest.raises(ValueError, match="a model in the shadow required, found none"):
            models.promote_shadow()
        models.start_shadow("ranking-2")
        models.promote_shadow()
        assert [one.fingerprint for one in models.current.parts.values()] == ["ranking-2", "retrieval-2"]


def test_what_a_shadow_began_beside_is_let_go_of_with_the_shadow():
    first = put("ranking-1", Served(parts={}))
    gone = weakref.ref(first)
    with Scheduler() as scheduler:
        models = Models(put, first, scheduler)
        del first
        models.start_shadow("ranking-s")
        models.load("ranking-2")
        models.load("ranking-3")
        models.stop_shadow()
        scheduler.submit(Work(group="behind", run=list, request=None, rows=0)).result(5)
        gc.collect()
        assert gone() is None


def test_a_cache_that_was_dropped_is_not_filled_again_by_requests_that_still_run():
    rng = np.random.default_rng(0)
    cache = ContextCache(1 << 20)
    ranker = small_ranker(cache=cache)
    old = Part(
        task="ranking",
        bundle="ranking-1",
        fingerprint="ranking-1",
        run=ranker.step,
        inputs=Inputs(),
        drop_caches=cache.drop,
        keep_caches=cache.keep,
    )
    with Scheduler() as scheduler:
        models = Models(put, Served(parts={"ranking": old}), scheduler)

        def ranked(part):
            """Through the queue, behind what drops caches."""
            request = rank_request(rng, 70, 3)
            return scheduler.submit(Work(group="of a request", run=part.run, request=request, rows=3)).result()

        admitted = models.current.parts["ranking"]
        ranked(admitted)
        assert len(cache) == 1
        models.load("ranking-2")
        assert stacked(ranked(admitted)).shape == (3, 2)  # the request keeps its model to its answer
        assert (len(cache), cache.num_bytes) == (0, 0)
        models.rollback()
        ranked(models.current.parts["ranking"])
        assert len(cache) == 1


def written(folder, seed):
    model, ids = small_model(seed), np.arange(3)
    signature = Signature.of(model.config, SCHEMA)
    items = Items(item_id_V=ids, count_V=ids, first_seen_V=ids)
    write_bundle(folder, config=model.config, weights=model.state_dict(), signature=signature, items=items)
    return Bundle.load(folder).fingerprint


@contextmanager
def watched(place, serving, load, meanwhile=lambda: None):
    is_ending = threading.Event()
    watch = Watch([str(place)], copies=None)
    meanwhile()
    with Scheduler() as scheduler:
        models = Models(load, Served(parts={"ranking": part("ranking", serving)}), scheduler)
        thread = threading.Thread(target=watch.run, args=[models.load, 0.01, is_ending])
        thread.start()
        try:
            yield models
        finally:
            is_ending.set()
            thread.join()


@pytest.mark.slow
def test_a_watch_outlives_a_load_that_fails_in_any_way_and_sees_the_next_bundle(tmp_path):
    first = written(tmp_path / "place", 0)
    has_failed, has_loaded = threading.Event(), threading.Event()

    def load(bundle: str, served: Served) -> Served:
        if not has_failed.is_set():
            has_failed.set()
            raise RuntimeError("out of memory")
        has_loaded.set()
        return put("ranking-2", served)

    with watched(tmp_path / "place", first, load) as models:
        assert not has_failed.wait(0.1)
        written(tmp_path / "place", 1)
        assert has_failed.wait(10)
        written(tmp_path / "place", 2)
        assert has_loaded.wait(10)
    assert models.swaps == 1


def test_a_watch_reads_manifests_alone_until_they_change_and_says_once_what_it_cannot_read(tmp_path, caplog):
    place, copied = tmp_path / "place", []

    class Counting(Watch):
        def fetch(self, place):
            copied.append(place)
            super().fetch(place)

    class Rounds:
        def __init__(self, *before):
            self.before = [*before]

        def wait(self, _):
            if not self.before:
                return True
            self.before.pop(0)()
            return False

    def nothing():
        pass

    loader, first = Loader(ServeSettings(bundles=(str(place),))), written(place, 0)
    watch = Counting([str(place)], copies=None)
    with Scheduler() as scheduler:
        models = Models(loader.put, loader.first(), scheduler)
        rounds = Rounds(nothing, nothing, lambda: shutil.rmtree(place), nothing, lambda: written(place, 1), nothing)
        watch.run(models.load, 0.0, rounds)
    assert models.swaps == 1
    assert models.current.parts["ranking"].fingerprint != first
    assert copied == [str(place)]  # to have it here, once it is another
    assert caplog.text.count("the place that is watched cannot be read") == 1


def test_a_bundle_that_is_published_while_the_first_is_loaded_is_seen(tmp_path):
    place, has_loaded = tmp_path / "place", threading.Event()
    first = written(place, 0)

    def publish():
        shutil.rmtree(place)
        written(place, 1)

    with watched(place, first, lambda bundle, served: has_loaded.set() or served, publish):
        assert has_loaded.wait(10)


def test_a_place_whose_load_broke_off_with_its_worker_is_loaded_again(tmp_path):
    written(tmp_path / "place", 0)
    watch, loads = Watch([str(tmp_path / "place")], copies=None), []
    written(tmp_path / "place", 1)

    class Rounds:
        def wait(self, _):
            return len(loads) >= 2

    def load(place):
        loads.append(place)
        if len(loads) == 1:
            raise OverloadedError("an answer of worker 1 required, found EOFError", 1)

    watch.run(load, 0.0, Rounds())
    assert loads == [str(tmp_path / "place")] * 2


def test_a_rollback_does_not_wait_for_a_load_which_then_changes_nothing():
    first, second = put("ranking-1", Served(parts={})), put("ranking-2", Served(parts={}))
    is_loading, goes_on = threading.Event(), threading.Event()

    def load(bundle: str, served: Served) -> Served:
        is_loading.set()
        assert goes_on.wait(10)
        return put(bundle, served)

    with Scheduler() as scheduler:
        changes = []
        models = Models(load, second, scheduler, previous=first, changed=lambda one: changes.append(one.folders))
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(models.load, "ranking-3")
            assert is_loading.wait(10)
            assert models.rollback() is first
            goes_on.set()
            with pytest.raises(ValueError, match="be the same while one is loaded required, found a change"):
                loading.result(10)
        assert models.current is first
        assert changes == [(["ranking-1"], ["ranking-2"], [])]
        assert models.load("ranking-3") is models.current
        assert models.previous is first


def test_models_that_serve_already_change_nothing_and_the_way_back_stays():
    with Scheduler() as scheduler:
        models = Models(put, first := put("ranking-1", Served(parts={})), scheduler)
        second = models.load("ranking-2")
        assert models.load("ranking-2") is second is models.current
        assert models.previous is first
        assert models.swaps == 1


def test_a_rollback_that_says_to_what_may_be_repeated_and_ends_a_load_each_time():
    first, second = put("ranking-1", Served(parts={})), put("ranking-2", Served(parts={}))
    is_loading, goes_on = threading.Event(), threading.Event()

    def load(bundle: str, served: Served) -> Served:
        is_loading.set()
        assert goes_on.wait(10)
        return put(bundle, served)

    with Scheduler() as scheduler, ThreadPoolExecutor(1) as pool:
        models = Models(load, second, scheduler, previous=first)
        assert models.rollback(first.fingerprints) is first
        loading = pool.submit(models.load, "ranking-3")
        assert is_loading.wait(10)
        assert models.rollback(first.fingerprints) is first  # as a worker is told that took its siblings' models over
        goes_on.set()
        with pytest.raises(ValueError, match="be the same while one is loaded required, found a change"):
            loading.result(10)
        assert (models.current, models.previous) == (first, second)
        with pytest.raises(ValueError, match="ranking ranking-7 serving or served before required, found") as refused:
            models.rollback({"ranking": "ranking-7"})
        assert "ranking ranking-1 serving and ranking ranking-2 served before" in str(refused.value)
        assert "load the bundle of ranking ranking-7" in str(refused.value)
        assert models.rollback({"ranking": "ranking-2"}) is second


def test_a_promotion_that_says_to_what_may_be_repeated_and_takes_no_other_shadow():
    with Scheduler() as scheduler:
        models = Models(put, put("ranking-1", Served(parts={})), scheduler)
        for has_shadow in (False, True):
            if has_shadow:
                models.start_shadow("ranking-2")
            with pytest.raises(ValueError, match="ranking ranking-3 serving or in the shadow required, found"):
                models.promote_shadow({"ranking": "ranking-3"})
        second = models.promote_shadow({"ranking": "ranking-2"})
        for _ in range(2):
            assert models.promote_shadow({"ranking": "ranking-2"}) is second is models.current
        assert (models.previous.fingerprints, models.shadow, models.swaps) == ({"ranking": "ranking-1"}, None, 1)


def test_a_shadow_that_is_started_twice_keeps_its_counts_and_one_that_is_stopped_while_it_loads_does_not_start():
    is_loading, goes_on = threading.Event(), threading.Event()

    def load(bundle: str, served: Served) -> Served:
        if bundle == "ranking-3":
            is_loading.set()
            assert goes_on.wait(10)
        return put(bundle, served)

    with Scheduler() as scheduler, ThreadPoolExecutor(1) as pool:
        models = Models(load, put("ranking-1", Served(parts={})), scheduler)
        shadow, report = models.start_shadow("ranking-2"), models.report
        report.requests = 7
        assert models.start_shadow("ranking-2") is shadow
        assert models.report is report
        starting = pool.submit(models.start_shadow, "ranking-3")
        assert is_loading.wait(10)
        models.stop_shadow()
        goes_on.set()
        with pytest.raises(ValueError, match="the shadow to be the same while one is loaded required, found a change"):
            starting.result(10)
        assert models.shadow is None


def loader_of(place, folder, **more):
    return Loader(ServeSettings(bundles=(str(place),), serving=str(folder / "serving.json"), **more))


@pytest.mark.slow
def test_a_worker_that_is_started_again_serves_what_its_siblings_do(tmp_path):
    fingerprints = {name: written(tmp_path / name, seed) for seed, name in enumerate(("first", "second", "third"))}

    def serves(loader):
        current, previous, _ = loader.start()
        return [one and one.parts["ranking"].fingerprint for one in (current, previous)]

    with Scheduler() as scheduler:
        loader = loader_of(tmp_path / "first", tmp_path)
        models = Models(loader.put, loader.start()[0], scheduler, changed=loader.changed)
        loader.changed(models, is_start=True)
        written(tmp_path / "first", 7)  # published since, and nobody was told to load it
        assert loader_of(tmp_path / "first", tmp_path).first().parts["ranking"].fingerprint != fingerprints["first"]
        written(tmp_path / "first", 0)
        assert serves(loader_of(tmp_path / "first", tmp_path)) == [fingerprints["first"], None]
        models.load(str(tmp_path / "second"))
        models.load(str(tmp_path / "third"))
        assert serves(loader_of(tmp_path / "first", tmp_path)) == [fingerprints["third"], fingerprints["second"]]
        models.rollback()
        again = loader_of(tmp_path / "first", tmp_path)
        assert serves(again) == [fingerprints["second"], fingerprints["third"]]
        again.changed(Models(again.put, again.first(), scheduler), is_start=True)  # says nothing: there is something
        assert serves(loader_of(tmp_path / "first", tmp_path)) == [fingerprints["second"], fingerprints["third"]]
        shutil.rmtree(tmp_path / "second")
        assert serves(loader_of(tmp_path / "first", tmp_path)) == [fingerprints["first"], None]


@pytest.mark.slow
def test_a_worker_that_is_started_again_has_the_shadow_of_its_siblings_and_promotes_it_once(tmp_path):
    fingerprints = {name: written(tmp_path / name, seed) for seed, name in enumerate(("first", "second", "third"))}

    def started_again(scheduler):
        loader = loader_of(tmp_path / "first", tmp_path)
        first, previous, shadow = loader.start()
        return Models(loader.put, first, scheduler, previous=previous, shadow=shadow)

    def named(served):
        return served and served.fingerprints["ranking"]

    with Scheduler() as scheduler:
        loader = loader_of(tmp_path / "first", tmp_path)
        models = Models(loader.put, loader.start()[0], scheduler, changed=loader.changed)
        models.start_shadow(str(tmp_path / "second"))
        before = started_again(scheduler)
        assert named(before.shadow) == fingerprints["second"]
        models.promote_shadow()
        after = started_again(scheduler)
        for again in (before, after):
            again.promote_shadow({"ranking": fingerprints["second"]})
            found = [named(one) for one in (again.current, again.previous, again.shadow)]
            assert found == [fingerprints["second"], fingerprints["first"], None]
        models.start_shadow(str(tmp_path / "third"))
        models.rollback()  # the shadow began beside another model
        with pytest.raises(ValueError, match="models that the shadow began beside required, found others"):
            started_again(scheduler).promote_shadow()
        shutil.rmtree(tmp_path / "third")
        gone = started_again(scheduler)
        assert (named(gone.current), gone.shadow) == (fingerprints["first"], None)
