"""Floating-point operations of the models, deduplicated and duplicated: what a ratio of times can be expected to be.

Counted are matrix products (2 per multiply-add), the backward pass as twice the forward. Left out, in both: norms,
activations, embedding look-ups, the optimiser. A time ratio above the prediction has other causes: padding of ragged
histories, memory traffic, caches.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from reqdedup.models import DCATConfig, TwoTowerConfig
from reqdedup.models.config import ModelConfig


def dcat_step(config: DCATConfig, lengths: Sequence[int], rows: Sequence[int]) -> tuple[float, float]:
    """(ours, duplicated) of one forward pass: histories of these lengths, so many rows each.

    The duplicated model pads every history to the longest.
    """
    ours = duplicated = 0.0
    longest = max(lengths, default=0)
    for length, count in zip(lengths, rows, strict=True):
        ours += dcat_context(config, length) + count * crossing(config, length)
        duplicated += count * (dcat_context(config, longest + 1) + last_position(config, longest + 1))
    head = sum(rows) * _mlp([config.width, *config.hidden_widths, len(config.labels)])
    return ours + head, duplicated + head


def dcat_context(config: ModelConfig, length: int) -> float:
    """One history: all layers but the last in full, of the last one keys and values."""
    return (config.num_layers - 1) * _full_layer(config, length) + length * 4 * config.width**2


def crossing(config: ModelConfig, length: int) -> float:
    """One candidate through all layers, over a context of this length and itself."""
    return config.num_layers * (_token(config) + 4 * config.width * (length + 1))


def last_position(config: ModelConfig, length: int) -> float:
    """The last layer at one position: query, attention, output and FFN (its keys and values are the context's)."""
    return _token(config) - 4 * config.width**2 + 4 * config.width * length


def two_tower_step(config: TwoTowerConfig, lengths: Sequence[int], rows: Sequence[int]) -> tuple[float, float]:
    """(ours, duplicated) of one forward pass with the loss, R x B against B x B."""
    num_rows, longest, width = sum(rows), max(lengths, default=0), config.output_width
    mlp = _mlp([config.width, *config.hidden_widths, width])
    ours = sum(config.num_layers * _full_layer(config, length) for length in lengths)
    ours += len(lengths) * mlp + num_rows * mlp + 2 * len(lengths) * num_rows * width
    duplicated = num_rows * (config.num_layers * _full_layer(config, longest) + 2 * mlp) + 2 * num_rows**2 * width
    return ours, duplicated


def _token(config: ModelConfig) -> float:
    return 8 * config.width**2 + 4 * config.width * config.ffn_width


def _full_layer(config: ModelConfig, length: int) -> float:
    return length * (_token(config) + 2 * config.width * (length + 1))  # causal: half of the scores


def _mlp(widths: Sequence[int]) -> float:
    return sum(2 * a * b for a, b in itertools.pairwise(widths))
