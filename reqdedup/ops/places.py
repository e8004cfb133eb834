"""Where values stand among distinct ones that rise, in tensors: `arrays.places.places_in` on any device."""

from __future__ import annotations

import torch


def places_of(value: torch.Tensor, rising_V: torch.Tensor) -> torch.Tensor:
    """int64 of the shape of `value`: where each stands, -1 if it does not. rising_V: [V] distinct."""
    if not len(rising_V):
        return torch.full_like(value, -1, dtype=torch.int64)
    place = torch.searchsorted(rising_V, value).clamp(max=len(rising_V) - 1)
    return torch.where(rising_V[place] == value, place, -1)
