"""Random deduplicated batches of awkward shapes, and the configurations that read all of their columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig, TwoTowerConfig

INPUTS = {
    "history_categories": ("action",),
    "request_categories": ("device",),
    "request_vectors": (("user_embedding", 3),),
    "request_numbers": ("age_days",),
    "item_categories": ("item_category",),
    "item_table_rows": 50,
    "category_table_rows": 7,
    "width": 8,
    "num_heads": 2,
    "num_layers": 2,
    "ffn_width": 12,
    "feature_width": 3,
    "hidden_widths": (10, 6),
    "max_history": 1000,
}

SHAPES = {
    "ragged, empty histories and requests": ([5, 0, 63, 1, 0], [3, 4, 0, 7, 1]),
    "one request": ([17], [6]),
    "no history at all": ([0, 0], [2, 3]),
    "one row a request": ([4, 9, 0], [1, 1, 1]),
    "long": ([1000, 64], [2, 3]),
}


def dcat_config(**changes: object) -> DCATConfig:
    return DCATConfig(labels=("click", "save"), **{**INPUTS, **changes})


def two_tower_config(**changes: object) -> TwoTowerConfig:
    return TwoTowerConfig(output_width=5, **{**INPUTS, **changes})


def offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def random_batch(history_lengths: Sequence[int], rows_of_request: Sequence[int], *, seed: int = 0) -> RequestBatch:
    generator = torch.Generator().manual_seed(seed)
    num_requests, num_rows, num_tokens = len(history_lengths), sum(rows_of_request), sum(history_lengths)

    def integers(high: int, size: int) -> torch.Tensor:
        return torch.randint(0, high, (size,), generator=generator)

    return RequestBatch(
        user_id_R=torch.arange(num_requests),
        item_id_B=integers(10**12, num_rows),
        request_of_row_B=torch.repeat_interleave(
            torch.arange(num_requests), torch.tensor(rows_of_request, dtype=torch.int64)
        ),
        row_offsets_R1=offsets(rows_of_request),
        history_offsets_R1=offsets(history_lengths),
        request={
            "device": integers(5, num_requests).int(),
            "user_embedding": torch.randn(num_requests, 3, generator=generator),
            "age_days": 100 * torch.rand(num_requests, generator=generator),
        },
        row={"item_category": integers(9, num_rows).int(), "click": integers(2, num_rows).float()},
        history={"item_id": integers(10**12, num_tokens), "action": integers(4, num_tokens).int()},
    ).validate()


def one_request(batch: RequestBatch, r: int) -> RequestBatch:
    """Request r of a batch, alone and without its history."""
    rows = slice(*batch.row_offsets_R1[r : r + 2].tolist())
    num_rows = rows.stop - rows.start
    return RequestBatch(
        user_id_R=batch.user_id_R[r : r + 1],
        item_id_B=batch.item_id_B[rows],
        request_of_row_B=torch.zeros(num_rows, dtype=torch.int64),
        row_offsets_R1=offsets([num_rows]),
        history_offsets_R1=offsets([0]),
        request={name: x[r : r + 1] for name, x in batch.request.items()},
        row={name: x[rows] for name, x in batch.row.items()},
    )
