"""`Ranker`: scores of candidates. A user's context is kept, or extended by the new events, or computed; then all
candidates of all requests of a step cross with their contexts together.

    request -> inputs (store, transforms) -> context: kept | extended | computed -> one crossing -> Ranked

Two modes. Deterministic, the default: an answer has the same bits whatever the cache and the step held (contexts in
blocks, rows and requests padded to multiples of 16; `self_test` says whether it holds here). Fast: contexts in
one pass, extended by their new events alone, and plain batches; the same values to 1e-6, in bits that depend on both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.bundle import Bundle
from reqdedup.models.dcat import DCAT, BlockContext, Blocks
from reqdedup.models.dcat.block_context import KVType
from reqdedup.models.items import Items
from reqdedup.models.registry import name_of
from reqdedup.models.transforms import Transforms
from reqdedup.schema import HISTORY_END, TIMELINE_VERSION
from reqdedup.sequences.store import Store, StoreUnavailableError
from reqdedup.serving.inputs import InputReader, RankInputs
from reqdedup.serving.limits import CACHE_BYTES, MAX_CANDIDATES, MAX_FEATURE_AGE_S
from reqdedup.serving.ranking.context_cache import Asked, ContextCache, ContextKey, ContextRule, Lacking
from reqdedup.serving.requests import ContextOrigin, OnMissingHistory, Ranked, RankRequest, RequestError

ROWS_TOGETHER = 800
"""Candidates that are scored in one call of `Ranker.step`, if they are of several requests: more of them gain nothing.
A server stops at 512, `SchedulerLimits.max_step_rows`, which says why."""

T = TypeVar("T")
_Ready = tuple[int, RankInputs, BlockContext, ContextOrigin]
Answer = Ranked | RequestError | StoreUnavailableError | torch.OutOfMemoryError


class Ranker:
    """Answers `RankRequest`s. Threads may share it."""

    def __init__(
        self,
        model: DCAT,
        transforms: Transforms,
        *,
        fingerprint: str,
        tables: str = "",
        schema: str = "",
        items: Items | None = None,
        store: Store | None = None,
        deterministic: bool = True,
        kv_type: KVType = "full",
        cache: ContextCache | None = None,
        on_missing_history: OnMissingHistory = "refuse",
        max_candidates: int = MAX_CANDIDATES,
        max_feature_age_s: float = MAX_FEATURE_AGE_S,
        device: torch.device | str = "cpu",
    ) -> None:
        """fingerprint, tables, schema: see `ContextRule`.  items: where columns of candidates are looked up.
        cache: shared by rankers, or one of `CACHE_BYTES` of its own.  model: its weights are read once, now."""
        model.transformer.check_grows(0)
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.folded = self.model.folded()
        self.transforms, self.fingerprint = transforms, fingerprint
        self.deterministic, self.kv_type = deterministic, kv_type
        self.cache = ContextCache(CACHE_BYTES) if cache is None else cache
        self.blocks = Blocks() if deterministic else None
        self._rule = ContextRule(
            model=fingerprint,
            tables=tables,
            schema=schema,
            max_events=transforms.cut.max_events,
            stride=transforms.cut.step,
            blocks=self.blocks,
            kv_type=kv_type,
            dtype=str(model.final_norm.weight.dtype),
            device=str(self.device),
        )
        self._inputs = InputReader(
            transforms,
            store=store,
            items=items,
            on_missing_history=on_missing_history,
            max_candidates=max_candidates,
            max_feature_age_s=max_feature_age_s,
        )
        self.users = self._inputs.users

    @classmethod
    def of(cls, bundle: Bundle, **options: Any) -> Ranker:
        """Of a ranking model's bundle. options: of the constructor. Raises ValueError for one of another model."""
        if bundle.task != "ranking":
            raise ValueError(f"{bundle.folder}: the bundle of a ranking model required, found one of {bundle.task}")
        if not hasattr(bundle.model, "folded"):
            raise ValueError(
                f"{bundle.folder}: a model whose contexts can be kept required (dcat), found {name_of(bundle.config)}, "
                "which ranks in a process of yours: `Bundle.load(...).model.predict`"
            )
        return cls(
            cast(DCAT, bundle.model),
            bundle.transforms,
            fingerprint=bundle.fingerprint,
            tables=str(bundle.signature.snapshot_id),
            schema=bundle.signature.schema,
            items=bundle.items,
            **options,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the logits, in their order."""
        return self.model.config.labels

    def with_cache(self, cache: ContextCache) -> Ranker:
        """The same ranker with another cache."""
        other = copy.copy(self)
        other.cache = cache
        return other

    def rank(self, request: RankRequest) -> Ranked:
        """Raises RequestError for what its sender can mend, StoreUnavailableError for what a later try may."""
        (answer,) = self.step([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    @torch.inference_mode()
    def step(self, requests: Sequence[RankRequest]) -> list[Answer]:
        """An answer for each request, or what `rank` would raise."""
        answers: list[Answer | None] = [None] * len(requests)
        read: dict[int, RankInputs] = {}
        for i, request in enumerate(requests):
            try:
                read[i] = self._inputs.read(request)
            except (RequestError, StoreUnavailableError) as error:
                answers[i] = error
        try:
            contexts = self._contexts([self._asked(requests[i].user_id, inputs) for i, inputs in read.items()])
        except torch.OutOfMemoryError as error:
            return [error if answer is None else answer for answer in answers]
        ready = [(i, inputs, *context) for (i, inputs), context in zip(read.items(), contexts, strict=True)]
        for together in _in_turns(ready):
            try:
                logits = self._logits(together)
            except torch.OutOfMemoryError as error:
                answers = [error if i in {one[0] for one in together} else x for i, x in enumerate(answers)]
                continue
            for (i, inputs, _, origin), of_request in zip(together, logits, strict=True):
                if not torch.isfinite(of_request).all():
                    answers[i] = RequestError("request", "numbers that the model can add up", "larger ones")
                    continue
                answers[i] = Ranked(
                    logits=dict(zip(self.labels, of_request.T.contiguous().numpy(), strict=True)),
                    model=self.fingerprint,
                    start=inputs.start,
                    end=inputs.end,
                    version=inputs.version,
                    context=origin,
                    marks=inputs.marks,
                )
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def logits(self, batch: RequestBatch) -> torch.Tensor:
        """[B, num_labels] of a loader's batch, whose histories were cut by this model's window."""
        bounds, asked = batch.history_offsets_R1.tolist(), []
        for r, user_id in enumerate(batch.user_id_R.tolist()):
            events = {name: x_T[bounds[r] : bounds[r + 1]].numpy() for name, x_T in batch.history.items()}
            length = bounds[r + 1] - bounds[r]
            end = int(batch.request[HISTORY_END][r]) if HISTORY_END in batch.request else length
            version = int(batch.request[TIMELINE_VERSION][r]) if TIMELINE_VERSION in batch.request else 0
            asked.append(Asked(ContextKey(rule=self._rule, user_id=user_id), events, (version, end - length)))
        contexts = [context for context, _ in self._contexts(asked)]
        return self.folded.score(contexts, batch.to(self.device), is_exact=self.deterministic).cpu()

    def _contexts(self, asked: Sequence[Asked]) -> list[tuple[BlockContext, ContextOrigin]]:
        def compute(lacking: list[Lacking]) -> list[BlockContext]:
            histories = [
                {name: torch.from_numpy(x_L).to(self.device) for name, x_L in one.asked.events.items()}
                for one in lacking
            ]
            encode = partial(self.folded.encode_together, blocks=self.blocks, kv_type=self.kv_type)
            kept = [(x, one.kept, one.num_shared) for x, one in zip(histories, lacking, strict=True)]
            return self._twice(lambda: encode(kept), lambda: encode([(x, None, 0) for x in histories]))

        return self.cache.contexts(asked, compute)

    def _asked(self, user_id: int, inputs: RankInputs) -> Asked:
        events = {name: x_L.numpy() for name, x_L in inputs.history.items()}
        return Asked(ContextKey(rule=self._rule, user_id=user_id), events, (inputs.version, inputs.start))

    def _logits(self, together: Sequence[_Ready]) -> Sequence[torch.Tensor]:
        """[M, num_labels] of each request."""
        batch = RankInputs.batch([inputs for _, inputs, _, _ in together])
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        contexts = [context for _, _, context, _ in together]
        score = partial(self.folded.score, contexts, batch, is_exact=self.deterministic)
        logits_BN = self._twice(score, score)
        return logits_BN.cpu().split([inputs.num_rows for _, inputs, _, _ in together])

    def _twice(self, first: Callable[[], T], again: Callable[[], T]) -> T:
        """What the first gives; if it runs out of memory, what the other gives with that of the kept contexts."""
        with suppress(torch.OutOfMemoryError):  # whose frames, and the tensors in them, are gone behind this line
            return first()
        self.cache.forget()
        return again()


def _in_turns(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    """Requests that are scored in one call."""
    together: list[_Ready] = []
    num_rows = 0
    for one in ready:
        more = one[1].num_rows
        if together and num_rows + more > ROWS_TOGETHER:
            yield together
            together, num_rows = [], 0
        together.append(one)
        num_rows += more
    if together:
        yield together
