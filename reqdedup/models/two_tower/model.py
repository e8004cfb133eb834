"""Two-tower retrieval: the user tower on the R requests, the item tower on the B rows, both L2-normalised.

The user tower runs once per request; its BatchNorm weighs each request by its rows, so that it equals the tower
computed once per row (`reqdedup.models.two_tower.naive.TwoTower`), outputs, gradients and running statistics. With
share_context="user" its transformer runs once per group of requests whose histories are prefixes of one another.

    user_state(history) -> [D]                    the heavy half, of one history: kept, or computed ahead
    user_head(states, request) -> [R, width]      the light half: the request's features enter here

Both halves compute in calls of one history and of one request, so that their bits depend on nothing else. What the
request is about right now (`reqdedup.models.two_tower.context`) and cross layers (`reqdedup.models.cross`) are in the
light half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.cross import Crossing
from reqdedup.models.histories import Histories, last_of_history, mean_over_history
from reqdedup.models.inputs import ItemEmbedding, RequestFeatures, column
from reqdedup.models.mlp import NormedMLP
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.models.two_tower.config import TwoTowerConfig
from reqdedup.models.two_tower.context import ContextFusion, ContextLayer
from reqdedup.ops.prefixes import Prefixes

EVENTS_A_READER = 32
"""Of shared histories, for each request that reads a last event: from so many on the last layer is computed at these
events alone, since its work on all of them is more than that of as many separate queries (decision 140)."""


class FurtherHead(nn.Module):
    """What makes user vectors for a label of its own from the light half's input; the first label's is the model's."""

    def __init__(self, config: TwoTowerConfig, user_width: int) -> None:
        super().__init__()
        self.user_in = nn.Linear(user_width, config.hidden_widths[0])
        self.user_mlp = NormedMLP(config.hidden_widths, config.output_width)
        sizes = {"num_layers": config.cross_layers, "rank": config.cross_rank}
        self.user_cross = Crossing(config.tower, user_width, config.output_width, **sizes)


class TwoTower(nn.Module):
    """User vectors [R, output_width] and item vectors [B, output_width], both of length 1.

    If config.has_row_heads, training makes user vectors of the rows, [B, output_width]; if config.heads, one of each of
    the L labels, [R, L, output_width].
    """

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = ItemEmbedding(config)
        self.transformer = HistoryTransformer(config)
        self.final_norm = nn.LayerNorm(config.width)
        self.features = RequestFeatures(config)
        user_width = config.state_width + self.features.width + (config.width if config.has_context else 0)
        self.user_in = nn.Linear(user_width, config.hidden_widths[0])
        self.user_mlp = NormedMLP(config.hidden_widths, config.output_width)
        self.item_in = nn.Linear(config.width, config.hidden_widths[0])
        self.item_mlp = NormedMLP(config.hidden_widths, config.output_width)
        sizes = {"num_layers": config.cross_layers, "rank": config.cross_rank}
        self.user_cross = Crossing(config.tower, user_width, config.output_width, **sizes)
        self.item_cross = Crossing(config.tower, config.width, config.output_width, **sizes)
        self.context, self.fusion = ContextLayer(config), ContextFusion(config)
        self.user_further = nn.ModuleList(FurtherHead(config, user_width) for _ in config.heads[1:])

    def user_tower(self, batch: RequestBatch) -> torch.Tensor:
        """User vectors, one per request: [R, output_width]; see the class for training."""
        histories = Histories.of(batch, self.config)
        state_RD = self._states(histories.tokens, histories.offsets_G1, histories.prefixes)
        if self.training and self.config.has_row_heads:
            return self.row_vectors(batch.expand(state_RD), batch)
        return self.user_vectors(state_RD, batch)

    def row_vectors(self, state_BD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """User vectors of the rows, [B, output_width], each with the context that its own item makes."""
        x_BD = self.fusion(state_BD, self.context.of_items(batch.row, state_BD.dtype))
        if self.features.width:
            x_BD = torch.cat([x_BD, batch.expand(self.features(batch.request, state_BD.dtype))], dim=1)
        return _of_input(self, x_BD)

    def user_vectors(self, state_RD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        """User vectors of the batch's requests in one call, [R, output_width]; in training statistics weigh rows, and
        there may be several, see the class."""
        x_RD = self._head_in(state_RD, batch.request)
        return self._of_heads(lambda head: _of_input(head, x_RD, batch))

    @torch.no_grad()
    def user_state(self, history: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the user tower knows of one history, [config.state_width]: its tokens after the transformer, pooled;
        zero if it is empty.

        history: sequence columns, [L] each, oldest first. Nothing of the request is in it.
        Raises ValueError for a model in training mode.
        """
        self.check_evaluates()
        length = len(column(history, "item_id", "history"))
        return self._states(history, torch.tensor([0, length], device=self.final_norm.weight.device))[0]

    @torch.no_grad()
    def user_head(self, state_RD: torch.Tensor, request: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """User vectors of length 1 of states and request features, [R, output_width], in a call per request.

        request: values of the R requests, as in `RequestBatch.request`.
        Raises ValueError for a model in training mode, whose BatchNorm would learn from the requests.
        """
        self.check_evaluates()
        users = [state_RD.new_zeros(0, self.config.output_width)]
        for r in range(len(state_RD)):
            x_1D = self._head_in(state_RD[r : r + 1], {name: x_R[r : r + 1] for name, x_R in request.items()})
            users.append(_of_input(self, x_1D))
        return torch.cat(users)

    def check_evaluates(self) -> None:
        """Raises ValueError for a model in training mode."""
        if self.training:
            raise ValueError(
                "user state and head: a model in evaluation mode required, found one in training mode; call "
                "model.eval() once"
            )

    def _states(
        self, tokens: Mapping[str, torch.Tensor], offsets_G1: torch.Tensor, prefixes: Prefixes | None = None
    ) -> torch.Tensor:
        x_TD, pooling = self.embedding.events(tokens), self.config.pooling
        length_R = offsets_G1.diff() if prefixes is None else prefixes.prefix_length_R
        are_few = prefixes is None or len(x_TD) >= EVENTS_A_READER * len(length_R)
        if pooling == "last" and len(x_TD) and are_few:
            x_RD = self.final_norm(self.transformer.last_events(x_TD, offsets_G1, prefixes))
            return torch.where((length_R > 0)[:, None], x_RD, 0.0)
        x_TD = self.final_norm(self.transformer(x_TD, offsets_G1)[0])
        parts = [] if pooling == "last" else [mean_over_history(x_TD, offsets_G1, prefixes)]
        if pooling != "mean":
            parts.append(last_of_history(x_TD, offsets_G1, prefixes))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _head_in(self, state_RD: torch.Tensor, request: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The light half's input: [state ; context ; request features]."""
        x_RD = state_RD
        if self.config.has_context:
            x_RD = self.fusion(x_RD, self.context.of_requests(request, x_RD.dtype))
        if self.features.width:
            x_RD = torch.cat([x_RD, self.features(request, x_RD.dtype)], dim=1)
        return x_RD

    def _of_heads(self, make: Callable[[TwoTower | FurtherHead], torch.Tensor]) -> torch.Tensor:
        """What is made with the first head, [N, output_width]; training with config.heads: with each, [N, L, ...]."""
        if not (self.training and self.config.heads):
            return make(self)
        heads: tuple[TwoTower | FurtherHead, ...] = (self, *cast(list[FurtherHead], list(self.user_further)))
        return torch.stack([make(head) for head in heads], dim=1)

    def item_tower(self, batch: RequestBatch) -> torch.Tensor:
        """Item vectors, one per row: [B, output_width]."""
        return self.encode_items(batch.item_id_B, batch.row)

    def encode_items(self, item_id_N: torch.Tensor, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Item vectors of any items: [N, output_width]. columns: config.item_columns of these items, [N] each."""
        x_ND = self.embedding.candidates(item_id_N, columns)
        out_NO = self.item_mlp(self.item_in(self.item_cross.before(x_ND)))
        return F.normalize(self.item_cross.beside(out_NO, x_ND), dim=1)

    def forward(
        self, batch: RequestBatch, catalogue: tuple[torch.Tensor, Mapping[str, torch.Tensor], Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(user_RD, item_BD); the score of row b is user_RD[request_of_row_B[b]] @ item_BD[b].

        catalogue: ids and columns of items whose vectors are wanted in place of the rows', [C, output_width]; and what
            the loss alone reads.
        """
        user_RD = self.user_tower(batch)
        return user_RD, self.item_tower(batch) if catalogue is None else self.encode_items(*catalogue[:2])


def _of_input(head: TwoTower | FurtherHead, x_ND: torch.Tensor, batch: RequestBatch | None = None) -> torch.Tensor:
    """User vectors of the light half's input, [N, output_width]. batch: whose requests N are, and whose rows weigh
    statistics in training."""
    hidden_NH = head.user_in(head.user_cross.before(x_ND))
    if batch is None:
        out_NO = head.user_mlp(hidden_NH)
    else:
        out_NO = head.user_mlp.on_requests(hidden_NH, batch.row_offsets_R1, batch.num_rows)
    return F.normalize(head.user_cross.beside(out_NO, x_ND), dim=1)
