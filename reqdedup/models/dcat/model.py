"""DCAT: a ranking transformer that reads each request's history once, whatever the number of candidates.

    encode_context(batch) -> Context     one pass over the R histories, K and V of every layer kept
    score(context, batch) -> logits      each of the B candidates crosses its own request's context, then an MLP

It equals the causal transformer over [history ; candidate] read at the candidate, computed once per row
(`reqdedup.models.dcat.naive.DCAT`), outputs and gradients. The MLP on top has BatchNorm1d, the transformer none. With
share_context="user" requests of one user whose histories begin at the same event share one pass, and each candidate
crosses its own request's prefix of it.
Source: PinFM (arXiv 2507.12704).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.dcat.config import DCATConfig
from reqdedup.models.histories import Histories
from reqdedup.models.inputs import ItemEmbedding, RequestFeatures
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.prefixes import Prefixes, ranges


@dataclass(frozen=True)
class Context:
    """What histories become: per layer the keys and values [T, H, K], packed over G histories by offsets_G1.

    It depends on the histories alone, not on candidates or the requests' features, so a server can keep it.
    prefixes: which requests read which history, and how much of it; None where each of the R requests has its own.
    """

    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    offsets_G1: torch.Tensor
    prefixes: Prefixes | None = None

    @property
    def num_requests(self) -> int:
        return len(self.offsets_G1) - 1 if self.prefixes is None else self.prefixes.num_requests

    @property
    def request_lengths(self) -> torch.Tensor:
        """Events that each request sees."""
        return self.offsets_G1.diff() if self.prefixes is None else self.prefixes.prefix_length_R

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for layer in self.keys_values for x in layer)

    def request(self, r: int) -> Context:
        """The context of one request, as views."""
        begins, ends = ranges(self.offsets_G1, self.prefixes)
        seen = slice(begins[r], ends[r])
        keys_values = tuple((key[seen], value[seen]) for key, value in self.keys_values)
        return Context(keys_values, self.offsets_G1.new_tensor([0, ends[r] - begins[r]]))

    @staticmethod
    def concatenate(contexts: Sequence[Context]) -> Context:
        """Several contexts as one, requests in order; at least one."""
        keys_values = tuple(
            (torch.cat([key for key, _ in layers]), torch.cat([value for _, value in layers]))
            for layers in zip(*(context.keys_values for context in contexts), strict=True)
        )
        offsets_G1 = concatenate_offsets([context.offsets_G1 for context in contexts])
        if all(context.prefixes is None for context in contexts):
            return Context(keys_values, offsets_G1)
        request_offsets = [
            torch.arange(context.num_requests + 1) if context.prefixes is None else context.prefixes.request_offsets_G1
            for context in contexts
        ]
        length_R = torch.cat([context.request_lengths for context in contexts])
        prefixes = Prefixes(concatenate_offsets([x.to(offsets_G1.device) for x in request_offsets]), length_R)
        return Context(keys_values, offsets_G1, prefixes)


def concatenate_offsets(offsets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Offsets of the concatenation: each starts where the one before ends."""
    lengths = torch.cat([x.diff() for x in offsets])
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


class DCAT(nn.Module):
    """A ranking model of R requests and their B candidates; logits [B, num_labels], one for each of config.labels."""

    def __init__(self, config: DCATConfig, *, backend: str = "auto") -> None:
        """backend: of `crossing_attention`."""
        super().__init__()
        self.config = config
        self.backend = backend
        self.embedding = ItemEmbedding(config)
        self.candidate_marker = nn.Parameter(torch.zeros(config.width))
        self.transformer = HistoryTransformer(config)
        self.final_norm = nn.LayerNorm(config.width)
        self.features = RequestFeatures(config)
        self.head_in = nn.Linear(config.width, config.hidden_widths[0])
        self.head_in_request = (
            nn.Linear(self.features.width, config.hidden_widths[0], bias=False) if self.features.width else None
        )
        self.head = NormedMLP(config.hidden_widths, len(config.labels))

    def encode_context(self, batch: RequestBatch) -> Context:
        """One pass over the histories; reads `batch.history`, its offsets and what says which requests can share."""
        histories = Histories.of(batch, self.config)
        x_TD = self.embedding.events(histories.tokens)
        _, keys_values = self.transformer(x_TD, histories.offsets_G1, keys_values_only=True)
        return Context(tuple(keys_values), histories.offsets_G1, histories.prefixes)

    def score(self, context: Context, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] of the batch's candidates; reads no history, only the context of its R requests."""
        if context.num_requests != batch.num_requests:
            raise ValueError(
                f"score: a context of the batch's {batch.num_requests} requests required, found {context.num_requests}"
            )
        return self.head(self.head_input(self.cross(context, batch), batch))

    def cross(self, context: Context, batch: RequestBatch) -> torch.Tensor:
        """The candidates after all layers, [B, D]: each stands right after its request's history."""
        x_BD = self.embedding.candidates(batch.item_id_B, batch.row) + self.candidate_marker
        position_B = batch.expand(self.transformer.positions.of_candidates(context.request_lengths))
        x_BD = self.transformer.positions.add(x_BD, position_B)
        rotation = self.transformer.positions.rotation(position_B, x_BD.dtype)
        for layer, (key, value) in zip(self.transformer, context.keys_values, strict=True):
            normed = layer.attention_norm(x_BD)
            self_key, self_value = layer.keys_values(normed, rotation)
            attended = crossing_attention(
                layer.queries(normed, rotation),
                self_key,
                self_value,
                key,
                value,
                context.offsets_G1,
                batch.row_offsets_R1,
                prefixes=context.prefixes,
                backend=self.backend,
            )
            x_BD = layer.finish(x_BD, attended)
        return self.final_norm(x_BD)

    def head_input(self, crossed_BD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """The head's first Linear over [crossed ; request features], the request's share computed once per request."""
        hidden_B = self.head_in(crossed_BD)
        if self.head_in_request is not None:
            hidden_B = hidden_B + batch.expand(self.head_in_request(self.features(batch, hidden_B.dtype)))
        return hidden_B

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels]: `encode_context`, then `score`."""
        return self.score(self.encode_context(batch), batch)

    @torch.no_grad()
    def predict(self, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] without gradients; changes nothing, so that threads may call it side by side.

        Raises ValueError for a model in training mode, whose BatchNorm would learn from the batch.
        """
        self.check_evaluates()
        return self(batch)

    def check_evaluates(self) -> None:
        """Raises ValueError for a model in training mode."""
        if self.training:
            raise ValueError(
                "predict: a model in evaluation mode required, found one in training mode; call model.eval() once"
            )
