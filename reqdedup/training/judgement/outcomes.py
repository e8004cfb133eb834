"""What a model, or a rule without one, said of held-out rows: all that figures are made of, in plain arrays.

Every rank evaluates its share; `Outcomes.concatenate` puts the shares together. Baselines are asked for the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch

from reqdedup.batch import RequestBatch
from reqdedup.schema import REQUEST_ID, REQUEST_TS


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """B held-out rows.

    user_id_B, request_id_B, item_id_B, request_ts_B: int64.  history_length_B: events that the model saw.
    slice_B: column of the request -> its value for each row, int64.
    """

    user_id_B: np.ndarray
    request_id_B: np.ndarray
    item_id_B: np.ndarray
    request_ts_B: np.ndarray
    history_length_B: np.ndarray
    slice_B: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_id_B)

    @classmethod
    def concatenate(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """The rows of all parts, of one class, at least one; what is no array of rows is the first one's."""
        joined: dict[str, Any] = {}
        for f in fields(parts[0]):
            values = [getattr(part, f.name) for part in parts]
            if isinstance(values[0], dict):
                joined[f.name] = {name: np.concatenate([value[name] for value in values]) for name in values[0]}
            elif f.name.endswith(("_B", "_BL", "_BK")):
                joined[f.name] = np.concatenate(values)
        return replace(parts[0], **joined)

    def in_order_of(self, other: Outcomes) -> Self:
        """The same rows as they lie in `other`. Raises ValueError where those are other rows."""
        found, wanted = self._keys(), other._keys()
        if all(map(np.array_equal, found, wanted)):
            return self
        here, there = np.lexsort(found), np.lexsort(wanted)
        if not all(np.array_equal(x[here], y[there]) for x, y in zip(found, wanted)):
            found_sizes = f"{len(other)} and {len(self)}"
            raise ValueError(f"the same rows required of both, found {found_sizes}, not all of them equal")
        order_B = np.empty_like(here)
        order_B[there] = here
        placed: dict[str, Any] = {"slice_B": {name: x_B[order_B] for name, x_B in self.slice_B.items()}}
        for f in fields(self):
            if f.name.endswith(("_B", "_BL", "_BK")) and f.name not in placed:
                placed[f.name] = getattr(self, f.name)[order_B]
        return replace(self, **placed)

    def _keys(self) -> tuple[np.ndarray, ...]:
        return self.item_id_B, self.request_ts_B, self.request_id_B, self.user_id_B


@dataclass(frozen=True, kw_only=True)
class Scored(Outcomes):
    """Rows of a ranking model.

    labels: names.  logit_BL, label_BL: float64, [B, labels]; NaN where a label is not known.
    """

    labels: tuple[str, ...]
    logit_BL: np.ndarray
    label_BL: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Ranked(Outcomes):
    """Positive rows of a retrieval model, each ranked alone among the other items of a catalogue.

    rank_B: 1 is best, ties count half.  unseen_rank_B: the same with the items of the row's history left out of the
        catalogue; NaN if the row's own item is one of them.
    num_items: of the catalogue, the row's own item among them.  top_BK: the catalogue's best items for the row's
        request, by their place in it, nothing left out.
    own_count_B: positives of training users that have the row's item.  count_C: those of each catalogue item.
    """

    rank_B: np.ndarray
    unseen_rank_B: np.ndarray
    num_items: int
    top_BK: np.ndarray
    own_count_B: np.ndarray
    count_C: np.ndarray


def rows_of(batches: Sequence[RequestBatch], slice_by: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of `Outcomes` of the rows of some batches, at least one."""
    facts: dict[str, list[np.ndarray]] = {}
    slices: dict[str, list[np.ndarray]] = {name: [] for name in slice_by}
    for batch in batches:
        of_request = {
            "user_id_B": batch.user_id_R,
            "request_id_B": batch.request[REQUEST_ID],
            "request_ts_B": batch.request[REQUEST_TS],
            "history_length_B": batch.history_offsets_R1.diff(),
        }
        for name, x_R in of_request.items():
            facts.setdefault(name, []).append(x_R[batch.request_of_row_B].cpu().numpy())
        facts.setdefault("item_id_B", []).append(batch.item_id_B.cpu().numpy())
        for name in slice_by:
            slices[name].append(batch.request[name][batch.request_of_row_B].cpu().numpy())
    joined = {name: np.concatenate(values) for name, values in facts.items()}
    return {**joined, "slice_B": {name: np.concatenate(values) for name, values in slices.items()}}


def mature_labels(
    batch: RequestBatch, labels: Sequence[str], *, maturity_s: Mapping[str, float], newest_us: int
) -> torch.Tensor:
    """[B, labels], NaN if it is missing or may still become another: the attribution window is not over.

    maturity_s: by label, its window [s].  newest_us: time of the newest request of the log, from which it counts back.
    """
    label_BL = torch.stack([batch.row[label] for label in labels], dim=1)
    if not maturity_s:
        return label_BL
    window_us_L = [1_000_000 * maturity_s.get(label, 0.0) for label in labels]
    age_us_B = (newest_us - batch.request[REQUEST_TS])[batch.request_of_row_B]
    is_young_BL = age_us_B[:, None] < torch.tensor(window_us_L, device=label_BL.device)
    return label_BL.masked_fill(is_young_BL, torch.nan)
