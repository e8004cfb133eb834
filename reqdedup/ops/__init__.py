"""Tensor operations, each with its plain definition beside its fast form."""

from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.expand import expand
from reqdedup.ops.history_attention import history_attention
from reqdedup.ops.prefixes import Prefixes

__all__ = ["Prefixes", "crossing_attention", "expand", "history_attention"]
