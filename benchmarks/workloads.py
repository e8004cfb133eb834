"""Models, batches and tables that the training benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.arrays.windows import anchored_start
from reqdedup.batch import RequestBatch
from reqdedup.logs import SyntheticLogConfig, synthesize, synthetic_schema
from reqdedup.models import DCAT, DCATConfig, TwoTower, TwoTowerConfig, naive
from reqdedup.schema import EngagementSchema
from reqdedup.storage import Layout, TableSource, create_table, open_catalog, write
from reqdedup.training import info_nce

LABEL = "click"
TEMPERATURE, LOG_Q = 0.1, -9.0
ITEM_TABLE_ROWS = 16_384
INPUTS: dict[str, Any] = {
    "history_categories": ("action",),
    "request_categories": ("device",),
    "request_vectors": (("user_embedding", 32),),
    "item_categories": ("item_category",),
    "item_table_rows": ITEM_TABLE_ROWS,
}


def dcat_config(*, width: int, max_history: int, **changes: Any) -> DCATConfig:
    """Two layers, two heads, an FFN of twice the width."""
    return DCATConfig(**{**INPUTS, "width": width, "ffn_width": 2 * width, "max_history": max_history, **changes})


def two_tower_config(*, width: int, max_history: int, **changes: Any) -> TwoTowerConfig:
    return TwoTowerConfig(**{**INPUTS, "width": width, "ffn_width": 2 * width, "max_history": max_history, **changes})


def batch_of(
    lengths: Sequence[int],
    rows: Sequence[int],
    *,
    users: Sequence[int] | None = None,
    starts: Sequence[int] | None = None,
    seed: int = 0,
) -> RequestBatch:
    """Random rows and windows of histories; windows of one user and start hold the same events."""
    generator = torch.Generator().manual_seed(seed)
    num_requests, num_rows = len(lengths), sum(rows)
    length_R = torch.tensor(lengths, dtype=torch.int64)
    user_R = torch.arange(num_requests) if users is None else torch.tensor(users, dtype=torch.int64)
    start_R = torch.zeros_like(length_R) if starts is None else torch.tensor(starts, dtype=torch.int64)
    history_offsets_R1 = torch.cat([torch.zeros(1, dtype=torch.int64), length_R.cumsum(0)])
    event_T = torch.arange(int(length_R.sum())) + torch.repeat_interleave(start_R - history_offsets_R1[:-1], length_R)
    token_T = torch.repeat_interleave(user_R, length_R) * 1_000_003 + event_T * 7919
    row_count_R = torch.tensor(rows, dtype=torch.int64)
    return RequestBatch(
        user_id_R=user_R,
        item_id_B=torch.randint(0, 2**40, (num_rows,), generator=generator),
        request_of_row_B=torch.repeat_interleave(torch.arange(num_requests), row_count_R),
        row_offsets_R1=torch.cat([torch.zeros(1, dtype=torch.int64), row_count_R.cumsum(0)]),
        history_offsets_R1=history_offsets_R1,
        request={
            "device": torch.randint(0, 3, (num_requests,), generator=generator).int(),
            "user_embedding": torch.randn(num_requests, 32, generator=generator),
            "history_end": start_R + length_R,
            "timeline_version": torch.ones(num_requests, dtype=torch.int32),
        },
        row={
            "item_category": torch.randint(0, 64, (num_rows,), generator=generator).int(),
            LABEL: torch.randint(0, 2, (num_rows,), generator=generator).float(),
        },
        history={"item_id": token_T, "action": (token_T % 8).int()},
    ).validate()


def user_batch(
    *, num_users: int, requests_per_user: int, rows: int, max_history: int, new_events: int, seed: int = 0
) -> RequestBatch:
    """Long timelines cut by anchored windows (stride a quarter), `new_events` between two requests of a user."""
    first_N = 4 * max_history + np.random.default_rng(seed).integers(0, max_history, num_users)
    end_R = (first_N[:, None] + new_events * np.arange(requests_per_user)).ravel()
    start_R = anchored_start(end_R, max_history, max_history // 4)
    users = np.repeat(np.arange(num_users), requests_per_user)
    return batch_of(
        (end_R - start_R).tolist(), [rows] * len(end_R), users=users.tolist(), starts=start_R.tolist(), seed=seed
    )


@dataclass(frozen=True)
class Trainer:
    """A model with its optimiser; a step is forward, loss, backward, update."""

    model: nn.Module
    loss: Callable[[nn.Module, RequestBatch], torch.Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, model: nn.Module, loss: Callable[[nn.Module, RequestBatch], torch.Tensor]) -> Trainer:
        return cls(model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))

    def step(self, batch: RequestBatch) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(self.model, batch)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def twins(config: DCATConfig | TwoTowerConfig) -> tuple[Trainer, Trainer]:
    """(ours, duplicated) with the same parameters."""
    torch.manual_seed(0)
    if isinstance(config, DCATConfig):
        ours, duplicated = Trainer.of(DCAT(config), click_loss), Trainer.of(naive.DCAT(config), click_loss)
    else:
        ours = Trainer.of(TwoTower(config), retrieval_loss)
        duplicated = Trainer.of(naive.TwoTower(config), duplicated_retrieval_loss)
    duplicated.model.load_state_dict(ours.model.state_dict())
    return ours, duplicated


def check_equal(ours: Trainer, duplicated: Trainer, ours_batch: RequestBatch, their_batch: RequestBatch) -> None:
    """The correctness gate: loss and every gradient agree; raises ValueError where one does not."""
    for trainer, batch in ((ours, ours_batch), (duplicated, their_batch)):
        trainer.model.zero_grad()
        trainer.loss(trainer.model, batch).backward()
    largest = max(float(p.grad.abs().max()) for p in duplicated.model.parameters() if p.grad is not None)
    for (name, a), (_, b) in zip(ours.model.named_parameters(), duplicated.model.named_parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        error, scale = (a.grad - b.grad).abs().max(), b.grad.abs().max()
        if (
            not error <= 1e-3 * scale + 1e-4 * largest
        ):  # some are zero but for rounding: shifts that a BatchNorm removes
            raise ValueError(f"gate: gradient of {name} differs by {error:.2g} of {scale:.2g}; nothing is measured")
    with torch.no_grad():
        losses = [float(t.loss(t.model, b)) for t, b in ((ours, ours_batch), (duplicated, their_batch))]
    if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[1]):
        raise ValueError(f"gate: losses differ, {losses}; nothing is measured")


def click_loss(model: nn.Module, batch: RequestBatch) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(model(batch)[:, 0], batch.row[LABEL])


def retrieval_loss(model: nn.Module, batch: RequestBatch) -> torch.Tensor:
    user_RD, item_BD = model(batch)
    return info_nce(
        user_RD,
        item_BD,
        request_of_row_B=batch.request_of_row_B,
        user_id_R=batch.user_id_R,
        item_id_B=batch.item_id_B,
        log_q_B=torch.full((batch.num_rows,), LOG_Q),
        temperature=TEMPERATURE,
    )


def duplicated_retrieval_loss(model: nn.Module, batch: RequestBatch) -> torch.Tensor:
    """The same loss as it is written without deduplication, of a model that gives a user vector per row."""
    user_BD, item_BD = model(batch)
    return _row_by_row_loss(user_BD, item_BD, batch)


def by_hand_retrieval_loss(model: nn.Module, batch: RequestBatch) -> torch.Tensor:
    """The same loss as it is written without deduplication, of a model that gives a user vector per request."""
    user_RD, item_BD = model(batch)
    return _row_by_row_loss(user_RD.index_select(0, batch.request_of_row_B), item_BD, batch)


def _row_by_row_loss(user_BD: torch.Tensor, item_BD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
    """B x B logits, masks and one cross-entropy."""
    user_id_B = batch.user_id_R[batch.request_of_row_B]
    logits_BB = user_BD @ item_BD.mT / TEMPERATURE - LOG_Q
    is_no_negative = user_id_B[:, None] == user_id_B
    is_no_negative |= batch.item_id_B[:, None] == batch.item_id_B
    is_no_negative.fill_diagonal_(False)
    row_B = torch.arange(batch.num_rows)
    return F.cross_entropy(logits_BB.masked_fill_(is_no_negative, -torch.inf), row_B)


def write_tables(
    folder: Path, log: SyntheticLogConfig, layouts: Sequence[Layout]
) -> tuple[dict[Layout, TableSource], EngagementSchema]:
    """The log as one table per layout, one bucket, so that all of them have one row order."""
    catalog = open_catalog(
        properties={"type": "sql", "uri": f"sqlite:///{folder / 'catalog.db'}", "warehouse": f"file://{folder}"}
    )
    schema, tables = synthetic_schema(log), {}
    for layout in layouts:
        table = create_table(catalog, f"bench.{layout.value}", schema, layout, num_buckets=1)
        write(table, synthesize(log))
        tables[layout] = TableSource(table)
    return tables, schema
