"""`Recommender`: the whole funnel, from all items to a slate.

    retrieve (a cosine) -> light ranking (popularity, freshness; or a model) -> ranking (all features) -> re-ranking

A re-ranking that fails costs variety, not the answer: the slate is then the best by the ranking's score, and marked.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from reqdedup.rerank import rerank
from reqdedup.serving.funnel.config import FunnelConfig
from reqdedup.serving.funnel.light_model import LightModel
from reqdedup.serving.inputs import UserReader
from reqdedup.serving.requests import (
    Ranked,
    RankRequest,
    Recommended,
    RecommendRequest,
    RequestError,
    Retrieved,
    RetrieveRequest,
    Step,
    StepName,
)
from reqdedup.serving.retrieval.retriever import Retriever

_log = logging.getLogger(__name__)


class Ranks(Protocol):
    """A `Ranker`, or what queues for one."""

    @property
    def users(self) -> UserReader: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    fingerprint: str

    def rank(self, request: RankRequest) -> Ranked: ...


class Recommender:
    """Answers `RecommendRequest`s. Threads may share it if they may share its ranker."""

    def __init__(
        self,
        retriever: Retriever,
        ranker: Ranks,
        config: FunnelConfig | None = None,
        *,
        light: LightModel | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """light: what ranks before the ranker, of the retriever's items.  now_s: seconds since 1970, for the age of
        items. Raises ValueError for a configuration that reads item columns which the retriever's items lack, labels
        that the ranker or the light model lacks, or a light model that is not given."""
        self.retriever, self.ranker, self.config = retriever, ranker, config or FunnelConfig()
        self.config.check_items(retriever.items)
        self.config.check_labels(ranker.labels)
        self.users = retriever.users | ranker.users
        self.fingerprint, self._now_s, self.light = self.config.fingerprint, now_s, light
        self.weights = self.config.labels or ((ranker.labels[0], 1.0),)
        if light is not None:
            self.config.check_light(light.labels, [label for label, _ in self.weights])
            self.users |= light.users
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} {light.fingerprint}".encode()).hexdigest()[:16]
        elif self.config.light.bundle:
            raise ValueError(f"funnel: the light model of {self.config.light.bundle} required, found none")

    def recommend(self, request: RecommendRequest) -> Recommended:
        """Raises RequestError for what its sender can mend."""
        length = self.config.slate.length if request.length is None else request.length
        if not 1 <= length <= self.config.ranked:
            raise RequestError("length", f"1 to {self.config.ranked} items", str(length))
        steps = _Steps()
        if request.read is None:  # once: all steps are of one moment
            request = self.users.at(request, int(self._now_s() * 1e6))
            request = replace(request, read=self.users.read(request))
        found = self.retriever.retrieve(
            RetrieveRequest(k=self.config.retrieved, filter=request.filter, **request.of_user())
        )
        steps.add("retrieval", len(self.retriever.items), len(found.item_id))
        row_M, light_marks = self._light(request, found)
        steps.add("light_ranking", len(found.item_id), len(row_M))
        ranked = self._ranked(request, row_M) if len(row_M) else None
        score_M = np.zeros(0) if ranked is None else self._score(ranked.logits)
        steps.add("ranking", len(row_M), len(row_M))
        pick_T, contributions, is_reranked = self._slate(row_M, score_M, length)
        steps.add("reranking", len(row_M), len(pick_T))
        items, read = self.retriever.items, ranked or found
        row_T = row_M[pick_T]
        marks = dict.fromkeys((*found.marks, *light_marks, *read.marks, *(() if is_reranked else ("reranking",))))
        return Recommended(
            item_id=items.item_id[row_T],
            item_key=None if items.keys is None else [str(items.keys[row]) for row in row_T.tolist()],
            score=score_M[pick_T],
            logits={} if ranked is None else {label: logit_M[pick_T] for label, logit_M in ranked.logits.items()},
            ranked_item_id=items.item_id[row_M],
            ranked_score=score_M,
            contributions=contributions if request.explains else {},
            steps=tuple(steps.done) if request.explains else (),
            retrieval_model=found.model,
            ranking_model=self.ranker.fingerprint,
            funnel=self.fingerprint,
            light_model=None if self.light is None else self.light.fingerprint,
            start=read.start,
            end=read.end,
            version=read.version,
            context=read.context,
            marks=tuple(marks),
        )

    def _light(self, request: RecommendRequest, found: Retrieved) -> tuple[np.ndarray, Sequence[str]]:
        """Rows of the items that are ranked, best first, and what had to be done without."""
        row_N = np.searchsorted(self.retriever.items.item_id, found.item_id)
        score_N, marks = found.score, list[str]()
        if self.light is not None and len(row_N):
            logits, marks = self.light.logits(request, row_N)
            score_N = self._score(logits)
        score_N = self.config.light.scores(score_N, row_N, self.retriever.items, now_s=self._now_s())
        return row_N[np.lexsort((row_N, -score_N))[: self.config.ranked]], marks

    def _ranked(self, request: RecommendRequest, row_M: np.ndarray) -> Ranked:
        items = self.retriever.items
        columns = {name: np.asarray(value_N)[row_M] for name, value_N in items.columns.items()}
        return self.ranker.rank(
            RankRequest(candidates={"item_id": items.item_id[row_M], **columns}, **request.of_user())
        )

    def _score(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """[M] float64: each label's probability, weighted."""
        chances = [weight / (1 + np.exp(-logits[label].astype(np.float64))) for label, weight in self.weights]
        return np.sum(chances, axis=0)

    def _slate(
        self, row_M: np.ndarray, score_M: np.ndarray, length: int
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray], bool]:
        """Picks, positions in [M]; the terms' contributions to them; whether the re-ranking did it."""
        config, items = self.config.slate, self.retriever.items
        try:
            slate = rerank(
                replace(config, length=length),
                score_M,
                item_id=items.item_id[row_M],
                vectors=items.vectors[row_M] if config.needs_vectors else None,
                columns={name: np.asarray(items.columns[name])[row_M] for name in config.columns},
            )
        except Exception:
            _log.exception("re-ranking failed: the slate is that of the ranking's scores")
            return np.lexsort((row_M, -score_M))[:length], {}, False
        return slate.row, slate.contributions, True


class _Steps:
    """What every step of a funnel took."""

    def __init__(self) -> None:
        self.done: list[Step] = []
        self._began = time.perf_counter()

    def add(self, name: StepName, received: int, passed: int) -> None:
        now = time.perf_counter()
        self.done.append(Step(name=name, received=received, passed=passed, seconds=now - self._began))
        self._began = now
