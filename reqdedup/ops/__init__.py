"""Tensor operations, each with its plain definition beside its fast form."""

from reqdedup.ops.causal_attention import causal_attention
from reqdedup.ops.crossing_attention import crossing_attention
from reqdedup.ops.expand import expand

__all__ = ["causal_attention", "crossing_attention", "expand"]
