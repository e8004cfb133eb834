"""From the named columns of a RequestBatch to vectors: hashed embedding tables and request features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from reqdedup.models.config import ModelConfig
from reqdedup.models.derived import with_derived
from reqdedup.models.known_vectors import KnownVectors

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, odd, as a signed 64-bit integer


def hashed_row(ids: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The table row of each id, 0 <= row < num_rows: a multiplicative hash, the same in every
    process and on any device.

    row = floor(h * num_rows / 2^31) with h the top 31 bits of id * floor(2^64 / golden ratio) mod 2^64. Neighbouring
    ids land far apart and evenly, so small vocabularies collide less than chance would have them.
    ids: any integer or bool type, negative ids included.
    Source: Knuth, The Art of Computer Programming, volume 3, section 6.4 (Fibonacci hashing).
    """
    row = ids.long() * _MULTIPLIER
    row >>= 33
    row &= 0x7FFF_FFFF
    row *= num_rows
    row >>= 31
    return row


def hashed_row_of(id: int, num_rows: int) -> int:
    """`hashed_row` of one id, without a tensor."""
    return (((id * _MULTIPLIER) % 2**64) >> 33) * num_rows >> 31


class HashedEmbedding(nn.Embedding):
    """An embedding table for ids of any size: `hashed_row` chooses the row, collisions share one."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(hashed_row(ids, self.num_embeddings))


def column(values: Mapping[str, torch.Tensor], name: str, group: str) -> torch.Tensor:
    """`values[name]`, or a ValueError that says which column a loader left out."""
    try:
        return values[name]
    except KeyError:
        raise ValueError(
            f"the model reads {group}[{name!r}], the batch has {sorted(values)}; read all of config.columns"
        ) from None


class ItemEmbedding(nn.Module):
    """Items as vectors: one hashed table shared by histories and candidates, plus a table per category."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.derived, self.item_numbers = config.derived_item, config.item_numbers
        self.item_categories = (*config.item_categories, *(one.name for one in self.derived if not one.width))
        self.history_categories = config.history_categories
        self.item = HashedEmbedding(config.item_table_rows, config.width)
        self.of_item = nn.ModuleList(
            HashedEmbedding(config.category_table_rows, config.width) for _ in self.item_categories
        )
        self.of_event = nn.ModuleList(
            HashedEmbedding(config.category_table_rows, config.width) for _ in config.history_categories
        )
        num_numbers = len(self.item_numbers) + sum(one.width for one in self.derived)
        self.of_numbers = nn.Linear(num_numbers, config.width, bias=False) if num_numbers else None
        self.known = KnownVectors(config.item_vector_width, config.width) if config.item_vector_width else None

    def items(self, item_id_N: torch.Tensor) -> torch.Tensor:
        """Items alone, [N, D]: what is learned of each, and what is known."""
        x_ND = self.item(item_id_N)
        return x_ND if self.known is None else x_ND + self.known(item_id_N)

    def events(self, history: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """History tokens: the item and its event's categories, [T, D]."""
        x_TD = self.items(column(history, "item_id", "history"))
        for name, table in zip(self.history_categories, self.of_event, strict=True):
            x_TD = x_TD + table(column(history, name, "history"))
        return x_TD

    def candidates(self, item_id_B: torch.Tensor, row: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Candidates: the item and its own categories and numbers, [B, D]."""
        x_BD = self.items(item_id_B)
        row = with_derived(self.derived, row)
        for name, table in zip(self.item_categories, self.of_item, strict=True):
            x_BD = x_BD + table(column(row, name, "row"))
        return x_BD if self.of_numbers is None else x_BD + self.of_numbers(self.numbers(row, x_BD.dtype))

    def numbers(self, row: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Numbers of candidates side by side. row: with what is derived."""
        parts = [squeezed(column(row, name, "row"), dtype)[:, None] for name in self.item_numbers]
        return torch.cat([*parts, *(row[one.name].to(dtype) for one in self.derived if one.width)], dim=1)


def squeezed(number_R: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers as a model reads them: sign(x) log(1 + |x|), NaN and infinite ones as 0."""
    wide = number_R.to(torch.promote_types(number_R.dtype, torch.promote_types(dtype, torch.float32)))
    return (wide.sign() * wide.abs().log1p()).nan_to_num(0.0, 0.0, 0.0).to(dtype)


class RequestFeatures(nn.Module):
    """The request's own features, side by side, once per request: [R, F]; `width` is F, 0 if there are none.

    In this order: categories, vectors, numbers, derived numbers; `widths` has the width of each.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.derived, self.vectors, self.numbers = (
            config.derived_request,
            config.request_vectors,
            config.request_numbers,
        )
        self.categories = (*config.request_categories, *(one.name for one in self.derived if not one.width))
        self.derived_numbers = tuple((one.name, one.width) for one in self.derived if one.width)
        self.of_category = nn.ModuleList(
            HashedEmbedding(config.category_table_rows, config.feature_width) for _ in self.categories
        )
        self.of_vector = nn.ModuleList(nn.Linear(width, config.feature_width) for _, width in self.vectors)
        self.widths = [config.feature_width] * (len(self.categories) + len(self.vectors)) + [1] * len(self.numbers)
        self.widths += [width for _, width in self.derived_numbers]
        self.width = sum(self.widths)

    def forward(self, request: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """request: values of R requests, as in `RequestBatch.request`."""
        request = with_derived(self.derived, request)
        parts = [
            table(column(request, name, "request"))
            for name, table in zip(self.categories, self.of_category, strict=True)
        ]
        for (name, _), project in zip(self.vectors, self.of_vector, strict=True):
            parts.append(project(column(request, name, "request").to(dtype)))
        for name in self.numbers:
            parts.append(squeezed(column(request, name, "request"), dtype)[:, None])
        parts += [request[name].to(dtype) for name, _ in self.derived_numbers]
        return torch.cat(parts, dim=1)
