"""A recommender that logs what it shows: each answer gets a request id, by which clicks find it later.

An answer as of another moment (`request_ts`) is a replay, shown to nobody: it is not logged and has no request id. Else
it would be mature at once, unclicked, and every click on it late.

The user is read before the funnel runs and handed to it, so that what is logged is what was used. The history is logged
as its place in the timeline, with a digest of its events (taken after the answer is made).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from reqdedup.schema import REQUEST_TS
from reqdedup.sequences.store import UserRead
from reqdedup.serving.funnel.recommender import Recommender
from reqdedup.serving.impressions.log import Impression, ImpressionLog, history_digest, new_request_id
from reqdedup.serving.limits import is_believable
from reqdedup.serving.requests import Recommended, RecommendRequest

UNKNOWN = "unknown"
"""A digest that no window has, so that no row comes of the impression."""


class LoggedRecommender:
    """`recommender` with a log. now_s: seconds since 1970."""

    def __init__(self, recommender: Recommender, log: ImpressionLog, *, now_s: Callable[[], float] = time.time) -> None:
        self.recommender, self.log, self._now_s = recommender, log, now_s
        self._users = recommender.users.with_all_columns

    def recommend(self, request: RecommendRequest) -> Recommended:
        """The answer with its request id, a replay without one. Errors: as of `Recommender`, whose answers alone are
        logged."""
        moment_us = int(self._now_s() * 1e6)
        request_ts = int(request.request.get(REQUEST_TS, moment_us))
        if not is_believable(request_ts, moment_us):
            return self.recommender.recommend(request)
        request = self._users.at(request, moment_us)
        read = self._users.read(request)
        answer = replace(self.recommender.recommend(replace(request, read=read)), request_id=new_request_id())
        items = self.recommender.retriever.items
        row_M = np.searchsorted(items.item_id, answer.ranked_item_id)
        assert answer.request_id is not None
        self.log.show(
            Impression(
                request_id=answer.request_id,
                request_ts=request_ts,
                user_id=request.user_id,
                start=answer.start,
                history_end=answer.end,
                timeline_version=answer.version,
                history_digest=_digest(request, read, answer),
                model=answer.ranking_model,
                definition=answer.retrieval_model,
                rerank="" if "reranking" in answer.marks else answer.funnel,
                item_id=answer.ranked_item_id,
                score=answer.ranked_score,
                slate=answer.item_id,
                logits=answer.logits,
                request={n: value for n, value in {**read.features, **request.request}.items() if n != REQUEST_TS},
                items={name: np.asarray(values)[row_M] for name, values in items.columns.items()},
            )
        )
        return answer


def _digest(request: RecommendRequest, read: UserRead, answer: Recommended) -> str:
    """Of the events that the ranking saw, `UNKNOWN` if the store did not answer."""
    if read.failure is not None:
        return UNKNOWN
    window = request.history or read.window
    if answer.end == 0 or window is None:
        return ""
    skipped = answer.start - window.start
    columns = {name: values[skipped:] for name, values in window.columns.items()}
    return history_digest(columns, is_own=request.history is not None)
