"""Models change while the server runs: the new one is loaded, tested and warmed beside the old, then takes its place.

    load      bundle -> loaded, self-tested, warmed in a thread of its own -> current; what was current is the previous
    rollback  the previous becomes current, and the other way round; one that says what shall serve may be repeated
    shadow    bundle -> scores what the current one answered, slates too, when nothing else waits; differences are
              counted. Of ranking models: one of retrieval is loaded, and compared with nothing
    promote   the shadow becomes current; one that says what shall serve may be repeated

A change that comes while a bundle is being loaded does not wait for it: the load then fails, and says that others serve
by now than those that it was to stand beside.

`current` is one reference. A request takes it when it is admitted and keeps it to its answer, so no answer mixes two
models; a step computes requests of one model only. After a change, the caches of the model that left are dropped by the
compute thread, behind the requests that still carry it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from reqdedup.serving.requests import OfWindow, Ranked, RankRequest, Recommended, RecommendRequest
from reqdedup.serving.scheduler import OverloadedError, Scheduler, Work
from reqdedup.serving.wire.bodies import Inputs

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Part:
    """One loaded bundle, ready to answer.

    task: ranking, retrieval or light_ranking.  bundle: where it was loaded from.  run: a step of requests, an answer or
    an exception for each.  inputs: what it reads.  labels: of a ranking model's logits.  about: self-test and sizes,
    for people.  keys_of: the log's ids of these items, if the bundle has them.
    drop_caches: called by the compute thread when the part has left; what still runs must not fill them again.
    keep_caches: called when it comes back.
    gauges: sizes of caches by name.
    """

    task: str
    bundle: str
    fingerprint: str
    run: Callable[[Sequence[Any]], Sequence[Any]]
    inputs: Inputs
    labels: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    keys_of: Callable[[np.ndarray], list[str] | None] = lambda ids: None
    drop_caches: Callable[[], None] = lambda: None
    keep_caches: Callable[[], None] = lambda: None
    gauges: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True, kw_only=True, eq=False)
class Served:
    """What answers together. recommend: the whole funnel over both parts; None if one of them is not there.
    rows: candidates that it ranks."""

    parts: dict[str, Part]
    rows: int = 0
    recommend: Callable[[Sequence[Any]], Sequence[Any]] | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the models, by task."""
        return {task: part.fingerprint for task, part in self.parts.items()}


@dataclass(kw_only=True)
class ShadowReport:
    """What the shadow's answers were beside the current model's. equal: all bits.  max_difference: of a logit."""

    requests: int = 0
    equal: int = 0
    failed: int = 0
    max_difference: float = 0.0
    last_error: str = ""


class Models:
    """What serves now, what served before it, and what runs in the shadow.

    load: a bundle's part put in the place of its task's in what serves now (None at the start: nothing).
    previous: what can be rolled back to from the start.  shadow: what runs in the shadow from the start, and the
    fingerprints that served when it began.  changed: called after every change, with no lock held.
    """

    def __init__(
        self,
        load: Callable[[str, Served], Served],
        first: Served,
        scheduler: Scheduler,
        *,
        previous: Served | None = None,
        shadow: tuple[Served, dict[str, str]] | None = None,
        changed: Callable[[Models], None] = lambda models: None,
    ) -> None:
        self.current = first
        self.previous = previous
        self.shadow: Served | None = None
        self.shadow_of: dict[str, str] = {}
        """Fingerprints of what served when the shadow began, by task."""
        if shadow is not None:
            self.shadow, self.shadow_of = shadow
        self.report = ShadowReport()
        self.loading: str | None = None
        self.last_error: str | None = None
        self.swaps = 0
        self._turn = self._shadow_turn = 0
        """Changes, and rollbacks to what serves already: a load that runs beside either changes nothing. So does the
        start of a shadow beside another's end."""
        self._load, self._scheduler, self._changed = load, scheduler, changed
        self._loading, self._changing = threading.Lock(), threading.Lock()

    def load(self, bundle: str) -> Served:
        """Load beside, then swap; takes as long as loading does. Models that serve already change nothing, so that the
        way back stays. Raises what loading raises, with nothing changed."""
        with self._loading:
            turn, loaded = self._turn, self._loaded(bundle)
            with self._changing:
                if self._turn != turn:
                    raise ValueError(
                        "the models that serve to be the same while one is loaded required, found a change"
                    )
                found = self.current
                if loaded.fingerprints != found.fingerprints:
                    found = self._swap(loaded)
        self._changed(self)
        return found

    def rollback(self, to: Mapping[str, str] | None = None) -> Served:
        """to: fingerprints by task of what shall serve; None: what served before, whatever that is.

        Raises ValueError if there was no model before, or another one than `to`.
        """
        with self._changing:
            found = self.current
            if to is None or to != found.fingerprints:
                if to is not None and (self.previous is None or to != self.previous.fingerprints):
                    raise ValueError(self._lacking(to, self.previous, "served before"))
                if self.previous is None:
                    raise ValueError("a model before this one required, found none: nothing was swapped")
                found = self._swap(self.previous)
            self._turn += 1
        self._changed(self)
        return found

    def start_shadow(self, bundle: str) -> Served:
        """One that runs already beside what serves goes on, with its counts."""
        with self._loading:
            turn, base, shadow = self._shadow_turn, self.current.fingerprints, self._loaded(bundle)
            with self._changing:
                if self._shadow_turn != turn:
                    raise ValueError("the shadow to be the same while one is loaded required, found a change")
                found = self.shadow
                if found is None or (found.fingerprints, self.shadow_of) != (shadow.fingerprints, base):
                    found = self.shadow = shadow
                    self.shadow_of, self.report = base, ShadowReport()
        self._changed(self)
        return found

    def stop_shadow(self) -> None:
        with self._changing:
            self._end_shadow()
        self._changed(self)

    def promote_shadow(self, to: Mapping[str, str] | None = None) -> Served:
        """to: fingerprints by task of what shall serve; None: the shadow, whatever that is.

        Raises ValueError if there is no shadow, or another one than `to`, or if what serves has changed since it began:
        its other models would come back with it.
        """
        with self._changing:
            found = self.current
            if to is None or to != found.fingerprints:
                if to is not None and (self.shadow is None or to != self.shadow.fingerprints):
                    raise ValueError(self._lacking(to, self.shadow, "in the shadow"))
                if self.shadow is None:
                    raise ValueError("a model in the shadow required, found none")
                if self.shadow_of != found.fingerprints:
                    raise ValueError("the models that the shadow began beside required, found others; start it again")
                found = self._swap(self.shadow)
                self._end_shadow()
        self._changed(self)
        return found

    def _end_shadow(self) -> None:
        self.shadow, self.shadow_of = None, {}
        self._shadow_turn += 1

    def _lacking(self, to: Mapping[str, str], other: Served | None, state: str) -> str:
        """What is wrong if neither what serves nor the other is what shall serve."""
        there = _named(other.fingerprints) if other is not None else "nothing"
        return (
            f"{_named(to)} serving or {state} required, found {_named(self.current.fingerprints)} serving and {there} "
            f"{state}; nothing was changed here: load the bundle of {_named(to)} (action load; the workers that serve "
            "it already keep it), and see /v1/models for the workers that differ (disagreeing)"
        )

    @property
    def folders(self) -> tuple[list[str], list[str], list[str]]:
        """Where what serves, what served before and what runs in the shadow was loaded from."""
        three = (self.current, self.previous, self.shadow)
        current, previous, shadow = ([one.bundle for one in all_.parts.values()] if all_ else [] for all_ in three)
        return current, previous, shadow

    def compare(self, request: RankRequest, answered: Ranked) -> None:
        """Let the shadow score what was just answered, over the same events, if nothing else waits."""
        shadow, report = self.shadow, self.report
        part = shadow.parts.get("ranking") if shadow is not None else None
        if part is None or part.fingerprint == answered.model:
            return
        rank = part.run
        same = replace(request, at=answered.end, version=answered.version) if request.history is None else request

        def score(requests: Sequence[RankRequest]) -> list[None]:
            report.requests += 1
            try:
                other = rank(requests)[0]
                if isinstance(other, Exception):
                    raise other
                _add(report, answered, other)
            except Exception as error:
                report.failed += 1
                report.last_error = f"{type(error).__name__}: {error}"
            return [None]

        work = Work(group=("shadow", id(shadow)), run=score, request=same, rows=same.num_candidates, deferred=True)
        with suppress(OverloadedError):
            self._scheduler.submit(work)

    def compare_slate(self, request: RecommendRequest, answered: Recommended) -> None:
        """Let the shadow score the items of a slate, with its own bundle's columns of them.

        Among fewer candidates their last bits may be others.
        """
        if self.shadow is None or not answered.logits:
            return
        window = {one.name: getattr(answered, one.name) for one in fields(OfWindow)}
        self.compare(
            RankRequest(candidates={"item_id": answered.item_id}, **request.of_user()),
            Ranked(logits=answered.logits, model=answered.ranking_model, **window),
        )

    def describe(self) -> dict[str, Any]:
        def one(served: Served | None, state: str) -> list[dict[str, Any]]:
            parts = served.parts.values() if served is not None else []
            return [
                {"name": part.task, "version": part.fingerprint, "state": state, "bundle": part.bundle}
                | {"labels": part.labels, "inputs": part.inputs.names, **part.about}
                for part in parts
            ]

        return {
            "models": [*one(self.current, "current"), *one(self.previous, "previous"), *one(self.shadow, "shadow")],
            "loading": self.loading,
            "last_error": self.last_error,
            "swaps": self.swaps,
            "shadow": vars(self.report) if self.shadow is not None else None,
        }

    def _loaded(self, bundle: str) -> Served:
        self.loading = bundle
        try:
            served = self._load(bundle, self.current)
        except Exception as error:
            self.last_error = str(error) if str(error).startswith(bundle) else f"{bundle}: {error}"
            logger.error("the current model stays, another could not be loaded: %s", self.last_error)
            raise
        finally:
            self.loading = None
        self.last_error = None
        return served

    def _swap(self, served: Served) -> Served:
        for part in served.parts.values():
            part.keep_caches()
        left, self.current = self.current, served
        self.previous = left
        self.swaps += 1
        self._turn += 1

        def drop(requests: Sequence[None]) -> list[None]:
            for part in left.parts.values():
                if part not in self.current.parts.values():
                    part.drop_caches()
            return [None]

        with suppress(OverloadedError):  # shutting down
            self._scheduler.submit(Work(group=("drop", id(left)), run=drop, request=None, rows=0, must_run=True))
        logger.info("now serving %s", ", ".join(f"{one.bundle} ({one.fingerprint})" for one in served.parts.values()))
        return served


def _named(fingerprints: Mapping[str, str]) -> str:
    return " with ".join(f"{task} {fingerprint}" for task, fingerprint in fingerprints.items()) or "nothing"


def _add(report: ShadowReport, answered: Ranked, other: Ranked) -> None:
    both = answered.logits.keys() & other.logits.keys()
    if not both:
        raise ValueError(f"a label of {sorted(answered.logits)} required in the shadow, found {sorted(other.logits)}")
    pairs = [(np.asarray(answered.logits[name]), np.asarray(other.logits[name])) for name in both]
    report.equal += all(one.tobytes() == two.tobytes() for one, two in pairs)
    worst = max((float(np.max(np.abs(one - two), initial=0.0)) for one, two in pairs), default=0.0)
    report.max_difference = max(report.max_difference, worst)
