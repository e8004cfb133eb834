"""From bundles to what serves: loaded, self-tested and warmed, before the first request or beside those that run."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reqdedup.models.bundle import Bundle
from reqdedup.models.registry import name_of
from reqdedup.models.transforms import history_name
from reqdedup.schema import Column, Kind, Level
from reqdedup.sequences.places import open_store
from reqdedup.serving.bundles.copies import Copies
from reqdedup.serving.bundles.places import find_bundles
from reqdedup.serving.funnel.config import FunnelConfig, load_funnel_config
from reqdedup.serving.funnel.light_model import LightModel
from reqdedup.serving.funnel.logged import LoggedRecommender
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.impressions.log import ImpressionLog
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.ranking.self_test import self_test
from reqdedup.serving.requests import RequestError
from reqdedup.serving.retrieval.retriever import Retriever
from reqdedup.serving.retrieval.states_file import model_of
from reqdedup.serving.routing import worker_of
from reqdedup.serving.server.settings import ServeSettings
from reqdedup.serving.server.swap import Models, Part, Served
from reqdedup.serving.wire.bodies import Inputs

logger = logging.getLogger(__name__)

LIGHT = "light_ranking"
"""Task of an early ranker here, where the funnel's file names one: it answers inside the funnel alone."""


@dataclass(eq=False, kw_only=True)
class LoadedPart(Part):
    """A part with what answers behind it, so that a funnel can be put together; of light ranking the bundle, since its
    items are those of the retriever beside it."""

    answers: Ranker | Retriever | Bundle


def _check_device(name: str) -> None:
    """Raises ValueError for a device that this torch does not have."""
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"a device cpu or cuda required, found {name!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("a GPU that torch finds required for --device cuda, found none; take cpu")


class Loader:
    """Loads bundles for one process. worker: its number, None if it is alone and asked about all users."""

    def __init__(self, settings: ServeSettings, *, worker: int | None = None) -> None:
        if settings.user_states is not None:
            model_of(Path(settings.user_states))
        self._settings, self._worker = settings, worker
        _check_device(settings.device)
        if settings.may_load_from is not None and not Path(settings.may_load_from).is_dir():
            raise ValueError(f"{settings.may_load_from}: a folder of bundles to load from required, found none")
        self.store = open_store(settings.store) if settings.store else None
        self.impressions = ImpressionLog(settings.impressions) if settings.impressions else None
        self._changing = threading.Lock()
        self._copies = Copies(Path(settings.copies)) if settings.copies else None
        self._funnel = load_funnel_config(settings.funnel) if settings.funnel else FunnelConfig()

    def start(self) -> tuple[Served, Served | None, tuple[Served, dict[str, str]] | None]:
        """What serves, what served before it, and what runs in the shadow, beside which models: as the siblings of a
        worker that is started again have written, else what the settings name."""
        serving = Path(self._settings.serving) if self._settings.serving else None
        if serving is not None and serving.exists():
            said = json.loads(serving.read_text())
            try:
                current = self.first(said["current"])
                previous = self.first(said["previous"]) if said["previous"] else None
                return current, previous, self._shadow(said, current)
            except (ValueError, OSError) as error:
                logger.warning("what serves could not be loaded, what the server was started with is: %s", error)
        return self.first(), None, None

    def _shadow(self, said: Mapping[str, Any], current: Served) -> tuple[Served, dict[str, str]] | None:
        """Its models that serve already are not loaded twice."""
        if not said["shadow"]:
            return None
        kept = {one.bundle: one for one in current.parts.values()}
        try:
            return self.first(said["shadow"], kept), said["shadow_of"]
        except Exception as error:  # of a model too, which its self-test runs: what serves does not need it
            logger.warning("what ran in the shadow could not be loaded: %s", error)
            return None

    def changed(self, models: Models, *, is_start: bool = False) -> None:
        """Say what serves now to workers that will be started, and let go of copies that nothing needs any more.

        is_start: nothing changed; another worker may have said something newer.
        """
        with self._changing:  # who reads what serves last also says it last
            current, previous, shadow = models.folders
            if self._settings.serving is not None:
                path = Path(self._settings.serving)
                made = path.with_name(f".{path.name}.{os.getpid()}")
                with suppress(OSError):  # it is there at the start, or the server has ended, and the folder with it
                    said = {"current": current, "previous": previous}
                    made.write_text(json.dumps(said | {"shadow": shadow, "shadow_of": models.shadow_of}))
                    (os.link if is_start else os.replace)(made, path)
                made.unlink(missing_ok=True)
            if self._copies is not None:
                self._copies.keep_only(map(Path, (*current, *previous, *shadow)))

    def first(self, places: Sequence[str] | None = None, kept: Mapping[str, Part] | None = None) -> Served:
        """What these places hold, by default those of the settings and of the funnel's light ranking.

        kept: parts by place that are loaded already.
        Raises ValueError for two bundles of one task, and for light ranking by another model than an early ranker.
        """
        parts: dict[str, Part] = {}
        if places is None and (light := self._funnel.light.bundle):
            found = self._parts(light)
            if [part.task for part in found] != [LIGHT]:
                raise ValueError(
                    f"{light}: one bundle, an early ranker, required for light ranking, found "
                    f"{', '.join(part.task for part in found)}"
                )
            parts[LIGHT] = found[0]
        for place in self._settings.bundles if places is None else places:
            for part in [kept[place]] if kept and place in kept else self._parts(place):
                if (other := parts.get(part.task)) is not None:
                    raise ValueError(f"one bundle of each task required, found {other.bundle} and {part.bundle}")
                parts[part.task] = part
        return self._served(parts)

    def put(self, place: str, served: Served) -> Served:
        """What serves, with the bundles of this place instead of those of their tasks; all of them change at once."""
        return self._served({**served.parts, **{part.task: part for part in self._parts(place)}})

    def folders(self, place: str) -> list[Path]:
        """Of the bundles there, on this machine."""
        return find_bundles(place, cache=Path(self._settings.copies) if self._settings.copies else None)

    def event_columns(self) -> dict[str, Column] | None:
        """Of the store, as what its events must have."""
        if self.store is None:
            return None
        return {
            name: Column(name=name, dtype=dtype, level=Level.REQUEST, kind=Kind.SEQUENCE)
            for name, dtype in self.store.columns.items()
        }

    def _served(self, parts: dict[str, Part]) -> Served:
        ranking, retrieval = parts.get("ranking"), parts.get("retrieval")
        if not isinstance(ranking, LoadedPart) or not isinstance(retrieval, LoadedPart):
            return Served(parts=parts)
        ranker, retriever = ranking.answers, retrieval.answers
        assert isinstance(ranker, Ranker)
        assert isinstance(retriever, Retriever)
        funnel = Recommender(retriever, ranker, self._funnel, light=self._light_model(parts.get(LIGHT), retriever))
        if beside := [label for label in ranker.labels if label not in dict(funnel.weights)]:
            by = ", ".join(label for label, _ in funnel.weights)
            logger.info("slates are ranked by %s; %s: answered beside, without a weight", by, ", ".join(beside))
        recommend: Recommender | LoggedRecommender = funnel
        if self.impressions is not None:
            recommend = LoggedRecommender(funnel, self.impressions)
        return Served(parts=parts, recommend=one_by_one(recommend.recommend), rows=self._funnel.ranked)

    def _light_model(self, part: Part | None, retriever: Retriever) -> LightModel | None:
        """For the items of this retriever."""
        if not isinstance(part, LoadedPart):
            return None
        assert isinstance(part.answers, Bundle)
        return LightModel(
            part.answers,
            retriever.items,
            store=self.store,
            on_missing_history=self._settings.on_missing_history,
            max_feature_age_s=self._settings.max_feature_age_s,
        )

    def _parts(self, place: str) -> list[LoadedPart]:
        found = []
        folders = self.folders(place)
        if self._copies is not None:
            with self._changing:
                self._copies.hold(folders)
        for folder in folders:
            bundle = Bundle.load(folder)
            self._check_store(bundle)
            is_light = self._funnel.light.bundle and name_of(bundle.config) == "early_ranker"
            task = LIGHT if is_light else bundle.task
            make = {LIGHT: _light, "ranking": self._ranking, "retrieval": self._retrieval}.get(task)
            if make is None:
                raise ValueError(f"{folder}: a ranking or retrieval model required, found one of {bundle.task}")
            found.append(make(str(folder), bundle))
            logger.info("%s: %s model %s loaded", folder, task, bundle.fingerprint)
        return found

    def _check_store(self, bundle: Bundle) -> None:
        """Raises ValueError if the store's events lack a column that the model reads: no history could be read."""
        wanted = [history_name(column.name) for column in bundle.transforms.history_columns]
        if self.store is not None and (lacking := [name for name in wanted if name not in self.store.columns]):
            raise ValueError(
                f"{bundle.folder}: events with {', '.join(lacking)} required in the store, found "
                f"{', '.join(self.store.columns)}; fill another one from the model's table"
            )

    def _ranking(self, name: str, bundle: Bundle) -> LoadedPart:
        settings = self._settings
        cache = ContextCache(settings.cache_bytes)
        ranker = Ranker.of(
            bundle,
            store=self.store,
            deterministic=settings.deterministic,
            kv_type=settings.kv_type,
            cache=cache,
            on_missing_history=settings.on_missing_history,
            max_candidates=settings.limits.max_candidates,
            max_feature_age_s=settings.max_feature_age_s,
            device=settings.device,
        )
        tested = self_test(ranker) if settings.deterministic else None  # it warms what it tests, too
        if tested is not None:
            logger.log(logging.INFO if tested.holds else logging.WARNING, "%s", tested)
        about = {"items": len(bundle.items), "device": settings.device}
        return LoadedPart(
            task="ranking",
            bundle=name,
            fingerprint=bundle.fingerprint,
            run=ranker.step,
            inputs=Inputs.of(bundle.transforms, items=bundle.items, user_keys=bundle.signature.user_keys),
            labels=bundle.signature.outputs,
            about=about | {"deterministic": tested is not None and tested.holds},
            drop_caches=cache.drop,
            keep_caches=cache.keep,
            gauges=lambda: {"entries": float(len(cache)), "bytes": float(cache.num_bytes)},
            answers=ranker,
        )

    def _retrieval(self, name: str, bundle: Bundle) -> LoadedPart:
        if bundle.item_vectors is None:
            raise ValueError(f"{name}: item vectors required for retrieval, found none; export it again")
        retriever = Retriever.of(
            bundle,
            store=self.store,
            on_missing_history=self._settings.on_missing_history,
            max_feature_age_s=self._settings.max_feature_age_s,
        )
        self._keep_states(retriever)
        items = retriever.items
        states = retriever.states
        keys = items.keys

        def keys_of(item_id: np.ndarray) -> list[str] | None:
            return None if keys is None else [str(keys[row]) for row in np.searchsorted(items.item_id, item_id)]

        return LoadedPart(
            task="retrieval",
            bundle=name,
            fingerprint=bundle.fingerprint,
            run=one_by_one(retriever.retrieve),
            inputs=Inputs.of(bundle.transforms, items=bundle.items, user_keys=bundle.signature.user_keys),
            about={"items": len(items), "index": retriever.index.kind},
            keys_of=keys_of,
            gauges=lambda: {"entries": float(len(states)), "bytes": float(states.num_bytes)},
            answers=retriever,
        )

    def _keep_states(self, retriever: Retriever) -> None:
        """States that were computed ahead, if they are this model's: else every user's first request computes one."""
        settings, worker = self._settings, self._worker
        if settings.user_states is None:
            return
        from reqdedup.serving.retrieval.user_states import keep_user_states  # with pyiceberg

        try:
            num_states = keep_user_states(
                retriever,
                Path(settings.user_states),
                is_ours=lambda user_id: worker is None or worker_of(user_id, settings.workers) == worker,
            )
        except (ValueError, OSError) as error:  # a new model is there before its states are
            logger.warning("no states are kept from the start: %s", error)
        else:
            logger.info("%s: %d states, %d kept", settings.user_states, num_states, len(retriever.states))


def _light(name: str, bundle: Bundle) -> LoadedPart:
    def alone(request: Any) -> Any:
        raise RequestError("path", "light ranking inside the funnel", "alone", status=404)

    return LoadedPart(
        task=LIGHT,
        bundle=name,
        fingerprint=bundle.fingerprint,
        run=one_by_one(alone),
        inputs=Inputs.of(bundle.transforms, items=bundle.items, user_keys=bundle.signature.user_keys),
        labels=bundle.signature.outputs,
        answers=bundle,
    )


def one_by_one(answer: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """A step of calls that are not computed together, an answer or what is wrong with the request for each."""

    @torch.inference_mode()
    def run(requests: Sequence[Any]) -> list[Any]:
        answers: list[Any] = []
        for request in requests:
            try:
                answers.append(answer(request))
            except (RequestError, RuntimeError) as error:
                answers.append(error)
        return answers

    return run
