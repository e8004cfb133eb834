"""DCAT: a ranking transformer that reads each request's history once, whatever the number of candidates.

    encode_context(batch) -> Context     causal pass over the R histories, K and V of every layer kept
    score(context, batch) -> logits      each of the B candidates crosses its own request's context, then an MLP

It equals the causal transformer over [history ; candidate] read at the candidate, computed once per row
(`reqdedup.models.naive.DCAT`), outputs and gradients. The MLP on top has BatchNorm1d, the transformer none.
Source: PinFM (arXiv 2507.12704).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.config import DCATConfig
from reqdedup.models.inputs import ItemEmbedding, RequestFeatures
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.ops.crossing_attention import crossing_attention


@dataclass(frozen=True)
class Context:
    """What a history becomes: per layer the keys and values [T, H, K], packed over R requests by history_offsets_R1.

    It depends on the history alone, not on the candidates or the request's features, so a server can keep it.
    """

    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    history_offsets_R1: torch.Tensor

    @property
    def num_requests(self) -> int:
        return len(self.history_offsets_R1) - 1

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for layer in self.keys_values for x in layer)

    def request(self, r: int) -> Context:
        """The context of one request, as views."""
        start, end = self.history_offsets_R1[r : r + 2].tolist()
        keys_values = tuple((key[start:end], value[start:end]) for key, value in self.keys_values)
        return Context(keys_values, self.history_offsets_R1[r : r + 2] - start)

    @staticmethod
    def concatenate(contexts: Sequence[Context]) -> Context:
        """Several contexts as one, requests in order; at least one."""
        lengths = torch.cat([context.history_offsets_R1.diff() for context in contexts])
        keys_values = tuple(
            (torch.cat([key for key, _ in layers]), torch.cat([value for _, value in layers]))
            for layers in zip(*(context.keys_values for context in contexts), strict=True)
        )
        return Context(keys_values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


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
        """One causal pass over the R histories; reads only `batch.history` and its offsets."""
        x_TD = self.embedding.events(batch.history)
        _, keys_values = self.transformer(x_TD, batch.history_offsets_R1, keys_values_only=True)
        return Context(tuple(keys_values), batch.history_offsets_R1)

    def score(self, context: Context, batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] of the batch's candidates; reads no history, only the context of its R requests."""
        if context.num_requests != batch.num_requests:
            raise ValueError(
                f"score: a context of the batch's {batch.num_requests} requests required, found {context.num_requests}"
            )
        return self.head(self.head_input(self.cross(context, batch), batch))

    def cross(self, context: Context, batch: RequestBatch) -> torch.Tensor:
        """The candidates after all layers, [B, D]: each stands at position L_r, right after its request's history."""
        x_BD = self.embedding.candidates(batch.item_id_B, batch.row) + self.candidate_marker
        position_B = batch.expand(context.history_offsets_R1.diff())
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
                context.history_offsets_R1,
                batch.row_offsets_R1,
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
        """Logits [B, num_labels] in evaluation mode and without gradients, whatever mode the model is in."""
        was_training = self.training
        try:
            return self.eval()(batch)
        finally:
            self.train(was_training)
