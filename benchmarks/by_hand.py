"""The same models as a good engineer writes them without this library: each history once per request, in plain torch.

    TwoTower     a padded user tower per request, then a B x B loss (`workloads.by_hand_retrieval_loss`)
    PackedDCAT   padded [history ; candidates] per request under a block mask, one SDPA call per layer
    MatmulDCAT   a padded context pass, which can be kept, then batched matrix products with the self logit appended

Histories and candidates are padded to the longest of their bucket: all requests of the batch, or `requests_per_bucket`
neighbours, which pays off in a batch whose requests are sorted by length. Parameters and their names are those of the
library's models, so that a state_dict fits both. Causal attention and positions from the start only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from reqdedup import models
from reqdedup.batch import RequestBatch
from reqdedup.models import DCATConfig, TwoTowerConfig


@dataclass(frozen=True)
class Padded:
    """A rectangle [N, S, D] of N requests, filled from the left.  is_real_NS: False in cells of padding."""

    x_NSD: torch.Tensor
    is_real_NS: torch.Tensor

    @classmethod
    def of(cls, x_TD: torch.Tensor, length_N: torch.Tensor) -> Padded:
        """x_TD: the requests' tokens (or rows), one request after the other."""
        longest = int(length_N.max())
        is_real_NS = torch.arange(longest) < length_N[:, None]
        if len(x_TD) == is_real_NS.numel():  # all of one length: nothing to pad
            return cls(x_TD.view(*is_real_NS.shape, x_TD.shape[1]), is_real_NS)
        x_NSD = x_TD.new_zeros(*is_real_NS.shape, x_TD.shape[1])
        x_NSD[is_real_NS] = x_TD
        return cls(x_NSD, is_real_NS)

    def pack(self, x_NSD: torch.Tensor) -> torch.Tensor:
        """The real cells of another rectangle of this shape: [T, D]."""
        if len(x_NSD) * x_NSD.shape[1] == int(self.is_real_NS.sum()):
            return x_NSD.flatten(0, 1)
        return x_NSD[self.is_real_NS]


@dataclass(frozen=True)
class Bucket:
    """Neighbouring requests that are padded together.

    requests, tokens, rows: their slices of the batch.  length_N: events of each.  count_N: rows of each.
    """

    requests: slice
    tokens: slice
    rows: slice
    length_N: torch.Tensor
    count_N: torch.Tensor


def buckets(batch: RequestBatch, requests_per_bucket: int | None) -> Iterator[Bucket]:
    """The batch in buckets of so many requests; None: one bucket."""
    size = requests_per_bucket or batch.num_requests
    for first in range(0, batch.num_requests, size):
        requests = slice(first, min(first + size, batch.num_requests))
        bounds = slice(first, requests.stop + 1)
        history, rows = batch.history_offsets_R1[bounds], batch.row_offsets_R1[bounds]
        tokens = slice(int(history[0]), int(history[-1]))
        yield Bucket(requests, tokens, slice(int(rows[0]), int(rows[-1])), history.diff(), rows.diff())


def sorted_by_length(lengths: list[int], rows: list[int]) -> tuple[list[int], list[int]]:
    """Requests as a loader that buckets by length orders them."""
    pairs = sorted(zip(lengths, rows, strict=True))
    return [length for length, _ in pairs], [count for _, count in pairs]


class TwoTower(models.TwoTower):
    """`reqdedup.models.TwoTower`, its history padded."""

    def __init__(self, config: TwoTowerConfig, requests_per_bucket: int | None = None) -> None:
        super().__init__(config)
        self.requests_per_bucket = requests_per_bucket

    def user_tower(self, batch: RequestBatch) -> torch.Tensor:
        x_TD = self.embedding.events(batch.history)
        pooled = []
        for bucket in buckets(batch, self.requests_per_bucket):
            padded = Padded.of(x_TD[bucket.tokens], bucket.length_N)
            position_S = torch.arange(padded.x_NSD.shape[1])
            x_NSD = self.transformer.positions.add(padded.x_NSD, position_S)
            rotation = self.transformer.positions.rotation(position_S, x_NSD.dtype)
            for layer in self.transformer:
                normed = layer.attention_norm(x_NSD)
                key, value = layer.keys_values(normed, rotation)
                query = layer.queries(normed, rotation)
                x_NSD = layer.finish(x_NSD, sdpa(query, key, value, is_causal=True))
            sum_ND = (self.final_norm(x_NSD) * padded.is_real_NS[..., None]).sum(1)
            pooled.append(sum_ND / bucket.length_N.clamp(min=1)[:, None])
        return self.user_vectors(torch.cat(pooled), batch)


class PackedDCAT(models.DCAT):
    """`reqdedup.models.DCAT` as one padded sequence [history ; candidates] per request under a block mask."""

    def __init__(self, config: DCATConfig, requests_per_bucket: int | None = None) -> None:
        super().__init__(config)
        self.requests_per_bucket = requests_per_bucket

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        event_TD = self.embedding.events(batch.history)
        candidate_BD = self.embedding.candidates(batch.item_id_B, batch.row) + self.candidate_marker
        crossed = []
        for bucket in buckets(batch, self.requests_per_bucket):
            events = Padded.of(event_TD[bucket.tokens], bucket.length_N)
            candidates = Padded.of(candidate_BD[bucket.rows], bucket.count_N)
            crossed.append(candidates.pack(self.last_positions(events, candidates, bucket.length_N)))
        return self.head(self.head_input(torch.cat(crossed), batch))

    def last_positions(self, events: Padded, candidates: Padded, length_N: torch.Tensor) -> torch.Tensor:
        """The candidates after all layers, [N, C, D]; the last layer computes theirs alone."""
        num_events, num_candidates = events.x_NSD.shape[1], candidates.x_NSD.shape[1]
        position = torch.cat(
            [torch.arange(num_events).expand(len(length_N), -1), length_N[:, None].expand(-1, num_candidates)], dim=1
        )
        x = self.transformer.positions.add(torch.cat([events.x_NSD, candidates.x_NSD], dim=1), position)
        rotation = self.transformer.positions.rotation(position, x.dtype)
        sees = block_mask(events.is_real_NS, num_candidates)
        last = len(self.transformer.layers) - 1
        for number, layer in enumerate(self.transformer):
            normed = layer.attention_norm(x)
            key, value = layer.keys_values(normed, rotation)
            if number == last:
                x, normed, sees = x[:, num_events:], normed[:, num_events:], sees[:, :, num_events:]
                rotation = rotation and (rotation[0][:, num_events:], rotation[1][:, num_events:])
            query = layer.queries(normed, rotation)
            x = layer.finish(x, sdpa(query, key, value, sees=sees))
        return self.final_norm(x)


@dataclass(frozen=True)
class Context:
    """Per layer the padded keys and values [N, H, S, K] of one bucket.  is_real_NS: False in cells of padding."""

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    is_real_NS: torch.Tensor


class MatmulDCAT(models.DCAT):
    """`reqdedup.models.DCAT` as a padded context pass and batched matrix products for the candidates."""

    def __init__(self, config: DCATConfig, requests_per_bucket: int | None = None) -> None:
        super().__init__(config)
        self.requests_per_bucket = requests_per_bucket

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        return self.score_padded(self.encode_padded(batch), batch)

    def encode_padded(self, batch: RequestBatch) -> list[Context]:
        """Keys and values of every layer, a rectangle for each bucket."""
        x_TD = self.embedding.events(batch.history)
        last, contexts = len(self.transformer.layers) - 1, []
        for bucket in buckets(batch, self.requests_per_bucket):
            padded, keys_values = Padded.of(x_TD[bucket.tokens], bucket.length_N), []
            position_S = torch.arange(padded.x_NSD.shape[1])
            x_NSD = self.transformer.positions.add(padded.x_NSD, position_S)
            rotation = self.transformer.positions.rotation(position_S, x_NSD.dtype)
            for number, layer in enumerate(self.transformer):
                normed = layer.attention_norm(x_NSD)
                key, value = layer.keys_values(normed, rotation)
                keys_values.append((key.transpose(1, 2), value.transpose(1, 2)))
                if number < last:
                    query = layer.queries(normed, rotation)
                    x_NSD = layer.finish(x_NSD, sdpa(query, key, value, is_causal=True))
            contexts.append(Context(keys_values, padded.is_real_NS))
        return contexts

    def score_padded(self, contexts: list[Context], batch: RequestBatch) -> torch.Tensor:
        """Logits [B, num_labels] of the candidates, given the contexts of the batch's buckets."""
        candidate_BD = self.embedding.candidates(batch.item_id_B, batch.row) + self.candidate_marker
        crossed = []
        for bucket, context in zip(buckets(batch, self.requests_per_bucket), contexts, strict=True):
            candidates = Padded.of(candidate_BD[bucket.rows], bucket.count_N)
            position_N1 = bucket.length_N[:, None]
            x_NCD = self.transformer.positions.add(candidates.x_NSD, position_N1)
            rotation = self.transformer.positions.rotation(position_N1, x_NCD.dtype)
            is_hidden = None if bool(context.is_real_NS.all()) else ~context.is_real_NS[:, None, None]
            for layer, (key, value) in zip(self.transformer, context.keys_values, strict=True):
                normed = layer.attention_norm(x_NCD)
                query = layer.queries(normed, rotation).transpose(1, 2)
                self_key, self_value = (x.transpose(1, 2) for x in layer.keys_values(normed, rotation))
                attended = cross(query, self_key, self_value, key, value, is_hidden)
                x_NCD = layer.finish(x_NCD, attended.transpose(1, 2))
            crossed.append(candidates.pack(self.final_norm(x_NCD)))
        return self.head(self.head_input(torch.cat(crossed), batch))


def cross(
    query: torch.Tensor,
    self_key: torch.Tensor,
    self_value: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of candidates [N, H, C, K] to their context [N, H, S, K] and to themselves. is_hidden: padded keys."""
    query = query * query.shape[-1] ** -0.5
    context_logits = query @ key.mT
    if is_hidden is not None:
        context_logits = context_logits.masked_fill(is_hidden, -torch.inf)
    logits = torch.cat([context_logits, (query * self_key).sum(-1, keepdim=True)], dim=-1)
    weights = logits.softmax(-1)
    return weights[..., :-1] @ value + weights[..., -1:] * self_value


def block_mask(is_event_NS: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """What each position of [history ; candidates] sees: [N, 1, S + C, S + C] bool.

    An event sees the events up to itself, a candidate its history and, of the candidates, itself alone.
    """
    num_requests, num_events = is_event_NS.shape
    size = num_events + num_candidates
    sees = torch.ones(size, size, dtype=torch.bool).tril().repeat(num_requests, 1, 1)
    sees[:, num_events:, :num_events] = is_event_NS[:, None]
    sees[:, num_events:, num_events:] = torch.eye(num_candidates, dtype=torch.bool)
    return sees[:, None]


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    sees: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` of [N, S, H, K]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=sees, is_causal=is_causal).transpose(1, 2)
