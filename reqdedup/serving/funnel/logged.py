"""A recommender that logs what it shows: each answer gets a request id, by which clicks find it later.

Request features are read before the funnel runs and handed to it whole, so that what is logged is what was used. The
history is logged as its place in the timeline, with a digest of its events (25 us, taken after the answer is made).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reqdedup.sequences.store import Store, StoreUnavailableError, Window
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.impressions.log import Impression, ImpressionLog, digest_of, new_request_id
from reqdedup.serving.requests import Recommended, RecommendRequest

UNKNOWN = "unknown"
"""A digest that no window has, so that no row comes of the impression."""


class LoggedRecommender:
    """`recommender` with a log. features: request-level columns that its models read.  now_s: seconds since 1970."""

    def __init__(
        self,
        recommender: Recommender,
        log: ImpressionLog,
        *,
        store: Store | None,
        features: Sequence[str],
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.recommender, self.log = recommender, log
        self._store, self._features, self._now_s = store, tuple(dict.fromkeys(features)), now_s

    def recommend(self, request: RecommendRequest) -> Recommended:
        """The answer with its request id. Errors: as of `Recommender`, whose answers alone are logged."""
        stored = self._stored_features(request)
        if stored:
            request = replace(request, request={**stored, **request.request})
        answer = replace(self.recommender.recommend(request), request_id=new_request_id())
        items = self.recommender.retriever.items
        row_M = np.searchsorted(items.item_id, answer.ranked_item_id)
        assert answer.request_id is not None
        self.log.show(
            Impression(
                request_id=answer.request_id,
                request_ts=int(self._now_s() * 1e6),
                user_id=request.user_id,
                start=answer.start,
                history_end=answer.end,
                timeline_version=answer.version,
                history_digest=UNKNOWN if stored is None else self._digest(request, answer),
                model=answer.ranking_model,
                definition=answer.retrieval_model,
                rerank="" if "reranking" in answer.marks else answer.funnel,
                item_id=answer.ranked_item_id,
                score=answer.ranked_score,
                slate=answer.item_id,
                logits=answer.logits,
                request=request.request,
                items={name: np.asarray(values)[row_M] for name, values in items.columns.items()},
            )
        )
        return answer

    def _stored_features(self, request: RecommendRequest) -> Mapping[str, Any] | None:
        """Those that the request leaves out. None if the store did not answer: the models may ask it again, so nobody
        knows what they used."""
        lacking = [name for name in self._features if name not in request.request]
        if self._store is None or not lacking:
            return {}
        try:
            return self._store.request_features(request.user_id, lacking)
        except StoreUnavailableError:
            return None

    def _digest(self, request: RecommendRequest, answer: Recommended) -> str:
        """Of the window that was read, `UNKNOWN` for one that cannot be had."""
        if answer.end == 0:
            return ""
        window: Window | None = request.history
        if window is None and self._store is not None:
            try:
                window = self._store.window(
                    request.user_id,
                    list(self._store.columns),
                    start_of=lambda _: answer.start,
                    at=answer.end,
                    version=answer.version,
                )
            except (StoreUnavailableError, ValueError):
                window = None
        return UNKNOWN if window is None else digest_of(window)
