"""What a layer does with queries, keys and values, in the four places where a history is read.

    history     every token of packed histories: the context pass
    crossing    candidates, packed contexts
    append      new tokens behind past ones: a kept context grows, without gradients
    in_parts    candidates, contexts that lie apart: serving, without gradients

`Softmax` is the transformer's. `Pointwise` (`reqdedup.ops.pointwise_attention`) is HSTU's. A layer names one; context
pass, crossing, kept contexts and serving ask it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from reqdedup.ops.attention_in_parts import KeyValue, append_attention, crossing_attention_in_parts
from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.crossing_attention_flash import PADDED_CONTEXT_AT_MOST
from reqdedup.ops.history_attention import history_attention
from reqdedup.ops.prefixes import Prefixes
from reqdedup.ops.ragged import Padding


class Attention(Protocol):
    """Shapes as in `history_attention`, `crossing_attention`, `append_attention` and `crossing_attention_in_parts`."""

    def history(
        self,
        query_THK: torch.Tensor,
        key_THK: torch.Tensor,
        value_THK: torch.Tensor,
        history_offsets_G1: torch.Tensor,
        *,
        padding: Padding,
        is_causal: bool,
    ) -> torch.Tensor: ...

    def crossing(
        self,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        key_THK: torch.Tensor,
        value_THK: torch.Tensor,
        context_offsets_G1: torch.Tensor,
        row_offsets_R1: torch.Tensor,
        *,
        prefixes: Prefixes | None = None,
        backend: str = "auto",
        padded_context_at_most: int = PADDED_CONTEXT_AT_MOST,
    ) -> torch.Tensor: ...

    def append(
        self,
        query_NHK: torch.Tensor,
        key_NHK: torch.Tensor,
        value_NHK: torch.Tensor,
        past_key_PHK: torch.Tensor,
        past_value_PHK: torch.Tensor,
    ) -> torch.Tensor: ...

    def in_parts(
        self,
        query_BHK: torch.Tensor,
        self_key_BHK: torch.Tensor,
        self_value_BHK: torch.Tensor,
        contexts: Sequence[KeyValue],
        row_offsets_R1: torch.Tensor,
        *,
        num_rows: Sequence[int] | None,
    ) -> torch.Tensor: ...


class Softmax:
    """softmax(q K^T / sqrt(K)) V."""

    history = staticmethod(history_attention)
    crossing = staticmethod(crossing_attention)
    append = staticmethod(append_attention)
    in_parts = staticmethod(crossing_attention_in_parts)


SOFTMAX: Attention = Softmax()
