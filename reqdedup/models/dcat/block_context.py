"""A request's context computed in blocks, so that it can be kept, and grow by what happened since.

    | block 0 of 256 | block 1 of 256 | ... | 64 | 64 | 16 | 16 | 16|..      from the start of the history's window
                                                                 the last one is filled up, kept as far as it goes

Every block is a pass over as many tokens as all blocks of its size, with the keys and values of the earlier ones as
they are. So what a token becomes depends in all bits on the events up to it and on how many blocks of which size its
history has: a context is the same computed at once, or extended from any earlier one. Large blocks make a fresh context
cheap, small ones behind them an extension; when these fill a larger one it is computed again as one. A pass over the
whole history (`DCAT.encode_context`) has the same values, and other bits.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch

from reqdedup.ops.attention import SOFTMAX, Attention
from reqdedup.ops.attention_in_parts import KeyValue

KVType = Literal["full", "float16", "int8"]
"""How keys and values are kept: as the model computes them; rounded; or in 8 bits, with a scale per token and head."""

KV_TYPES = get_args(KVType)
_SPARE_TOKENS = 64
"""Room of a slab is a multiple of it: a context that grows is copied once in so many events."""


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a history lie: as many of the first size as fit, then of the next, and so on.

    sizes: tokens of a block, each a multiple of the next.
    """

    sizes: tuple[int, ...] = (256, 64, 16)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or any(big % small for big, small in itertools.pairwise(self.sizes)):
            raise ValueError(f"blocks: sizes that are multiples of the next required, found {self.sizes}")

    def between(self, begin: int, length: int) -> Iterator[tuple[int, int]]:
        """(first, end) of the blocks that tokens from `begin` on lie in; the last may end behind `length`."""
        for size in self.sizes:
            end_of_size = length // size * size
            for first in range(begin // size * size, end_of_size, size):
                yield first, first + size
            begin = max(begin, end_of_size)
        if begin < length:
            first = begin // size * size
            yield first, first + size

    def reusable(self, kept: int, length: int, shared: int) -> int:
        """Tokens of a kept context that another of `length` tokens begins with. shared: events that are the same."""
        for size in self.sizes[:-1]:
            ends = [n // size * size for n in (kept, length, shared)]
            if min(ends) < max(ends):
                return min(ends)
        return shared


class Slab:
    """Keys and values of a history, with room for more. What is written once is never changed."""

    def __init__(self, values: torch.Tensor, scales: torch.Tensor | None, num_filled: int = 0) -> None:
        """values: [num_layers, 2, capacity, H, K], whatever it holds; keys first.  scales: of int8, [..., H, 1]."""
        self._values, self._scales = values, scales
        self._num_filled = num_filled
        self._lock = threading.Lock()

    @classmethod
    def empty(
        cls, num_layers: int, capacity: int, heads: tuple[int, int], *, like: torch.Tensor, kv_type: KVType
    ) -> Slab:
        """heads: (H, K).  like: a tensor of the model, for its type and device."""
        shape = (num_layers, 2, _room(capacity), *heads)
        if kv_type == "int8":
            scales = like.new_empty(*shape[:-1], 1, dtype=torch.float32)
            return cls(like.new_empty(shape, dtype=torch.int8), scales)
        return cls(like.new_empty(shape, dtype=torch.float16 if kv_type == "float16" else like.dtype), None)

    @property
    def capacity(self) -> int:
        return self._values.shape[2]

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self._values, self._scales) if x is not None)

    def first(self, num_tokens: int, layer: int, dtype: torch.dtype) -> KeyValue:
        """Keys and values of the first tokens; views if they are kept as they are."""
        values = self._values.select(0, layer).narrow(1, 0, num_tokens)
        if values.dtype != dtype:
            values = values.to(dtype)
            if self._scales is not None:
                values *= self._scales[layer, :, :num_tokens]
        key, value = values.unbind(0)
        return key, value

    def appended(self, num_tokens: int, new: Sequence[torch.Tensor]) -> Slab:
        """A slab with these keys and values [N, 2, H, K] of each layer behind the first `num_tokens`: this one, or a
        copy if it is full or holds others there."""
        end = num_tokens + len(new[0])
        with self._lock:
            is_free = self._num_filled == num_tokens and end <= self.capacity
            if is_free:
                self._num_filled = end
        slab = self if is_free else self._copy(num_tokens, end)
        for layer, key_value in enumerate(new):
            x_2NHK = key_value.transpose(0, 1)
            if slab._scales is not None:
                scale_2NH1 = x_2NHK.abs().amax(-1, keepdim=True).float().clamp(min=1e-30) / 127
                slab._scales[layer, :, num_tokens:end] = scale_2NH1
                x_2NHK = (x_2NHK / scale_2NH1).round()
            slab._values[layer, :, num_tokens:end] = x_2NHK
        return slab

    def _copy(self, num_tokens: int, num_filled: int) -> Slab:
        capacity = _room(num_filled)

        def copied(x: torch.Tensor) -> torch.Tensor:
            copy = x.new_empty(*x.shape[:2], capacity, *x.shape[3:])
            copy[:, :, :num_tokens] = x[:, :, :num_tokens]
            return copy

        scales = None if self._scales is None else copied(self._scales)
        return Slab(copied(self._values), scales, num_filled)


def _room(num_tokens: int) -> int:
    return -(-num_tokens // _SPARE_TOKENS) * _SPARE_TOKENS


@dataclass(frozen=True)
class BlockContext:
    """Keys and values of one history.

    slab: holds them.  num_tokens: how many of its tokens are this context's.  blocks: how they were computed; None: in
    one pass for each time that the context grew.
    """

    slab: Slab
    num_tokens: int
    blocks: Blocks | None

    @property
    def num_bytes(self) -> int:
        """Bytes that the context keeps in memory, free ones included."""
        return self.slab.num_bytes

    def reusable(self, length: int, shared: int) -> int:
        """Tokens that a context of `length` tokens takes over if the first `shared` events are the same."""
        shared = min(shared, self.num_tokens, length)
        return shared if self.blocks is None else self.blocks.reusable(self.num_tokens, length, shared)


class RequestContexts(Protocol):
    """What the histories of a batch's R requests became, as its candidates read it: a `Context` or `BlockContexts`."""

    @property
    def num_requests(self) -> int: ...

    @property
    def request_lengths(self) -> torch.Tensor:
        """Events that each request sees, [R]."""
        ...

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
        """What each candidate reads from its request's context and from itself, [B, H, K].

        attention: of the layer.  options: of `crossing_attention`, for packed contexts; others have no use for them.
        """
        ...


@dataclass(frozen=True)
class BlockContexts:
    """Contexts of the R requests of a batch, where they lie: nothing is copied.

    num_rows: of each request, if those of the batch behind them are padding, which then reads nothing.
    """

    contexts: tuple[BlockContext, ...]
    num_rows: tuple[int, ...] | None = None

    @property
    def num_requests(self) -> int:
        return len(self.contexts)

    @property
    def request_lengths(self) -> torch.Tensor:
        return torch.tensor([context.num_tokens for context in self.contexts], dtype=torch.int64)

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
        kept = [context.slab.first(context.num_tokens, layer, query_BHK.dtype) for context in self.contexts]
        rows = query_BHK, self_key_BHK, self_value_BHK
        return attention.in_parts(*rows, kept, row_offsets_R1, num_rows=self.num_rows)
