"""What a batch holds and what deduplication saves on it; how busy the cores were."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from reqdedup.batch import RequestBatch


@dataclass(frozen=True, kw_only=True)
class BatchMeters:
    """Counts that add up over ranks and steps; the ratios follow from them.

    users: distinct users (summed over ranks, a user on two ranks counts twice).
    same_user_pairs: ordered pairs of rows of one user with different items: false negatives unless they are masked.
    negative_pairs: ordered pairs of rows with different items.
    sum_squared_user_rows: over users, rows^2.
    moved_bytes: all tensors of the batch.  duplicated_bytes: the same with every request-level value once per row.
    """

    requests: int
    rows: int
    users: int
    history_tokens: int
    same_user_pairs: int
    negative_pairs: int
    sum_squared_user_rows: int
    moved_bytes: int
    duplicated_bytes: int

    @classmethod
    def of(cls, batch: RequestBatch) -> BatchMeters:
        user_B = batch.user_id_R[batch.request_of_row_B]
        same_user, same_item = _pairs(user_B), _pairs(batch.item_id_B)
        _, item_B = torch.unique(batch.item_id_B, return_inverse=True)
        users, user_number_B = torch.unique(user_B, return_inverse=True)
        same_both = _pairs(user_number_B * (batch.num_rows + 1) + item_B)
        return cls(
            requests=batch.num_requests,
            rows=batch.num_rows,
            users=len(users),
            history_tokens=batch.num_history_tokens,
            same_user_pairs=same_user - same_both,
            negative_pairs=batch.num_rows**2 - same_item,
            sum_squared_user_rows=same_user,
            moved_bytes=batch.num_bytes,
            duplicated_bytes=duplicated_bytes(batch),
        )

    def __add__(self, other: BatchMeters) -> BatchMeters:
        return BatchMeters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def dedup_factor(self) -> float:
        """Duplicated bytes per byte moved; 1 for an empty batch."""
        return self.duplicated_bytes / self.moved_bytes if self.moved_bytes else 1.0

    @property
    def false_negative_rate(self) -> float:
        """Share of in-batch negatives that are items of the same user; what the user mask takes out."""
        return self.same_user_pairs / self.negative_pairs if self.negative_pairs else 0.0

    @property
    def effective_users(self) -> float:
        """1 / sum of squared shares of the rows: as many users with equal shares would be as diverse."""
        return self.rows**2 / self.sum_squared_user_rows if self.sum_squared_user_rows else 0.0


@dataclass(frozen=True)
class CoreTimes:
    """Busy and idle time of each core since the system started, in its ticks; none if /proc/stat is not there."""

    cores: dict[str, tuple[int, int]]

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> CoreTimes:
        try:
            lines = stat.read_text().splitlines()
        except OSError:
            return cls({})
        cores = {}
        for line in lines:
            name, *ticks = line.split() or [""]
            if name.startswith("cpu") and name != "cpu" and len(ticks) >= 5:
                idle = int(ticks[3]) + int(ticks[4])  # idle and waiting for a disk
                cores[name] = (sum(map(int, ticks[:8])) - idle, idle)  # guests are in user time already
        return cls(cores)

    def busy_until(self, later: CoreTimes) -> list[float]:
        """Share of the time between the two that each core was busy, by whomever; of those that both know."""
        shares = []
        for name in self.cores.keys() & later.cores.keys():
            busy, idle = (late - early for early, late in zip(self.cores[name], later.cores[name]))
            if busy + idle > 0:
                shares.append(min(1.0, max(0.0, busy / (busy + idle))))
        return sorted(shares)


def duplicated_bytes(batch: RequestBatch) -> int:
    """Bytes that the batch would have with every request-level value and history once per row."""
    history_rows = int((batch.history_offsets_R1.diff() * batch.row_offsets_R1.diff()).sum())
    request_bytes = sum(_bytes_per_entry(tensor) for tensor in (batch.user_id_R, *batch.request.values()))
    row_bytes = sum(_bytes_per_entry(tensor) for tensor in (batch.item_id_B, *batch.row.values()))
    history_bytes = sum(tensor.element_size() for tensor in batch.history.values())
    offset_bytes = batch.history_offsets_R1.element_size() * (batch.num_rows + 1)
    return batch.num_rows * (request_bytes + row_bytes) + history_rows * history_bytes + offset_bytes


def _bytes_per_entry(tensor: torch.Tensor) -> int:
    return tensor.element_size() * math.prod(tensor.shape[1:])


def _pairs(id_B: torch.Tensor) -> int:
    """Ordered pairs of equal elements, an element with itself included."""
    return int(torch.unique(id_B, return_counts=True)[1].square().sum())
