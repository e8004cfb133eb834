"""The core of a ranking server as a good engineer writes it without this library, in plain torch.

Each user's keys and values are kept in a buffer of the longest history. New events are appended in one pass, candidates
cross with them by matrix products and their own logit, and a batch computes its linear layers together. It trusts
that a user's history only grows while the window begins at the same event, checks nothing, and has no limit on memory.
Parameters and their names are those of `reqdedup.models.DCAT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from benchmarks.by_hand import cross
from reqdedup.models import DCAT
from reqdedup.serving.requests import RankRequest


@dataclass
class Kept:
    """keys_values: [num_layers, 2, H, S, K].  start: first event.  length: events so far."""

    keys_values: torch.Tensor
    start: int
    length: int = 0

    def first(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys_values[layer, 0, :, : self.length], self.keys_values[layer, 1, :, : self.length]


class ServerCore:
    """Ranks requests that bring their history."""

    def __init__(self, model: DCAT) -> None:
        self.model, self.config = model, model.config
        self.users: dict[int, Kept] = {}

    @torch.inference_mode()
    def step(self, requests: Sequence[RankRequest]) -> list[torch.Tensor]:
        """Logits [M, num_labels] of each request."""
        kept = [self._context(request) for request in requests]
        item_ids = [torch.from_numpy(request.candidates["item_id"]) for request in requests]
        counts = [len(item_id) for item_id in item_ids]
        names, model = self.config.item_categories, self.model
        row = {name: torch.cat([torch.from_numpy(x.candidates[name]) for x in requests]) for name in names}
        x_BD = model.embedding.candidates(torch.cat(item_ids), row) + model.candidate_marker
        length_B = torch.tensor([one.length for one in kept]).repeat_interleave(torch.tensor(counts))
        x_BD = model.transformer.positions.add(x_BD, length_B)
        for number, layer in enumerate(model.transformer):
            normed = layer.attention_norm(x_BD)
            own = (layer.queries(normed, None), *layer.keys_values(normed, None))
            rows = [x.transpose(0, 1).split(counts, dim=1) for x in own]
            contexts = [one.first(number) for one in kept]
            attended = [
                cross(query, self_key, self_value, key, value, None)
                for query, self_key, self_value, (key, value) in zip(*rows, contexts, strict=True)
            ]
            x_BD = layer.finish(x_BD, torch.cat(attended, dim=1).transpose(0, 1))
        hidden_B = model.head_in(model.final_norm(x_BD))
        if model.head_in_request is not None:
            share_R = model.head_in_request(model.features(self._features(requests), x_BD.dtype))
            hidden_B = hidden_B + share_R.repeat_interleave(torch.tensor(counts), dim=0)
        return list(model.head(hidden_B).split(counts))

    def _features(self, requests: Sequence[RankRequest]) -> dict[str, torch.Tensor]:
        vectors = {name for name, _ in self.config.request_vectors}
        names = (*self.config.request_categories, *vectors, *self.config.request_numbers)
        return {name: torch.stack([torch.as_tensor(request.request[name]) for request in requests]) for name in names}

    def _context(self, request: RankRequest) -> Kept:
        """As long as the request sees; another one of the user in the same step may see more."""
        window = request.history
        assert window is not None
        kept = self.users.get(request.user_id)
        if kept is None or kept.start != window.start:
            config = self.config
            shape = (config.num_layers, 2, config.num_heads, config.max_history, config.head_width)
            kept = self.users[request.user_id] = Kept(torch.empty(shape), window.start)
        begin, end = kept.length, window.end - window.start
        if begin >= end:  # of several requests at once, an earlier moment may come later
            return replace(kept, length=end)
        model, last = self.model, self.config.num_layers - 1
        x_ND = model.embedding.events({name: torch.from_numpy(x[begin:end]) for name, x in window.columns.items()})
        x_ND = model.transformer.positions.add(x_ND, torch.arange(begin, end))
        sees = None if begin == 0 else torch.ones(end - begin, end, dtype=torch.bool).tril(begin)
        for number, layer in enumerate(model.transformer):
            normed = layer.attention_norm(x_ND)
            key, value = (x.transpose(0, 1) for x in layer.keys_values(normed, None))
            kept.keys_values[number, 0, :, begin:end], kept.keys_values[number, 1, :, begin:end] = key, value
            if number < last:
                query = layer.queries(normed, None).transpose(0, 1)[None]
                key, value = kept.keys_values[number, :, :, :end]
                attended = F.scaled_dot_product_attention(
                    query, key[None], value[None], attn_mask=sees, is_causal=sees is None
                )
                x_ND = layer.finish(x_ND, attended[0].transpose(0, 1))
        kept.length = end
        return replace(kept)
