"""The library against what a good engineer writes by hand, history once per request (`benchmarks.by_hand`).

    python -m benchmarks.training_by_hand [--only retrieval] [--rounds 3]

The duplicated model is what pipelines do; this is what they could do without a library. Where all histories have one
length, both compute the same and the step should cost the same, but for the B x B loss; where lengths are ragged, as in
every real log, padding costs what packing saves. Three kinds of batches: equal lengths; ragged ones in arrival order,
padded to the longest of the batch; ragged ones sorted by length and padded in buckets, at the bucket size that serves
the rival best. Loss and gradients agree before anything is timed; one thread, interleaved, CPU time. A run of
everything replaces `benchmarks/results/training_by_hand.jsonl`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import by_hand, claims
from benchmarks.interleaved import Run, interleaved, ratio_row
from benchmarks.workloads import (
    Trainer,
    batch_of,
    by_hand_retrieval_loss,
    check_equal,
    click_loss,
    dcat_config,
    retrieval_loss,
    two_tower_config,
)
from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, DCATConfig, TwoTower, TwoTowerConfig

Row = dict[str, Any]
BUCKETS = (16, 8, 4)
"""How many buckets of equally many requests the rival may choose from."""

FASTEST = "against the fastest by hand"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Requests of one batch.

    lengths: events of each history.  rows: candidates of each request.  is_bucketed: True if sorted by length.
    """

    name: str
    lengths: list[int]
    rows: list[int]

    is_bucketed: bool = False

    @property
    def is_ragged(self) -> bool:
        return min(self.lengths) < max(self.lengths)

    def sorted(self) -> Shape:
        lengths, rows = by_hand.sorted_by_length(self.lengths, self.rows)
        return Shape(name=f"{self.name}, length-bucketed", lengths=lengths, rows=rows, is_bucketed=True)

    def batch(self) -> RequestBatch:
        return batch_of(self.lengths, self.rows)

    def sizes(self, config: DCATConfig | TwoTowerConfig) -> dict[str, Any]:
        model = {name: getattr(config, name) for name in ("width", "num_heads", "num_layers", "ffn_width")}
        return {
            "requests": len(self.lengths),
            "rows": sum(self.rows),
            "mean_history": round(sum(self.lengths) / len(self.lengths), 1),
            "max_history": max(self.lengths),
            **model,
            "threads": torch.get_num_threads(),
        }


def equal(name: str, requests: int, length: int, fan_out: int) -> Shape:
    return Shape(name=name, lengths=[length] * requests, rows=[fan_out] * requests)


def news() -> Shape:
    """64 requests of a news log: histories and candidates long-tailed, mean 26 and 29, the longest history 245."""
    return Shape(name="ragged, news", lengths=_long_tail(64, 26, 245, seed=0), rows=_long_tail(64, 29.3, 150, seed=1))


def long_ragged(requests: int, fan_out: int) -> Shape:
    """Histories evenly from 30 to 512 events, mean 271."""
    lengths = np.random.default_rng(0).permutation(np.linspace(30, 512, requests).round().astype(int))
    return Shape(name="ragged, long", lengths=lengths.tolist(), rows=[fan_out] * requests)


def _long_tail(count: int, mean: float, largest: int, *, seed: int) -> list[int]:
    """Quantiles of a log-normal distribution with this mean and largest value, at least 1, in random order."""
    normal = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(count) + 0.5) / count).double().numpy()
    low, high = 0.0, 4.0  # the spread, by bisection: a wider one has a larger maximum at the same mean
    for _ in range(60):
        spread = (low + high) / 2
        values = np.exp(spread * normal)
        values *= mean / values.mean()
        low, high = (spread, high) if values.max() < largest else (low, spread)
    return np.random.default_rng(seed).permutation(values.round().clip(1).astype(int)).tolist()


def retrieval(rounds: int) -> Iterator[Row]:
    """Forward, backward, optimiser; R x B loss against a padded user tower and a B x B loss."""
    config = two_tower_config(width=64, max_history=512)
    rivals = {"padded user tower, B x B loss": by_hand.TwoTower}
    shapes = (
        equal("equal, fan-out 8", 256, 64, 8),
        equal("equal, fan-out 256", 16, 64, 256),
        news(),
        long_ragged(64, 8),
    )
    for shape in shapes:
        yield from _step("retrieval", shape, config, TwoTower, rivals, retrieval_loss, by_hand_retrieval_loss, rounds)


def ranking(rounds: int) -> Iterator[Row]:
    """Forward, backward, optimiser of DCAT against both ways of writing it by hand."""
    config = dcat_config(width=128, max_history=512)
    rivals = {"packed, block mask": by_hand.PackedDCAT, "matmul, self logit": by_hand.MatmulDCAT}
    shapes = (
        equal("equal, 10 candidates", 4, 512, 10),
        equal("equal, 128 candidates", 1, 512, 128),
        news(),
        long_ragged(64, 10),
    )
    for shape in shapes:
        yield from _step("ranking", shape, config, DCAT, rivals, click_loss, click_loss, rounds)


def _step(
    task: str,
    shape: Shape,
    config: Any,
    ours: Callable[..., Any],
    rivals: Mapping[str, Callable[..., Any]],
    our_loss: Callable[..., torch.Tensor],
    their_loss: Callable[..., torch.Tensor],
    rounds: int,
) -> Iterator[Row]:
    """Rows of one shape: every rival in the order given and, where it is ragged, sorted and in buckets."""
    torch.manual_seed(0)
    weights = ours(config).state_dict()

    def trainer(model: Callable[..., Any], loss: Callable[..., torch.Tensor], *arguments: Any) -> Trainer:
        made = Trainer.of(model(config, *arguments), loss)
        made.model.load_state_dict(weights)
        return made

    for arranged, sizes in _arrangements(shape):
        batch, mine = arranged.batch(), trainer(ours, our_loss)
        runs: dict[str, Run] = {"reqdedup": partial(mine.step, batch)}
        for name, rival in rivals.items():
            for size in sizes:
                theirs = trainer(rival, their_loss, size)
                check_equal(mine, theirs, batch, batch)
                runs[_variant(name, size)] = partial(theirs.step, batch)
        yield from _rows(f"{task} step", arranged, config, runs, rivals, rounds)


def scoring(rounds: int) -> Iterator[Row]:
    """Candidates of requests whose contexts are kept: packed here, padded there."""
    config = dcat_config(width=128, max_history=512)
    torch.manual_seed(0)
    ours = DCAT(config).eval()
    rivals = {"matmul, context kept": by_hand.MatmulDCAT}
    for shape in (equal("equal, 500 candidates", 1, 512, 500), news(), long_ragged(64, 40)):
        for arranged, sizes in _arrangements(shape):
            with torch.inference_mode():
                batch = arranged.batch()
                context = ours.encode_context(batch)
                expected = ours.score(context, batch)
                runs: dict[str, Run] = {"reqdedup": partial(ours.score, context, batch)}
                for size in sizes:
                    theirs = by_hand.MatmulDCAT(config, size).eval()
                    theirs.load_state_dict(ours.state_dict())
                    kept = theirs.encode_padded(batch)
                    torch.testing.assert_close(theirs.score_padded(kept, batch), expected, rtol=1e-3, atol=1e-4)
                    runs[_variant("matmul, context kept", size)] = partial(theirs.score_padded, kept, batch)
                yield from _rows("scoring", arranged, config, runs, rivals, rounds, repeats=10)


def _arrangements(shape: Shape) -> Iterator[tuple[Shape, tuple[int | None, ...]]]:
    """The batch in the order given, one bucket; where it is ragged also sorted, with the bucket
    sizes to choose from."""
    yield shape, (None,)
    if shape.is_ragged:
        yield shape.sorted(), tuple(len(shape.lengths) // count for count in BUCKETS if count < len(shape.lengths))


def _variant(rival: str, requests_per_bucket: int | None) -> str:
    return rival if requests_per_bucket is None else f"{rival}, buckets of {requests_per_bucket}"


def _rows(
    claim: str,
    shape: Shape,
    config: DCATConfig | TwoTowerConfig,
    runs: dict[str, Run],
    rivals: Mapping[str, Any],
    rounds: int,
    repeats: int = 1,
) -> Iterator[Row]:
    """Against the fastest of all, then against each rival at its best bucket size, where there are several."""
    timings = interleaved(runs, rounds=rounds, repeats=dict.fromkeys(runs, repeats))
    target = (1.3 if shape.is_bucketed else 2.0) if shape.is_ragged else 1.0
    for rival in (FASTEST, *(rivals if len(rivals) > 1 else ())):
        names = [name for name in runs if name != "reqdedup" and (rival == FASTEST or name.startswith(rival))]
        best = min(names, key=timings.median)
        row = ratio_row(f"{claim}, {shape.name}", timings, baseline=best, target=target, sizes=shape.sizes(config))
        yield row | {"variant": rival}


def keep_freed_pages() -> None:
    """Have this process reuse the memory that it frees, for both sides alike; nothing where the C library is not glibc.

    By default glibc gives large tensors, and the top of the heap, back to the system. How many pages a step then asks
    for again depends on which tensor happens to lie on top, and one side or the other loses a tenth of its time by
    chance.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h

CLAIMS = {"retrieval": retrieval, "ranking": ranking, "scoring": scoring}


def main(argv: list[str] | None = None) -> int:
    keep_freed_pages()
    return claims.run("training_by_hand", __doc__, CLAIMS, argv)


if __name__ == "__main__":
    sys.exit(main())
