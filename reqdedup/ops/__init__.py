"""Tensor operations, each with its plain definition beside its fast form."""

from reqdedup.ops.expand import expand

__all__ = ["expand"]
