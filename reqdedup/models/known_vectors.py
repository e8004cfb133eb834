"""Vectors of items that something else made: another model of the same log, or pictures and texts of the items.

    item 4 -> [.1 .3], 9 -> [.2 -.4], 17 -> ...      as they were given, never learned; items that are not there: zeros
    token or candidate += W vector                    W is learned

They are part of the model's weights, so that training and serving read the same ones, and are looked up for events and
candidates alike, once per request of a history's events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from reqdedup.ops.places import places_of


class KnownVectors(nn.Module):
    """[N, D] of ids. item_id_V: [V] int64, rising.  vector_VW: [V, width]."""

    item_id_V: torch.Tensor
    vector_VW: torch.Tensor

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.register_buffer("item_id_V", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("vector_VW", torch.zeros(0, width))
        self.project = nn.Linear(width, out_width, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.project(self.of(ids, self.vector_VW.to(self.project.weight.dtype)))

    def of(self, ids: torch.Tensor, vector_VW: torch.Tensor) -> torch.Tensor:
        """Rows of `vector_VW`, which stand as the items do, of these ids; zeros of items that are not there."""
        if not len(self.item_id_V):
            return vector_VW.new_zeros(*ids.shape, vector_VW.shape[1])
        place = places_of(ids.long(), self.item_id_V)
        return torch.where((place >= 0)[..., None], vector_VW[place], 0.0)

    def take(self, item_id_V: np.ndarray, vector_VW: np.ndarray) -> None:
        """These vectors from now on. item_id_V: rising. Raises ValueError for another width."""
        if vector_VW.shape != (len(item_id_V), self.project.in_features):
            raise ValueError(
                f"item_vector_width = {vector_VW.shape[1]} of the vectors required, found {self.project.in_features}"
            )
        device = self.project.weight.device
        self.item_id_V = torch.from_numpy(np.ascontiguousarray(item_id_V)).to(device)
        self.vector_VW = torch.from_numpy(np.array(vector_VW, np.float32)).to(device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As many as there are in the weights."""
        for name in ("item_id_V", "vector_VW"):
            if (given := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(given, device=self.project.weight.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def fill_known_vectors(model: nn.Module, bundle: Path | str) -> None:
    """The item vectors of a bundle of the same log into the model.

    Raises ValueError for a bundle without vectors, and for a model that has no place for them.
    """
    from reqdedup.models.bundle import Bundle

    found = [module for module in model.modules() if isinstance(module, KnownVectors)]
    given = Bundle.load(bundle)
    if given.item_vectors is None or not found:
        raise ValueError(
            f"{bundle}: a bundle with vectors of its items (of a retrieval model), and item_vector_width of the model "
            f"that takes them, required, found {'no vectors' if given.item_vectors is None else 'a width of 0'}"
        )
    for module in found:
        module.take(given.items.item_id_V, given.item_vectors)
