"""How likely each item is as an in-batch negative: log q for the logQ correction.

`ItemFrequency`: exact counts of the training rows, the default, since a table can be counted. `StreamingFrequency`: the
estimator of Yi et al. 2019 for data that only passes by, with one change. The published one remembers how many *steps*
lie between two steps that contain an item, so it estimates the chance that a batch contains the item at all and
saturates for hot items (0.7 to 3 nats low), most of all on request-sorted data, where an item repeats within a batch.
Here the gap is counted in rows and the rows that carry the item in its batch are counted too; both are averaged with
the same weights and their ratio is the frequency. By renewal-reward that ratio is consistent however the occurrences
cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from reqdedup.ops.places import places_of

DEFAULT_SMOOTHING = 1.0


class ItemFrequency:
    """Log-probabilities of items from exact counts; every lookup is finite.

    item_id_V: [V] int64, rising.  log_p_V: [V] float32.  unseen_log_p: what an item without a count gets.
    """

    def __init__(self, item_id_V: torch.Tensor, log_p_V: torch.Tensor, unseen_log_p: float) -> None:
        self.item_id_V = item_id_V
        self.log_p_V = log_p_V
        self.unseen_log_p = unseen_log_p

    @classmethod
    def from_counts(
        cls, item_ids: np.ndarray, counts: np.ndarray, *, smoothing: float = DEFAULT_SMOOTHING
    ) -> ItemFrequency:
        """p = (count + smoothing) / (rows + smoothing * (V + 1)); the one extra item stands for all unseen ones.

        item_ids: [V], each once, any order.  counts: [V], rows of each.
        """
        if smoothing <= 0:
            raise ValueError(f"smoothing must be positive (an unseen item would have log 0), found {smoothing}")
        order = np.argsort(item_ids, kind="stable")
        ids = np.ascontiguousarray(item_ids[order], dtype=np.int64)
        if np.any(ids[1:] == ids[:-1]):
            raise ValueError("item_ids: each item once required, found one twice")
        total = float(counts.sum()) + smoothing * (len(ids) + 1)
        log_p = np.log(counts[order].astype(np.float64) + smoothing) - np.log(total)
        unseen = float(np.log(smoothing) - np.log(total))
        return cls(torch.from_numpy(ids), torch.from_numpy(log_p.astype(np.float32)), unseen)

    @classmethod
    def from_rows(cls, item_id_chunks: Iterable[np.ndarray], *, smoothing: float = DEFAULT_SMOOTHING) -> ItemFrequency:
        """Counts the item of every row; memory is that of the distinct items."""
        ids, counts = np.empty(0, np.int64), np.empty(0, np.int64)
        for chunk in item_id_chunks:
            chunk_ids, chunk_counts = np.unique(chunk, return_counts=True)
            merged, number = np.unique(np.concatenate([ids, chunk_ids]), return_inverse=True)
            counts = np.bincount(number, weights=np.concatenate([counts, chunk_counts]), minlength=len(merged))
            ids, counts = merged, counts.astype(np.int64)
        return cls.from_counts(ids, counts, smoothing=smoothing)

    def log_q(self, item_id_B: torch.Tensor) -> torch.Tensor:
        """Log-probability of each row's item, [B] float32."""
        if len(self.item_id_V) == 0:
            return torch.full(item_id_B.shape, self.unseen_log_p, device=item_id_B.device)
        place_B = places_of(item_id_B, self.item_id_V)
        return torch.where(place_B >= 0, self.log_p_V[place_B], self.unseen_log_p)

    def to(self, device: torch.device | str) -> ItemFrequency:
        return ItemFrequency(self.item_id_V.to(device), self.log_p_V.to(device), self.unseen_log_p)


NUM_HASHES = 2
"""Hash functions of a StreamingFrequency."""


class StreamingFrequency:
    """Item frequencies from the batches themselves, in fixed memory.

        gap    <- (1 - a) * gap    + a * rows since the item's previous batch        per item in the batch
        repeat <- (1 - a) * repeat + a * rows of this batch that carry it
        p      =  repeat / gap

    `a` falls as 1 / (updates of the slot + 1) until it reaches `decay`, so that the first values are plain means. Items
    share slots by hash: a slot's p is the sum over its items, and of NUM_HASHES slots the smallest p is taken.

    num_slots: slots per hash function; 24 bytes each. Take several times the number of items.
    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling, algorithms 2 and 3; the change is this module's.
    """

    def __init__(self, num_slots: int, *, decay: float = 0.01, seed: int = 0) -> None:
        if num_slots < 1 or not 0 < decay < 1:
            raise ValueError(f"num_slots: at least 1, decay: between 0 and 1 required; found {num_slots}, {decay}")
        self.decay = decay
        self.rows_seen = 0
        generator = torch.Generator().manual_seed(seed)
        self.multiplier_H = torch.randint(-(2**63), 2**63 - 1, (NUM_HASHES,), generator=generator) | 1
        self.last_row_HS = torch.zeros(NUM_HASHES, num_slots, dtype=torch.int64)
        self.gap_HS = torch.zeros(NUM_HASHES, num_slots, dtype=torch.float64)
        self.repeat_HS = torch.zeros(NUM_HASHES, num_slots, dtype=torch.float64)
        self.updates_HS = torch.zeros(NUM_HASHES, num_slots, dtype=torch.int32)

    def update(self, item_id_B: torch.Tensor) -> None:
        """Take in one batch of rows, in the order in which batches are drawn."""
        self.rows_seen += len(item_id_B)
        for h, slot_B in enumerate(self._slots(item_id_B)):
            slot, repeats = torch.unique(slot_B, return_counts=True)
            self.updates_HS[h, slot] += 1
            weight = (1.0 / self.updates_HS[h, slot].double()).clamp(min=self.decay)
            gap = (self.rows_seen - self.last_row_HS[h, slot]).double()
            self.gap_HS[h, slot] += weight * (gap - self.gap_HS[h, slot])
            self.repeat_HS[h, slot] += weight * (repeats.double() - self.repeat_HS[h, slot])
            self.last_row_HS[h, slot] = self.rows_seen

    def log_q(self, item_id_B: torch.Tensor) -> torch.Tensor:
        """Log-probability of each row's item, [B] float32; an item never seen counts as one row in all seen so far."""
        p_HB = []
        for h, slot_B in enumerate(self._slots(item_id_B)):
            p = self.repeat_HS[h, slot_B] / self.gap_HS[h, slot_B].clamp(min=1.0)
            p_HB.append(torch.where(self.updates_HS[h, slot_B] > 0, p, 1.0 / max(self.rows_seen, 1)))
        return torch.stack(p_HB).amin(0).clamp(max=1.0).log().float()

    def _slots(self, item_id_B: torch.Tensor) -> torch.Tensor:
        """[H, B]: multiply-shift on the id's mixed bits."""
        mixed = item_id_B ^ (item_id_B >> 32)
        high_HB = (mixed * self.multiplier_H[:, None]) >> 20  # the low bits of a product are poor
        return high_HB.remainder(self.last_row_HS.shape[1])

    def state_dict(self) -> dict[str, Any]:
        return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value.clone() if isinstance(value, torch.Tensor) else value)
