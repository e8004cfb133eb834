"""Tables of items and events in a quarter of their bytes: 8-bit numbers, and a scale for each row.

    row v:  q = round(w / s),  s = max |w| / 127        read as q s: no number is off by more than s / 2

Of a trained model, for serving: `reqdedup export --int8-tables`. A bundle's weights say by their type that they are so.
Tables of request features stay as they are: they are small. What it costs in scores is a row of
`benchmarks/model_variants.py`. Source of the idea: PinFM (arXiv 2507.12704), whose tables are served so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from reqdedup.models.inputs import HashedEmbedding, ItemEmbedding, hashed_row


class Int8Embedding(nn.Module):
    """A `HashedEmbedding` for inference. weight: [V, D] int8.  scale: [V] of the table's type."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_rows, width
        self.register_buffer("weight", torch.zeros(num_rows, width, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(num_rows))

    @classmethod
    @torch.no_grad()
    def of(cls, table: HashedEmbedding) -> Int8Embedding:
        made = cls(table.num_embeddings, table.embedding_dim)
        made.scale = table.weight.abs().amax(dim=1) / 127
        made.weight = (table.weight / made.scale.clamp(min=1e-30)[:, None]).round().to(torch.int8)
        return made

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        row = hashed_row(ids, self.num_embeddings)
        return self.weight[row] * self.scale[row][..., None]


def with_int8_tables(model: nn.Module) -> nn.Module:
    """The same model, its tables of items and events replaced."""
    for name, table in _tables(model).items():
        _put(model, name, Int8Embedding.of(table))
    return model.requires_grad_(False)


def fit_to(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Make room in a new model for weights of a model with such tables; any other stays as it is."""
    for name, table in _tables(model).items():
        weight = weights.get(f"{name}.weight")
        if weight is not None and weight.dtype == torch.int8:
            _put(model, name, Int8Embedding(table.num_embeddings, table.embedding_dim))


def _tables(model: nn.Module) -> dict[str, HashedEmbedding]:
    return {
        f"{of}.{name}" if of else name: table
        for of, module in model.named_modules()
        if isinstance(module, ItemEmbedding)
        for name, table in module.named_modules()
        if isinstance(table, HashedEmbedding)
    }


def _put(model: nn.Module, name: str, table: Int8Embedding) -> None:
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, table)
