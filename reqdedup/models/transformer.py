"""The pre-norm transformer over histories: layers, positions, and the pass whose K/V the crossing reads.

    LAYERS      softmax (`SoftmaxLayer`) or hstu (`HSTULayer`); a new one is a class with the parts of `Layer`, and a
                line there

No BatchNorm in here: a context that depends on the other requests of a batch could not be kept or shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from reqdedup.models.config import ModelConfig
from reqdedup.ops.attention import SOFTMAX, Attention
from reqdedup.ops.pointwise_attention import NUM_BUCKETS, Pointwise
from reqdedup.ops.prefixes import Prefixes
from reqdedup.ops.ragged import Padding

Rotation = tuple[torch.Tensor, torch.Tensor]


class Layer(nn.Module):
    """One pre-norm layer, in the parts from which the context pass, the crossing and the naive twin are built."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)

    @property
    def attention(self) -> Attention:
        """What is done with queries, keys and values."""
        raise NotImplementedError  # each kind of layer has its own

    def keys_values(self, normed: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, D] -> [N, H, K] twice."""
        key, value = self.key_value(normed).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return rotate(key, rotation), value

    def queries(self, normed: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        return rotate(self.query(normed).unflatten(-1, (self.num_heads, -1)), rotation)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output from its input [N, D] and what attention read [N, H, K]."""
        raise NotImplementedError  # each kind of layer has its own


class SoftmaxLayer(Layer):
    """x = c + a Wo,  c' = x + FFN(LN(x)),  where a is the attention of q = LN(c) Wq to k, v = LN(.) Wk, LN(.) Wv."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.ffn_norm = nn.LayerNorm(config.width)
        self.ffn_in = nn.Linear(config.width, config.ffn_width)
        self.ffn_out = nn.Linear(config.ffn_width, config.width)

    @property
    def attention(self) -> Attention:
        return SOFTMAX

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + dropped(self.output(attended.flatten(-2)), self)
        return x + dropped(self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x)))), self)


class HSTULayer(Layer):
    """c' = c + (LN(a) * u) Wo,  where u, q, k, v = silu(LN(c) Wu), ... and a_i = sum_j silu(q_i k_j + bias) v_j.

    The gate u stands for the FFN, which it has none of.
    Source: Zhai et al. 2024 (arXiv 2402.17152), formulas 1 to 3; see `reqdedup.ops.pointwise_attention`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.width, config.width)
        self.attended_norm = nn.LayerNorm(config.width)
        self.distance_bias = nn.Parameter(torch.zeros(config.num_heads, NUM_BUCKETS))

    @property
    def attention(self) -> Attention:
        return Pointwise(self.distance_bias)

    def keys_values(self, normed: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = F.silu(self.key_value(normed)).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)
        return rotate(key, rotation), value

    def queries(self, normed: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
        return rotate(F.silu(self.query(normed)).unflatten(-1, (self.num_heads, -1)), rotation)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        gate = F.silu(self.gate(self.attention_norm(x)))
        return x + dropped(self.output(self.attended_norm(attended.flatten(-2)) * gate), self)


LAYERS: dict[str, type[Layer]] = {"softmax": SoftmaxLayer, "hstu": HSTULayer}


def dropped(x: torch.Tensor, of: Layer | HistoryTransformer) -> torch.Tensor:
    """x with the module's dropout, if it is in training."""
    return F.dropout(x, of.dropout, of.training) if of.dropout else x


def rotate(x: torch.Tensor, rotation: Rotation | None) -> torch.Tensor:
    """Each pair (x_i, x_{i + K/2}) turned by its position's angle; computed in float32 at least."""
    if rotation is None:
        return x
    cos, sin = rotation
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Positions(nn.Module):
    """Where a token stands in its history, and a candidate, which comes right after it.

    Counted from the start an event stands at 0, 1, ... and a candidate at L_r; from the end at L_r, L_r - 1, ... and 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_history = config.max_history
        self.head_width = config.head_width
        self.from_end = config.positions_from == "end"
        self.table = nn.Embedding(config.max_history + 1, config.width) if config.positions == "learned" else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=config.width**-0.5)

    def of_events(self, offsets_G1: torch.Tensor, *, num_tokens: int) -> torch.Tensor:
        """Position of each event of packed histories: [T] int64."""
        origin_G = offsets_G1[1:] if self.from_end else offsets_G1[:-1]
        origin_T = torch.repeat_interleave(origin_G, offsets_G1.diff(), output_size=num_tokens)
        token_T = torch.arange(num_tokens, device=offsets_G1.device)
        return origin_T - token_T if self.from_end else token_T - origin_T

    def of_candidates(self, length: torch.Tensor) -> torch.Tensor:
        """Position of the candidates of requests of this length, any shape."""
        return torch.zeros_like(length) if self.from_end else length

    def add(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """x plus the learned position, [N, D]; x itself under rope."""
        return x if self.table is None else x + self.table(position)

    def rotation(self, position: torch.Tensor, dtype: torch.dtype) -> Rotation | None:
        """(cos, sin) of the angles, [N, 1, K / 2] each, in float32 at least; None with learned positions.

        Source: RoFormer (arXiv 2104.09864), section 3.2.2, base 10,000.
        """
        if self.table is not None:
            return None
        wide = torch.promote_types(dtype, torch.float32)
        exponent = torch.arange(0, self.head_width, 2, device=position.device, dtype=wide) / self.head_width
        angle = position.to(wide)[..., None] * 10_000.0**-exponent
        return angle.cos()[..., None, :], angle.sin()[..., None, :]


class HistoryTransformer(nn.Module):
    """Layers over packed histories; iterating gives the layers.

    recomputes: in training keep of each layer what it gives, keys, values and output, and compute the rest again for
        the gradient: memory of one layer's insides instead of all, for a third more work.
    """

    recomputes = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.max_history, self.dropout = config.max_history, config.dropout
        self.is_causal = config.history_attention == "causal"
        self.positions = Positions(config)
        self.layers = nn.ModuleList(LAYERS[config.layer](config) for _ in range(config.num_layers))

    def __iter__(self) -> Iterator[Layer]:
        return cast(Iterator[Layer], iter(self.layers))

    def forward(
        self, x_TD: torch.Tensor, history_offsets_G1: torch.Tensor, *, keys_values_only: bool = False
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The last layer's output [T, D] and every layer's keys and values, [T, H, K] each.

        keys_values_only: leave out what nobody reads then: the last layer's attention and FFN (the output returned is
        that layer's input).
        """
        padding = Padding.of(history_offsets_G1)
        self._check_length(padding.longest)
        position_T = self.positions.of_events(history_offsets_G1, num_tokens=len(x_TD))
        x_TD = dropped(self.positions.add(x_TD, position_T), self)
        rotation = self.positions.rotation(position_T, x_TD.dtype)
        keys_values = []
        for number, layer in enumerate(self, start=1):
            if keys_values_only and number == len(self.layers):
                keys_values.append(layer.keys_values(layer.attention_norm(x_TD), rotation))
                break
            one = partial(self._layer, layer, rotation=rotation, offsets_G1=history_offsets_G1, padding=padding)
            if self.recomputes and self.training and torch.is_grad_enabled():
                x_TD, key, value = checkpoint(one, x_TD, use_reentrant=False)
            else:
                x_TD, key, value = one(x_TD)
            keys_values.append((key, value))
        return x_TD, keys_values

    def last_events(
        self, x_TD: torch.Tensor, history_offsets_G1: torch.Tensor, prefixes: Prefixes | None = None
    ) -> torch.Tensor:
        """The last layer's output at the last event that each request sees: [R, D], anything where it sees none; of at
        least one event.

        As `forward` gives it there, but that layer's attention and FFN are computed at these events alone: as many
        queries as requests, each crossing the events before its own.
        """
        x_TD, keys_values = self.forward(x_TD, history_offsets_G1, keys_values_only=True)
        layer, (key_THK, value_THK) = cast(Layer, self.layers[-1]), keys_values[-1]
        if prefixes is None:
            request_offsets_G1 = torch.arange(len(history_offsets_G1), device=history_offsets_G1.device)
            prefixes = Prefixes(request_offsets_G1, history_offsets_G1.diff())
        at_R = (prefixes.begin(history_offsets_G1) + prefixes.prefix_length_R - 1).clamp(min=0)
        position_R = self.positions.of_events(history_offsets_G1, num_tokens=len(x_TD))[at_R]
        x_RD = x_TD[at_R]
        query_RHK = layer.queries(layer.attention_norm(x_RD), self.positions.rotation(position_R, x_RD.dtype))
        attended_RHK = layer.attention.crossing(
            query_RHK,
            key_THK[at_R],
            value_THK[at_R],
            key_THK,
            value_THK,
            history_offsets_G1,
            torch.arange(len(at_R) + 1, device=at_R.device),
            prefixes=Prefixes(prefixes.request_offsets_G1, (prefixes.prefix_length_R - 1).clamp(min=0)),
        )
        return layer.finish(x_RD, attended_RHK)

    def _layer(
        self,
        layer: Layer,
        x_TD: torch.Tensor,
        *,
        rotation: Rotation | None,
        offsets_G1: torch.Tensor,
        padding: Padding,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One layer's output [T, D], keys and values [T, H, K]."""
        normed = layer.attention_norm(x_TD)
        key, value = layer.keys_values(normed, rotation)
        query = layer.queries(normed, rotation)
        attended = layer.attention.history(query, key, value, offsets_G1, padding=padding, is_causal=self.is_causal)
        return layer.finish(x_TD, attended), key, value

    def check_grows(self, length: int) -> None:
        """Raises ValueError for a transformer whose keys and values change when a history grows, and for one that
        cannot read so many events."""
        if not self.is_causal or self.positions.from_end:
            raise ValueError(
                "append: causal attention and positions counted from the start required, else keys and values of a "
                "history change when it grows; found others in the configuration"
            )
        self._check_length(length)

    def _check_length(self, longest: int) -> None:
        if self.positions.table is not None and longest > self.max_history:
            raise ValueError(
                f"learned positions: histories of at most max_history = {self.max_history} events required, found "
                f"{longest}; cut them in the loader or configure more, or rope"
            )
