"""Steps on batches in memory: retrieval, ranking, scoring with a kept context, the break-even curve, shared contexts,
the last event of histories.

Against the duplicated twin, the sensible one: batched attention, padded once, last layer at the last position only. All
histories of a step have one length unless a row says ragged, so that the twin pays for no padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks import operations
from benchmarks.interleaved import Run, interleaved, ratio_row
from benchmarks.workloads import Trainer, batch_of, check_equal, dcat_config, twins, two_tower_config, user_batch
from reqdedup.batch import RequestBatch
from reqdedup.models import DCAT, DCATConfig, TwoTower, TwoTowerConfig, naive
from reqdedup.models.histories import last_of_history
from reqdedup.ops.prefixes import Prefixes

Row = dict[str, Any]
FAN_OUTS = (1, 2, 5, 10, 40, 256, 1000)
SHARED_HISTORY, SHARED_NEW_EVENTS, SHARED_REQUESTS = 1024, 12, 20


def retrieval_step() -> Iterator[Row]:
    """Forward, backward, optimiser; R x B loss against B x B."""
    for fan_out, num_requests, ragged, target, rounds in (
        (8, 256, False, 9.0, 5),  # 2,048 in-batch negatives
        (8, 128, False, None, 3),
        (8, 128, True, None, 3),
        (256, 16, False, 50.0, 3),
    ):
        lengths = _lengths(num_requests, 64, ragged)
        batch, config = batch_of(lengths, [fan_out] * num_requests), two_tower_config(width=64, max_history=128)
        ours, duplicated = twins(config)
        check_equal(ours, duplicated, batch, batch)
        timings = interleaved(
            steps(ours, duplicated, batch),
            rounds=rounds,
            repeats={"reqdedup": 5},
        )
        counts = operations.two_tower_step(config, lengths, [fan_out] * num_requests)
        yield ratio_row(
            f"retrieval step, fan-out {fan_out}, {fan_out * num_requests} rows" + (", ragged" if ragged else ""),
            timings,
            baseline="duplicated",
            target=target,
            predicted=counts[1] / counts[0],
            sizes=_sizes(config, requests=num_requests, fan_out=fan_out, history=64, ragged=ragged),
        )


def ranking_step() -> Iterator[Row]:
    """DCAT, L = 512."""
    for fan_out, num_requests, ragged, target, rounds, repeats in (
        (10, 4, False, 8.0, 5, 2),
        (10, 4, True, None, 3, 2),
        (128, 1, False, 60.0, 3, 10),
    ):
        lengths = _lengths(num_requests, 512, ragged)
        batch, config = batch_of(lengths, [fan_out] * num_requests), dcat_config(width=128, max_history=1024)
        ours, duplicated = twins(config)
        check_equal(ours, duplicated, batch, batch)
        timings = interleaved(
            steps(ours, duplicated, batch),
            rounds=rounds,
            repeats={"reqdedup": repeats},
        )
        counts = operations.dcat_step(config, lengths, [fan_out] * num_requests)
        yield ratio_row(
            f"ranking step, {fan_out} candidates" + (", ragged" if ragged else ""),
            timings,
            baseline="duplicated",
            target=target,
            predicted=counts[1] / counts[0],
            sizes=_sizes(config, requests=num_requests, fan_out=fan_out, history=512, ragged=ragged),
        )


def scoring() -> Iterator[Row]:
    """500 candidates of one request whose context is kept."""
    batch, config = batch_of([512], [500]), dcat_config(width=128, max_history=1024)
    torch.manual_seed(0)
    ours, duplicated = DCAT(config).eval(), naive.DCAT(config).eval()
    duplicated.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        context = ours.encode_context(batch)
        torch.testing.assert_close(ours.score(context, batch), duplicated(batch), rtol=1e-3, atol=1e-4)
        timings = interleaved(
            {"reqdedup": lambda: ours.score(context, batch), "duplicated": lambda: duplicated(batch)},
            rounds=5,
            repeats={"reqdedup": 20},
        )
    kept = 500 * operations.crossing(config, 512)
    duplicated_operations = operations.dcat_step(config, [512], [500])[1]
    yield ratio_row(
        "scoring 500, context kept",
        timings,
        baseline="duplicated",
        target=160.0,
        predicted=duplicated_operations / kept,
        published="7x (the article, its models and hardware)",
        sizes=_sizes(config, requests=1, fan_out=500, history=512, ragged=False),
    )


def break_even() -> Iterator[Row]:
    """DCAT, L = 256, and two towers, L = 64, from one row a request on."""
    ranking, retrieval = dcat_config(width=64, max_history=256), two_tower_config(width=64, max_history=64)
    for fan_out in FAN_OUTS:
        requests, rounds = max(1, 32 // fan_out), 11 if fan_out == 1 else 3
        counts = operations.dcat_step(ranking, [256] * requests, [fan_out] * requests)
        yield _break_even_point("ranking", ranking, 256, requests, fan_out, counts, rounds)
        requests = max(4, 256 // fan_out)  # fewer make the user tower's BatchNorm degenerate: two values are always +-1
        counts = operations.two_tower_step(retrieval, [64] * requests, [fan_out] * requests)
        yield _break_even_point("retrieval", retrieval, 64, requests, fan_out, counts, rounds)


def _break_even_point(
    task: str,
    config: DCATConfig | TwoTowerConfig,
    length: int,
    num_requests: int,
    fan_out: int,
    counts: tuple[float, float],
    rounds: int,
) -> Row:
    batch = batch_of([length] * num_requests, [fan_out] * num_requests)
    ours, duplicated = twins(config)
    check_equal(ours, duplicated, batch, batch)
    timings = interleaved(
        steps(ours, duplicated, batch), rounds=rounds, repeats={"reqdedup": 3} if fan_out > 1 else None
    )
    return ratio_row(
        f"break-even, {task}, fan-out {fan_out}",
        timings,
        baseline="duplicated",
        target=0.95 if fan_out == 1 else None,
        predicted=counts[1] / counts[0],
        sizes=_sizes(config, requests=num_requests, fan_out=fan_out, history=length, ragged=False),
    )


def share_context() -> Iterator[Row]:
    """One context pass for all requests of a user that share it, against one per request; 20 requests a batch."""
    for requests_per_user, target in ((1, 0.97), (2, None), (5, 3.0), (20, 8.0)):
        yield from _shared_context(requests_per_user, target)


def _shared_context(requests_per_user: int, target: float | None) -> Iterator[Row]:
    batch = user_batch(
        num_users=SHARED_REQUESTS // requests_per_user,
        requests_per_user=requests_per_user,
        rows=10,
        max_history=SHARED_HISTORY,
        new_events=SHARED_NEW_EVENTS,
    )
    config = dcat_config(width=128, max_history=SHARED_HISTORY)
    each, _ = twins(config)
    shared, _ = twins(replace(config, share_context="user"))
    check_equal(shared, each, batch, batch)
    timings = interleaved(
        {
            "reqdedup": lambda: context_pass(shared.model, batch),
            "a pass per request": lambda: context_pass(each.model, batch),
            "step": lambda: shared.step(batch),
            "step, a pass per request": lambda: each.step(batch),
        },
        rounds=7 if requests_per_user == 1 else 3,
    )
    groups, length_R = batch.context_groups(), batch.history_offsets_R1.diff()
    length_G = length_R[groups.longest_G]
    counts = [
        sum(operations.dcat_context(config, length) for length in lengths.tolist()) for lengths in (length_R, length_G)
    ]
    sizes = _sizes(config, requests=batch.num_requests, fan_out=10, history=SHARED_HISTORY, ragged=True) | {
        "requests_per_user": requests_per_user,
        "new_events_per_request": SHARED_NEW_EVENTS,
        "stride": SHARED_HISTORY // 4,
        "contexts": len(length_G),
        "tokens": int(length_R.sum()),
        "tokens_passed_over": int(length_G.sum()),
    }
    yield ratio_row(
        f"shared context, {requests_per_user} requests a user",
        timings,
        baseline="a pass per request",
        target=target,
        predicted=counts[0] / counts[1],
        sizes=sizes,
    )
    yield ratio_row(
        f"shared context, whole step, {requests_per_user} a user",
        timings,
        ours="step",
        baseline="step, a pass per request",
        sizes=sizes,
    )


class LastOfAll(TwoTower):
    """The tower that reads the last event from a last layer computed at all events, as it is written at first."""

    def _states(
        self, tokens: Mapping[str, torch.Tensor], offsets_G1: torch.Tensor, prefixes: Prefixes | None = None
    ) -> torch.Tensor:
        x_TD, _ = self.transformer(self.embedding.events(tokens), offsets_G1)
        return last_of_history(self.final_norm(x_TD), offsets_G1, prefixes)


def last_event() -> Iterator[Row]:
    """User tower with pooling="last", forward and backward: the last layer at the events that are read, or at all."""
    for layers, num_requests, length in ((1, 128, 64), (1, 16, 512), (2, 128, 64), (2, 16, 512)):
        batch = batch_of([length] * num_requests, [8] * num_requests)
        yield _last_event(batch, f"{layers} layers, {num_requests} histories of {length}", num_layers=layers)
    for per_user in (8, 32):
        batch = user_batch(num_users=8, requests_per_user=per_user, rows=4, max_history=256, new_events=4)
        said = f"2 layers, {per_user} requests a history"
        yield _last_event(batch, said, num_layers=2, share_context="user")


def _last_event(batch: RequestBatch, said: str, **changes: Any) -> Row:
    config = two_tower_config(width=64, max_history=512, pooling="last", **changes)
    torch.manual_seed(0)
    ours, at_all = TwoTower(config), LastOfAll(config)
    at_all.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.user_tower(batch), at_all.user_tower(batch), rtol=1e-4, atol=1e-5)
    timings = interleaved(
        {"reqdedup": lambda: user_pass(ours, batch), "at all events": lambda: user_pass(at_all, batch)},
        rounds=5,
        repeats={"reqdedup": 3, "at all events": 3},
    )
    sizes = _sizes(config, requests=batch.num_requests, tokens=batch.num_history_tokens)
    return ratio_row(f"last layer at the last event, {said}", timings, baseline="at all events", sizes=sizes)


def user_pass(model: TwoTower, batch: RequestBatch) -> None:
    """Forward and backward of the user tower alone."""
    user_RD = model.user_tower(batch)
    (user_RD * torch.linspace(-1, 1, user_RD.numel()).view_as(user_RD)).sum().backward()
    model.zero_grad()


def steps(ours: Trainer, duplicated: Trainer, batch: RequestBatch) -> dict[str, Run]:
    return {"reqdedup": lambda: ours.step(batch), "duplicated": lambda: duplicated.step(batch)}


def context_pass(model: nn.Module, batch: RequestBatch) -> None:
    """Forward and backward of the context alone."""
    assert isinstance(model, DCAT)
    keys_values = [x for layer in model.encode_context(batch).keys_values for x in layer]
    torch.autograd.backward(keys_values, [torch.ones_like(x) for x in keys_values])
    model.zero_grad()


def _lengths(num_requests: int, length: int, ragged: bool) -> list[int]:
    """All equal, or evenly from a half to one and a half."""
    if not ragged:
        return [length] * num_requests
    return [round(length * (0.5 + (r + 0.5) / num_requests)) for r in range(num_requests)]


def _sizes(config: DCATConfig | TwoTowerConfig, **sizes: Any) -> dict[str, Any]:
    model = {name: getattr(config, name) for name in ("width", "num_heads", "num_layers", "ffn_width")}
    return {**sizes, **model, "item_table_rows": config.item_table_rows, "threads": torch.get_num_threads()}
