"""A request's context computed in blocks, so that it can be kept, and grow by what happened since.

    slab   | block 0 | block 1 | ... | free |     whole blocks: every later context of this timeline shares them
    tail   | fewer events than a block |          the context's own

Blocks are counted from the start of the history's window. Each is one pass over its events with the keys and values of
all earlier blocks as they are, and the tail is always computed from its block's start. So a context has the same bits
whether it was computed at once, or extended from any earlier one: kept are whole blocks alone. A pass over the whole
history (`DCAT.encode_context`) has the same values, and other bits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from reqdedup.ops.attention_in_parts import KeyValue, crossing_attention_in_parts

BLOCK_TOKENS = 64
"""A tail of 63 events costs 2 ms at width 128 and 2 layers; larger blocks make it dearer, smaller ones a fresh
context."""


class Slab:
    """Keys and values of whole blocks, with room for more. What is written once is never changed."""

    def __init__(self, values: torch.Tensor) -> None:
        """values: [num_layers, 2, capacity, H, K], whatever it holds; keys first."""
        self._values = values
        self._num_filled = 0
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        return self._values.shape[2]

    @property
    def num_bytes(self) -> int:
        return self._values.numel() * self._values.element_size()

    def first(self, num_tokens: int, layer: int) -> KeyValue:
        """Keys and values of the first tokens, as views."""
        return self._values[layer, 0, :num_tokens], self._values[layer, 1, :num_tokens]

    def appended(self, num_tokens: int, block: Sequence[KeyValue]) -> Slab:
        """A slab with the block behind the first `num_tokens`: this one, or a copy if it is full or holds another block
        there."""
        end = num_tokens + len(block[0][0])
        with self._lock:
            is_free = self._num_filled == num_tokens and end <= self.capacity
            if is_free:
                self._num_filled = end
        slab = self if is_free else self._copy(num_tokens, end)
        for layer, (key, value) in enumerate(block):
            slab._values[layer, 0, num_tokens:end] = key
            slab._values[layer, 1, num_tokens:end] = value
        return slab

    def _copy(self, num_tokens: int, num_filled: int) -> Slab:
        capacity = max(self.capacity, num_filled + num_filled // 2)
        num_layers, pair, _, *heads = self._values.shape
        slab = Slab(self._values.new_empty(num_layers, pair, capacity, *heads))
        slab._values[:, :, :num_tokens] = self._values[:, :, :num_tokens]
        slab._num_filled = num_filled
        return slab


@dataclass(frozen=True)
class BlockContext:
    """Keys and values of one history.

    slab: holds the whole blocks.  num_whole: tokens of these.  tail: keys and values of the rest, for each layer.
    block_tokens: tokens of a block.
    """

    slab: Slab
    num_whole: int
    tail: tuple[KeyValue, ...]
    block_tokens: int

    @property
    def num_tokens(self) -> int:
        return self.num_whole + len(self.tail[0][0])

    @property
    def num_bytes(self) -> int:
        """Bytes that the context keeps in memory, free ones and those that it shares included."""
        return self.slab.num_bytes + sum(x.numel() * x.element_size() for layer in self.tail for x in layer)

    def parts(self, layer: int) -> tuple[KeyValue, KeyValue]:
        return self.slab.first(self.num_whole, layer), self.tail[layer]


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
        **options: Any,
    ) -> torch.Tensor:
        """What each candidate reads from its request's context and from itself, [B, H, K].

        options: of `crossing_attention`, for packed contexts; others have no use for them.
        """
        ...


@dataclass(frozen=True)
class BlockContexts:
    """Contexts of the R requests of a batch, where they lie: nothing is copied."""

    contexts: tuple[BlockContext, ...]

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
        **options: Any,
    ) -> torch.Tensor:
        parts = [context.parts(layer) for context in self.contexts]
        return crossing_attention_in_parts(query_BHK, self_key_BHK, self_value_BHK, parts, row_offsets_R1)
