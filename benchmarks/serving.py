"""Ranking in process: what a kept context saves, what equal bits cost, what a batch gains, what a user costs in memory.

    python -m benchmarks.serving [--only kept memory] [--rounds 3]

Requests bring their history. Users come back (Zipf over `USERS`, two new events between two requests, windows
anchored at a quarter of the longest history), so that most contexts are kept or extended: the share stands in every
row. Against it stand the context computed once per request (`DCAT.predict`), and the core of a server written by hand
(`benchmarks.serving_by_hand`). Logits agree before anything is timed; one thread, interleaved, CPU time. A run of
everything replaces `benchmarks/results/serving.jsonl`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import claims
from benchmarks.interleaved import Run, Timings, interleaved, ratio_row
from benchmarks.serving_by_hand import ServerCore
from benchmarks.training_by_hand import keep_freed_pages
from benchmarks.workloads import dcat_config
from reqdedup.arrays.windows import HistoryCut
from reqdedup.models import DCAT
from reqdedup.models.dcat.block_context import KV_TYPES
from reqdedup.models.transforms import Transforms
from reqdedup.schema import Column, EngagementSchema, Kind, Level
from reqdedup.sequences.store import Window
from reqdedup.serving.ranking.context_cache import ContextCache
from reqdedup.serving.ranking.ranker import Ranker
from reqdedup.serving.requests import Ranked, RankRequest

Row = dict[str, Any]
USERS, NEW_EVENTS = 40, 2.0
SEGMENT, TOGETHER = 24, 8
"""Requests of a round, and of a step that has several."""

CACHE_BYTES = 1 << 30
SCHEMA = EngagementSchema((
    Column(name="user_id", dtype="int64", level=Level.KEY),
    Column(name="request_id", dtype="int64", level=Level.KEY),
    Column(name="item_id", dtype="int64", level=Level.KEY),
    Column(name="request_ts", dtype="timestamp", level=Level.REQUEST),
    Column(name="history_item_id", dtype="int64", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="history_action", dtype="int32", level=Level.REQUEST, kind=Kind.SEQUENCE),
    Column(name="user_embedding", dtype="float32", level=Level.REQUEST, kind=Kind.VECTOR, width=32),
    Column(name="device", dtype="int32", level=Level.REQUEST),
    Column(name="item_category", dtype="int32", level=Level.ITEM),
    Column(name="click", dtype="int32", level=Level.LABEL),
))  # fmt: skip


def ranking_model(max_history: int) -> DCAT:
    """Width 128, two layers, untrained; queries and keys doubled, so that attention is not flat."""
    torch.manual_seed(0)
    model = DCAT(dcat_config(width=128, max_history=max_history)).eval()
    with torch.no_grad():
        for layer in model.transformer:
            layer.query.weight *= 2
            layer.key_value.weight *= 2
    return model


@dataclass
class Traffic:
    """Requests one after the other. max_history: events.  candidates: of each request.  new_users: share of the
    requests whose user was never seen and never comes back."""

    max_history: int
    candidates: int
    new_users: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.cut = HistoryCut(max_events=self.max_history)
        self._ends = 4 * self.max_history + self.rng.integers(0, self.max_history, USERS)
        weight = 1 / np.arange(1, USERS + 1)
        self._share = weight / weight.sum()
        self._next_user = USERS

    def requests(self, count: int) -> list[RankRequest]:
        return [self._request() for _ in range(count)]

    def every_user(self) -> list[RankRequest]:
        """One request of each user who comes back: warms a cache."""
        return [self.request(user, int(self._ends[user])) for user in range(USERS)]

    def _request(self) -> RankRequest:
        if self.rng.random() < self.new_users:
            self._next_user += 1
            return self.request(self._next_user, int(4 * self.max_history + self.rng.integers(0, self.max_history)))
        user = int(self.rng.choice(USERS, p=self._share))
        self._ends[user] += self.rng.poisson(NEW_EVENTS)
        return self.request(user, int(self._ends[user]))

    def request(self, user: int, end: int) -> RankRequest:
        start = int(self.cut.start_of(np.array(end)))
        token = np.arange(start, end) * 7919 + user * 1_000_003
        return RankRequest(
            user_id=user,
            candidates={
                "item_id": self.rng.integers(0, 2**40, self.candidates),
                "item_category": self.rng.integers(0, 64, self.candidates).astype(np.int32),
            },
            request={"device": 1, "user_embedding": self.rng.standard_normal(32).astype(np.float32)},
            history=Window({"item_id": token, "action": (token % 8).astype(np.int32)}, start, end, 0),
        )


Step = Callable[[Sequence[RankRequest]], Sequence[Any]]


class OncePerRequest:
    """The context once per request and never kept, one request at a time."""

    def __init__(self, ranker: Ranker) -> None:
        self.model, self.transforms = ranker.model, ranker.transforms

    def step(self, requests: Sequence[RankRequest]) -> list[torch.Tensor]:
        return [self._logits(request) for request in requests]

    @torch.inference_mode()
    def _logits(self, request: RankRequest) -> torch.Tensor:
        window = request.history
        assert window is not None
        batch = self.transforms.batch(
            request=request.request, history=window.columns, candidates=request.candidates, history_end=window.end
        )
        return self.model.predict(batch)


@dataclass
class Replay:
    """A variant that goes through the segments of one traffic, a segment a call. together: requests of a step."""

    step: Step
    segments: Sequence[Sequence[RankRequest]]
    together: int
    at: int = 0

    def __call__(self) -> None:
        segment = self.segments[self.at % len(self.segments)]
        self.at += 1
        for first in range(0, len(segment), self.together):
            self.step(segment[first : first + self.together])


def variants(model: DCAT, traffic: Traffic, rounds: int) -> tuple[dict[str, Run], dict[str, Ranker]]:
    """Every way to answer the same requests, caches warm, logits equal."""
    transforms = Transforms.of(model.config, SCHEMA)
    warm, probe = traffic.every_user(), traffic.requests(TOGETHER)
    segments = [traffic.requests(SEGMENT) for _ in range(rounds + 1)]
    rankers: dict[str, Ranker] = {}
    runs: dict[str, Run] = {}
    once = OncePerRequest(Ranker(model, transforms, fingerprint="bench"))
    wanted = once.step(probe)
    runs["once per request"] = Replay(once.step, segments, 1)
    for mode, is_exact in (("fast", False), ("deterministic", True)):
        for together in (1, TOGETHER):
            ranker = Ranker(
                model, transforms, fingerprint="bench", deterministic=is_exact, cache=ContextCache(CACHE_BYTES)
            )
            name = _name(mode, together)
            _warm(ranker.step, warm, probe, wanted)
            if is_exact:
                _check_bits(ranker, probe)
            ranker.cache.counts.kept = ranker.cache.counts.extended = ranker.cache.counts.computed = 0
            rankers[name], runs[name] = ranker, Replay(ranker.step, segments, together)
    for together in (1, TOGETHER):
        core = ServerCore(model)
        _warm(core.step, warm, probe, wanted)
        runs[_name("by hand", together)] = Replay(core.step, segments, together)
    return runs, rankers


def _name(mode: str, together: int) -> str:
    return mode if together == 1 else f"{mode}, {together} a step"


def _warm(
    step: Step, warm: Sequence[RankRequest], probe: Sequence[RankRequest], wanted: Sequence[torch.Tensor]
) -> None:
    """Raises AssertionError, so that nothing is measured, if the logits differ by more than rounding."""
    for request in warm:
        step([request])
    for found, logits in zip(step(probe), wanted, strict=True):
        if isinstance(found, Ranked):
            found = torch.from_numpy(np.stack(list(found.logits.values()), axis=1))
        torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)


def _check_bits(ranker: Ranker, probe: Sequence[RankRequest]) -> None:
    fresh = ranker.with_cache(ContextCache(0))
    for request, answer in zip(probe, ranker.step(probe), strict=True):
        assert isinstance(answer, Ranked)
        alone = fresh.rank(request)
        if not all(np.array_equal(alone.logits[label], logits) for label, logits in answer.logits.items()):
            raise ValueError("gate: a kept context or a batch changed bits; nothing is measured")


KEPT = {(512, 10): (4.5, 3.0), (2048, 10): (9.0, 6.0), (512, 100): (2.0, 1.6), (2048, 100): (3.4, 2.5)}
"""(longest history, candidates) -> what fast and deterministic must reach; batched steps for 10 candidates."""

PRICE = {(512, 100): 1.3}
"""(longest history, candidates) -> deterministic over fast at most; 1.5 for all others."""


def kept(rounds: int) -> Iterator[Row]:
    """Contexts of users who come back: against once per request, by hand, and each mode against the other."""
    for max_history in (512, 2048):
        for candidates in (10, 100, 500):
            model = ranking_model(max_history)
            runs, rankers = variants(model, Traffic(max_history, candidates), rounds)
            timings = interleaved(runs, rounds=rounds, units=dict.fromkeys(runs, SEGMENT))
            reuse = rankers["fast"].cache.counts.reuse
            yield from _kept_rows(timings, model, candidates, reuse)


def _kept_rows(timings: Timings, model: DCAT, candidates: int, reuse: float) -> Iterator[Row]:
    max_history = model.config.max_history
    shape = f"L {max_history}, {candidates} candidates"
    row = partial(ratio_row, timings=timings, sizes=_sizes(model, candidates, reuse))
    fast, exact = KEPT.get((max_history, candidates), (None, None))
    batched = candidates == 10
    for mode, target in (("fast", fast), ("deterministic", exact)):
        for together in (1, TOGETHER):
            reached = target if (together > 1) == batched else None
            yield row(f"kept, {shape}", ours=_name(mode, together), baseline="once per request", target=reached)
        yield row(
            f"batching, {shape}",
            ours=_name(mode, TOGETHER),
            baseline=mode,
            target=2.0 if (max_history, candidates) == (512, 10) else 0.95,
        )
    for together in (1, TOGETHER):
        hand, name = _name("by hand", together), partial(_name, together=together)
        yield row(f"by hand, {shape}", ours=name("fast"), baseline=hand, target=0.97)
        price = PRICE.get((max_history, candidates), 1.5)
        yield row(f"price of equal bits, {shape}", ours=name("deterministic"), baseline=name("fast"), target=1 / price)


def new_users(rounds: int) -> Iterator[Row]:
    """Users who never come back: keeping must not cost; and nine of ten who do."""
    for max_history in (512, 2048):
        for candidates in (10, 100):
            for share in (1.0, 0.1):
                model = ranking_model(max_history)
                runs, rankers = variants(model, Traffic(max_history, candidates, share), rounds)
                runs = {name: runs[name] for name in ("once per request", "fast", "deterministic")}
                timings = interleaved(runs, rounds=rounds, units=dict.fromkeys(runs, SEGMENT))
                who = "all users new" if share == 1 else "one user in ten new"
                sizes = _sizes(model, candidates, rankers["fast"].cache.counts.reuse)
                row = partial(ratio_row, f"{who}, L {max_history}, {candidates} candidates", timings, sizes=sizes)
                target = 0.95 if share == 1 else None
                yield row(ours="fast", baseline="once per request", target=target)
                yield row(ours="deterministic", baseline="once per request")
                price = 1 / 1.6 if share == 1 else None
                yield row(ours="deterministic", baseline="fast", target=price)


def append(rounds: int) -> Iterator[Row]:
    """The context pass alone: ten new events of 2,048 against all of them, in a buffer that has room."""
    max_history, steps = 2048, 20
    model = ranking_model(max_history)
    window = Traffic(max_history, 1).request(0, max_history).history
    assert window is not None
    history = {name: torch.from_numpy(x) for name, x in window.columns.items()}

    def first(end: int) -> dict[str, torch.Tensor]:
        return {name: x_L[:end] for name, x_L in history.items()}

    folded = model.folded()

    def in_blocks(history: dict[str, torch.Tensor], kept: Any = None, **options: Any) -> Any:
        return folded.encode_together([(history, kept, len(history["item_id"]))], **options)[0]

    in_one_pass = partial(in_blocks, blocks=None)
    encoders: dict[str, Callable[..., Any]] = {"fast": in_one_pass, "deterministic": in_blocks}
    for mode, encode in encoders.items():
        begin = encode(first(max_history - 10 * steps))

        def appended(encode: Callable[..., Any] = encode, begin: Any = begin) -> None:
            context = begin
            for end in range(max_history - 10 * steps + 10, max_history + 1, 10):
                context = encode(first(end), context)

        runs: dict[str, Run] = {mode: appended, "one pass": partial(in_one_pass, history)}
        timings = interleaved(runs, rounds=rounds, units={mode: steps}, repeats={"one pass": 3})
        sizes = _sizes(model, 0, 1.0)
        target = 20.0 if mode == "fast" else None
        yield ratio_row(
            "append 10 of 2,048 events", timings, ours=mode, baseline="one pass", sizes=sizes, target=target
        )


def memory(rounds: int) -> Iterator[Row]:
    """Bytes of a kept context and what rounding it does to logits and to AUC, labels drawn from the model itself."""
    max_history, candidates = 512, 500
    model = ranking_model(max_history)
    traffic = Traffic(max_history, candidates)
    requests = [traffic.request(user, max_history) for user in range(60)]
    transforms = Transforms.of(model.config, SCHEMA)
    wanted: np.ndarray | None = None
    for kv_type in KV_TYPES:
        ranker = Ranker(model, transforms, fingerprint="bench", kv_type=kv_type, cache=ContextCache(CACHE_BYTES))
        logits = np.concatenate([ranker.rank(request).logits["click"] for request in requests])
        if wanted is None:
            wanted = logits
            chance = 1 / (1 + np.exp(-(wanted - wanted.mean()) / wanted.std()))
            label = np.random.default_rng(0).random(len(wanted)) < chance
        error = np.abs(logits - wanted) / wanted.std()
        yield {
            "claim": f"memory of a kept context, L {max_history}",
            "variant": kv_type,
            "value": ranker.cache.num_bytes / len(ranker.cache) / 2**20,
            "unit": "MiB per user",
            "target": None,
            "sizes": _sizes(model, candidates, 0.0),
            "logit_error_rms": float(np.sqrt(np.mean(error**2))),
            "logit_error_max": float(error.max()),
            "auc": _auc(logits, label),
        }


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    positives = int(label.sum())
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * (len(score) - positives)))


def _sizes(model: DCAT, candidates: int, reuse: float) -> dict[str, Any]:
    config = {
        name: getattr(model.config, name) for name in ("width", "num_heads", "num_layers", "ffn_width", "max_history")
    }
    return {
        "candidates": candidates,
        "users": USERS,
        "new_events": NEW_EVENTS,
        "reuse": round(reuse, 3),
        **config,
        "threads": torch.get_num_threads(),
    }


CLAIMS = {"kept": kept, "new_users": new_users, "append": append, "memory": memory}


def main(argv: list[str] | None = None) -> int:
    keep_freed_pages()
    return claims.run("serving", __doc__, CLAIMS, argv)


if __name__ == "__main__":
    sys.exit(main())
