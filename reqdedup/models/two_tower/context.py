"""What a request is about right now, beside the history: the categories and vectors of the pin, query or page.

    context_R = sum over categories w e(category) / sum over w  +  sum over vectors W v        zero if there is none

A category that is null (-1) or has no weight above 0 is none, and a vector of zeros is none. In training the whole
layer is dropped for a share of the requests, so that the history keeps being used. With context_from="positive" the
categories in training are those of each row's own item (synthetic context, for logs whose context was not kept): the
head then runs once per row, the transformer still once per request. Evaluation and serving read the request's own.

Such a context can leak the label: a model that only copies it is good on the training log alone. `without_context` and
`with_shuffled_context` are what a run's report shows beside the logged one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.inputs import HashedEmbedding, column
from reqdedup.models.two_tower.config import TwoTowerConfig
from reqdedup.values import NULL_INTEGER


class ContextLayer(nn.Module):
    """Contexts of requests or rows as vectors, [N, width]; without parameters if there is no context."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.categories, self.vectors = config.context_categories, config.context_vectors
        self.dropout, self.width = config.context_dropout, config.width
        self.of_category = HashedEmbedding(config.category_table_rows, config.width) if self.categories else None
        self.of_vector = nn.ModuleList(nn.Linear(width, config.width, bias=False) for _, width in self.vectors)

    def of_requests(self, request: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """request: values of R requests, as in `RequestBatch.request`."""
        ids, weights = [], []
        for name, weight, _ in self.categories:
            id_R = column(request, name, "request")
            weight_R = (
                column(request, weight, "request").to(dtype).nan_to_num(0.0, 0.0, 0.0).clamp(min=0) if weight else 1
            )
            ids.append(id_R.long())
            weights.append(weight_R * (id_R != NULL_INTEGER).to(dtype))
        vectors = [column(request, name, "request") for name, _ in self.vectors]
        return self._layer(ids, weights, vectors, dtype)

    def of_items(self, row: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Synthetic: the categories of each row's item, all of weight 1, and no vectors."""
        ids = [column(row, item_column, "row").long() for _, _, item_column in self.categories if item_column]
        return self._layer(ids, [(id_B != NULL_INTEGER).to(dtype) for id_B in ids], [], dtype)

    def _layer(
        self, ids: list[torch.Tensor], weights: list[torch.Tensor], vectors: list[torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        parts = []
        if ids and self.of_category is not None:
            weight_NC = torch.stack(weights, dim=1)
            of_category_NCD = self.of_category(torch.stack(ids, dim=1))
            total_N1 = weight_NC.sum(1, keepdim=True)
            parts.append((of_category_NCD * weight_NC[..., None]).sum(1) / torch.where(total_N1 > 0, total_N1, 1))
        projections = cast(list[nn.Linear], list(self.of_vector))
        parts += [project(x_NV.to(dtype)) for project, x_NV in zip(projections, vectors, strict=False)]
        context_ND = torch.stack(parts).sum(0)
        for project in projections[len(vectors) :]:  # synthetic contexts have none, and DDP wants a gradient of all
            context_ND = context_ND + 0 * project.weight.sum()
        if self.training and self.dropout:
            keeps_N1 = torch.rand(len(context_ND), 1, device=context_ND.device) >= self.dropout
            context_ND = context_ND * keeps_N1
        return context_ND


class ContextFusion(nn.Module):
    """[state ; context] as the head reads it: side by side, or the state's parts weighed by the context."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.num_parts, self.width = config.state_width // config.width, config.width
        is_attention = config.has_context and config.fusion == "attention"
        self.query = nn.Linear(config.width, config.width) if is_attention else None
        self.key = nn.Linear(config.width, config.width, bias=False) if is_attention else None

    def forward(self, state_NS: torch.Tensor, context_ND: torch.Tensor) -> torch.Tensor:
        """[N, state_width + width]. Attention scales each part by its share, so that nothing changes at equal ones."""
        if self.query is not None and self.key is not None:
            part_NPD = state_NS.unflatten(1, (self.num_parts, self.width))
            score_NP = (self.key(part_NPD) @ self.query(context_ND)[..., None])[..., 0] * self.width**-0.5
            state_NS = (part_NPD * (self.num_parts * F.softmax(score_NP, dim=1))[..., None]).flatten(1)
        return torch.cat([state_NS, context_ND], dim=1)


def without_context(batch: RequestBatch, config: TwoTowerConfig) -> RequestBatch:
    """The batch whose requests are about nothing."""
    request = dict(batch.request)
    for name, _, _ in config.context_categories:
        request[name] = torch.full_like(request[name], NULL_INTEGER)
    for name, _ in config.context_vectors:
        request[name] = torch.zeros_like(request[name])
    return replace(batch, request=request)


def with_shuffled_context(batch: RequestBatch, config: TwoTowerConfig, *, seed: int = 0) -> RequestBatch:
    """The batch in which each request has the context of another user's, drawn by chance; where one user has more than
    half of the requests, some keep one of their own user's."""
    generator = torch.Generator().manual_seed(seed)
    _, user_R, counts = batch.user_id_R.cpu().unique(return_inverse=True, return_counts=True)
    order = torch.randperm(batch.num_requests, generator=generator)
    place_U = torch.randperm(len(counts), generator=generator)
    order = order[place_U[user_R[order]].argsort(stable=True)]  # users in any order, and each one's requests together
    other_R = torch.empty_like(order)
    other_R[order] = order.roll(int(counts.max()) if len(counts) else 0)
    other_R = other_R.to(batch.user_id_R.device)
    shuffled = {name: batch.request[name][other_R] for name in config.context_columns}
    return replace(batch, request={**batch.request, **shuffled})
