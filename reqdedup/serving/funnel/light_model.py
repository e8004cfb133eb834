"""A trained early ranker as the funnel's light ranking: all retrieved items by a user vector and vectors that are kept.

    at the start   vectors of all items that the index has
    per request    history -> state, kept or computed -> user vector -> head over the retrieved items' vectors

Of an item only the head is computed per request. The history is the one that retrieval and ranking read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from reqdedup.models.bundle import Bundle
from reqdedup.models.early import EarlyRanker
from reqdedup.models.registry import name_of
from reqdedup.serving.inputs import InputReader
from reqdedup.serving.requests import OfUser
from reqdedup.serving.retrieval.item_vectors import ItemVectors
from reqdedup.serving.retrieval.retriever import Retriever

_TOGETHER = 4096
"""Items whose vectors are computed together."""


class LightModel:
    """Logits of items that an index has. Threads may share it."""

    def __init__(self, bundle: Bundle, items: ItemVectors, **options: Any) -> None:
        """items: of the index; columns that they lack are the bundle's.  options: of `Retriever`, store for one.

        Raises ValueError for the bundle of another kind of model, and for an item without a value that it needs.
        """
        if (kind := name_of(bundle.config)) != "early_ranker":
            raise ValueError(f"{bundle.folder}: an early ranker required for light ranking, found {kind}")
        self._model = cast(EarlyRanker, bundle.model)
        self.labels, self.fingerprint = bundle.signature.outputs, bundle.fingerprint
        reader = InputReader(bundle.transforms, items=bundle.items, max_candidates=len(items))
        item_id_V, row = reader.rows({"item_id": items.item_id, **items.columns}, [])
        parts = [torch.zeros(0, self._model.config.output_width)]
        with torch.inference_mode():
            for begin in range(0, len(items), _TOGETHER):
                part = slice(begin, begin + _TOGETHER)
                parts.append(self._model.encode_items(item_id_V[part], {name: x_V[part] for name, x_V in row.items()}))
        self._item_VD = torch.cat(parts)
        vectors = ItemVectors.of(items.item_id, self._item_VD.numpy())
        self._users = Retriever(
            self._model.towers, bundle.transforms, vectors, fingerprint=bundle.fingerprint, **options
        )
        self.users = self._users.users

    @torch.inference_mode()
    def logits(self, request: OfUser, row_N: np.ndarray) -> tuple[Mapping[str, np.ndarray], list[str]]:
        """[N] float32 for each label, of the items of these rows of the index; what had to be done without."""
        user_D, _, _, marks = self._users.user(request)
        logit_NL = self._model.score_of_one(torch.from_numpy(user_D), self._item_VD[torch.from_numpy(row_N)])
        return dict(zip(self.labels, logit_NL.T.contiguous().numpy(), strict=True)), marks
