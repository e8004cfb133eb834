"""DCAT: a ranking transformer that reads each request's history once, whatever the number of candidates.

    encode_context(batch) -> Context            one pass over the R histories, K and V of every layer kept
    score(context, batch) -> logits             each of the B candidates crosses its own request's context, then an MLP

    encode_blocks(history) -> BlockContext      one history in blocks, or what a kept context lacks
    predict_exact(batch, contexts) -> logits    the same logits in bits that depend on the request alone

It equals the causal transformer over [history ; candidate] read at the candidate, computed once per row
(`reqdedup.models.dcat.naive.DCAT`), outputs and gradients. The MLP on top has BatchNorm1d, the transformer none. With
share_context="user" requests of one user whose histories begin at the same event share one pass, and each candidate
crosses its own request's prefix of it.
Source: PinFM (arXiv 2507.12704).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.dcat.block_context import BlockContext, BlockContexts, Blocks, KVType, RequestContexts
from reqdedup.models.dcat.config import DCATConfig
from reqdedup.models.dcat.folded import DEFAULT_BLOCKS, EXACT_ROWS, FoldedDCAT
from reqdedup.models.histories import Histories
from reqdedup.models.inputs import HashedEmbedding, ItemEmbedding, RequestFeatures, column
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.transformer import HistoryTransformer, dropped
from reqdedup.ops.attention import SOFTMAX, Attention
from reqdedup.ops.crossing_attention_flash import PADDED_CONTEXT_AT_MOST
from reqdedup.ops.prefixes import Prefixes, ranges


@dataclass(frozen=True)
class Context:
    """What histories become: per layer the keys and values [T, H, K], packed over G histories by offsets_G1.

    It depends on the histories alone, not on candidates or the requests' features, so a server can keep it.
    prefixes: which requests read which history, and how much of it; None if each of the R requests has its own.
    """

    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    offsets_G1: torch.Tensor
    prefixes: Prefixes | None = None

    @property
    def num_requests(self) -> int:
        return len(self.offsets_G1) - 1 if self.prefixes is None else self.prefixes.num_requests

    @property
    def request_lengths(self) -> torch.Tensor:
        return self.offsets_G1.diff() if self.prefixes is None else self.prefixes.prefix_length_R

    def attend(
        self,
        layer: int,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        row_offsets_R1: torch.Tensor,
        *,
        attention: Attention = SOFTMAX,
        **options: Any,
    ) -> torch.Tensor:
        rows = (query_BHK, self_key_BHK, self_value_BHK)
        context = (*self.keys_values[layer], self.offsets_G1)
        return attention.crossing(*rows, *context, row_offsets_R1, prefixes=self.prefixes, **options)

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

    def __init__(
        self, config: DCATConfig, *, backend: str = "auto", padded_context_at_most: int = PADDED_CONTEXT_AT_MOST
    ) -> None:
        """backend, padded_context_at_most: of `crossing_attention`."""
        super().__init__()
        self.config = config
        self.backend, self.padded_context_at_most = backend, padded_context_at_most
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
        self.item_bias = HashedEmbedding(config.item_table_rows, len(config.labels)) if config.item_bias else None
        if self.item_bias is not None:
            nn.init.zeros_(self.item_bias.weight)

    def encode_context(self, batch: RequestBatch) -> Context:
        """One pass over the histories; reads `batch.history`, its offsets and what says which requests can share."""
        histories = Histories.of(batch, self.config)
        x_TD = self.embedding.events(histories.tokens)
        _, keys_values = self.transformer(x_TD, histories.offsets_G1, keys_values_only=True)
        return Context(tuple(keys_values), histories.offsets_G1, histories.prefixes)

    def encode_blocks(
        self,
        history: Mapping[str, torch.Tensor],
        kept: BlockContext | None = None,
        *,
        num_shared: int | None = None,
        blocks: Blocks | None = DEFAULT_BLOCKS,
        kv_type: KVType = "full",
    ) -> BlockContext:
        """The context of one history, computed in blocks; see `block_context`.

        history: sequence columns of one request, [L] each, from the start of its window.
        kept: context of a history with the same start, of the same blocks and type; what both histories begin with is
            taken over.  num_shared: how many events that is, None: all that the shorter one has. That they are equal is
            the caller's word, they are not looked at.
        blocks: None: all events that `kept` lacks in one pass, faster and in bits that depend on what was kept.
        Raises ValueError for a model whose keys and values change when a history grows, and if `kept` has other blocks.
        """
        shared = len(column(history, "item_id", "history")) if num_shared is None else num_shared
        return self.folded().encode_together([(history, kept, shared)], blocks=blocks, kv_type=kv_type)[0]

    def folded(self) -> FoldedDCAT:
        """The model as it is now, for inference: `encode_blocks` and `predict_exact` in the same bits, and faster for
        whoever keeps it: these fold at every call. Raises ValueError for a model in training mode."""
        return FoldedDCAT(self)

    def score(self, context: RequestContexts, batch: RequestBatch, *, is_exact: bool = False) -> torch.Tensor:
        """Logits [B, num_labels] of the batch's candidates; reads no history, only the context of its R requests.

        is_exact: pad the batch's rows, and its requests, to multiples of EXACT_ROWS while they are computed. Kernels
            take other paths at one row and at the last rows of a tile; with it, and contexts that are read request by
            request (`BlockContexts`), the bits of a request do not depend on the others.
        """
        if context.num_requests != batch.num_requests:
            raise ValueError(
                f"score: a context of the batch's {batch.num_requests} requests required, found {context.num_requests}"
            )
        if not is_exact:
            return self.biased(self.head(self.head_input(self.cross(context, batch), batch)), batch)
        padded = batch.with_padded_rows(EXACT_ROWS)
        if isinstance(context, BlockContexts):
            context = replace(context, num_rows=tuple(batch.row_offsets_R1.diff().tolist()))
        logit_BL = self.head(self.head_input(self.cross(context, padded), padded, is_exact=True))[: batch.num_rows]
        return self.biased(logit_BL, batch)

    def biased(self, logit_BL: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """Logits with what each item has on its own."""
        return logit_BL if self.item_bias is None else logit_BL + self.item_bias(batch.item_id_B)

    def candidate_ids(self, item_id_B: torch.Tensor) -> torch.Tensor:
        """In training some of them drawn by chance, if the configuration says so."""
        if not (self.training and self.config.random_candidates):
            return item_id_B
        is_drawn_B = torch.rand(len(item_id_B), device=item_id_B.device) < self.config.random_candidates
        return torch.where(is_drawn_B, torch.randint_like(item_id_B, 2**62), item_id_B)

    def cross(self, context: RequestContexts, batch: RequestBatch) -> torch.Tensor:
        """The candidates after all layers, [B, D]: each stands right after its request's history."""
        x_BD = self.embedding.candidates(self.candidate_ids(batch.item_id_B), batch.row) + self.candidate_marker
        length_R = context.request_lengths.to(x_BD.device)
        position_B = batch.expand(self.transformer.positions.of_candidates(length_R))
        x_BD = dropped(self.transformer.positions.add(x_BD, position_B), self.transformer)
        rotation = self.transformer.positions.rotation(position_B, x_BD.dtype)
        options: dict[str, Any] = {"backend": self.backend, "padded_context_at_most": self.padded_context_at_most}
        for number, layer in enumerate(self.transformer):
            normed = layer.attention_norm(x_BD)
            rows = (layer.queries(normed, rotation), *layer.keys_values(normed, rotation))
            attended = context.attend(number, *rows, batch.row_offsets_R1, attention=layer.attention, **options)
            x_BD = layer.finish(x_BD, attended)
        return self.final_norm(x_BD)

    def head_input(self, crossed_BD: torch.Tensor, batch: RequestBatch, *, is_exact: bool = False) -> torch.Tensor:
        """The head's first Linear over [crossed ; request features], the request's share computed once per request.

        is_exact: see `score`.
        """
        hidden_B = self.head_in(crossed_BD)
        if self.head_in_request is None:
            return hidden_B
        request = batch.request
        if is_exact and batch.num_requests:
            padded = torch.arange(-(-batch.num_requests // EXACT_ROWS) * EXACT_ROWS, device=hidden_B.device)
            request = {name: x_R[padded.clamp(max=batch.num_requests - 1)] for name, x_R in request.items()}
        share_R = self.head_in_request(self.features(request, hidden_B.dtype))[: batch.num_requests]
        return hidden_B + batch.expand(share_R)

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

    @torch.inference_mode()
    def predict_exact(self, batch: RequestBatch, contexts: Sequence[BlockContext] | None = None) -> torch.Tensor:
        """Logits [B, num_labels] whose bits depend on each request alone: not on the others of the batch, nor on
        whether its context was kept, extended or computed now. The price is about twice the context pass, and small
        batches less dense.

        contexts: of the R requests, by `encode_blocks`; None computes them. With them no history is read.
        An empirical property of torch's CPU kernels, which the tests check; values equal those of
        `predict` up to rounding.
        """
        return self.folded().predict_exact(batch, contexts)

    def check_evaluates(self) -> None:
        """Raises ValueError for a model in training mode."""
        if self.training:
            raise ValueError(
                "predict: a model in evaluation mode required, found one in training mode; call model.eval() once"
            )
