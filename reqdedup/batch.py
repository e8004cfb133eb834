"""RequestBatch: R requests once, B rows pointing at them.

    request 0: user 7, history [a b c]        rows: 0 1 2 3      row_offsets_R1     = [0, 4, 6]
    request 1: user 9, history [d]            rows: 4 5          history_offsets_R1 = [0, 3, 4]

    history["item_id"] = [a b c d]            T = 4, packed      request_of_row_B   = [0 0 0 0 1 1]

Request-level tensors have first axis R (or T, packed over R, with offsets), row-level tensors first axis B. A request
is never split over two batches. Nothing here copies a request-level value to its rows; `expand` does, on the device,
when a model asks for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from reqdedup.ops.expand import expand
from reqdedup.ops.prefixes import Prefixes
from reqdedup.schema import HISTORY_END, TIMELINE_VERSION


@dataclass(frozen=True)
class ContextGroups:
    """Requests of a batch whose histories begin at the same event of the same timeline: one context can serve them all.

    A timeline only grows, so the shorter histories of a group are prefixes of the longest.
    prefixes: which requests form a group, and each one's own length.
    longest_G: [G] int64, the request whose history is the group's.
    """

    prefixes: Prefixes
    longest_G: torch.Tensor

    @property
    def is_shared(self) -> bool:
        """False if every request is a group of its own."""
        return len(self.longest_G) < self.prefixes.num_requests

    def history(self, batch: RequestBatch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The groups' histories, packed, and their offsets [G + 1]: each event once."""
        return batch.histories_of(self.longest_G)


@dataclass(frozen=True, kw_only=True, repr=False)
class RequestBatch:
    """One deduplicated batch.

    request: request-level values, [R, ...] each (scalars [R], vectors [R, width]).
    row: item-level values and labels, [B] each; labels are float32, NaN if the log has none.
    history: sequence columns, packed, [T] each, in timeline order (oldest first).
    history_offsets_R1, row_offsets_R1: [R + 1] int64, first 0, last T (B).
    user_id_R: [R] int64.  item_id_B: [B] int64.  request_of_row_B: [B] int64.

    Invariants, checked by `validate`:
    - row_offsets_R1 and history_offsets_R1 start at 0, never fall, and end at B and T
    - request_of_row_B[b] == r  exactly for  row_offsets_R1[r] <= b < row_offsets_R1[r + 1]
    - every tensor has the first axis its dict says
    - if the batch has what `context_groups` needs: in each group the shorter histories are prefixes of the longest
    """

    user_id_R: torch.Tensor
    item_id_B: torch.Tensor
    request_of_row_B: torch.Tensor
    row_offsets_R1: torch.Tensor
    history_offsets_R1: torch.Tensor
    request: dict[str, torch.Tensor] = field(default_factory=dict)
    row: dict[str, torch.Tensor] = field(default_factory=dict)
    history: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_requests(self) -> int:
        return len(self.user_id_R)

    @property
    def num_rows(self) -> int:
        return len(self.item_id_B)

    @property
    def num_history_tokens(self) -> int:
        """T: history tokens packed over the R requests."""
        return len(next(iter(self.history.values()))) if self.history else 0

    @property
    def fan_out(self) -> float:
        """Rows per request; 0 for an empty batch."""
        return self.num_rows / self.num_requests if self.num_requests else 0.0

    def __repr__(self) -> str:
        columns = {"request": self.request, "row": self.row, "history": self.history}
        names = "; ".join(f"{kind}: {', '.join(values) or 'nothing'}" for kind, values in columns.items())
        return (
            f"<RequestBatch {self.num_requests:,} requests, {self.num_rows:,} rows, {self.num_history_tokens:,} "
            f"history tokens, {self.user_id_R.device}; {names}>"
        )

    def expand(self, x_R: torch.Tensor) -> torch.Tensor:
        """The value of each row's request: [R, ...] -> [B, ...]."""
        return expand(x_R, self.row_offsets_R1, num_rows=self.num_rows)

    def context_groups(self) -> ContextGroups:
        """Which neighbouring requests can share a context; decided from a few numbers per request,
        no event is looked at.

        request["history_end"] and request["timeline_version"] are needed: requests of one user and version whose
        histories begin at the same event, history_end - length, form a group. Requests without either value (negative)
        are groups of their own. Raises ValueError if a column is missing.
        """
        missing = [name for name in (HISTORY_END, TIMELINE_VERSION) if name not in self.request]
        if missing:
            raise ValueError(
                f"requests of a user can share a context only if the batch says at which event their histories begin: "
                f"request{missing} required, found {sorted(self.request)}; read these columns, or "
                "share_context='request'"
            )
        version_R, length_R = self.request[TIMELINE_VERSION], self.history_offsets_R1.diff()
        start_R = self.request[HISTORY_END] - length_R
        is_known_R = (start_R >= 0) & (version_R >= 0)
        is_first_R = torch.ones_like(is_known_R)
        is_first_R[1:] = ~is_known_R[1:]
        for x_R in (self.user_id_R, version_R, start_R):
            is_first_R[1:] |= x_R[1:] != x_R[:-1]
        first_G = torch.nonzero(is_first_R).squeeze(1)
        num_requests, num_groups = len(length_R), len(first_G)
        group_of_R = is_first_R.cumsum(0) - 1
        longest_G = length_R.new_zeros(num_groups).scatter_reduce(0, group_of_R, length_R, "amax")
        request_R = torch.arange(num_requests, device=length_R.device)
        candidate_R = torch.where(length_R == longest_G[group_of_R], request_R, num_requests)
        longest_G = torch.full_like(longest_G, num_requests).scatter_reduce(0, group_of_R, candidate_R, "amin")
        request_offsets_G1 = torch.cat([first_G, first_G.new_full((1,), num_requests)])
        return ContextGroups(Prefixes(request_offsets_G1, length_R), longest_G)

    def histories_of(self, request_G: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Histories of some requests, packed, and their offsets [G + 1]. request_G: [G] int64, in any order."""
        length_G = self.history_offsets_R1.diff()[request_G]
        offsets_G1 = torch.cat([length_G.new_zeros(1), length_G.cumsum(0)])
        shift_G = self.history_offsets_R1[request_G] - offsets_G1[:-1]
        token = torch.repeat_interleave(shift_G, length_G)
        token += torch.arange(len(token), device=token.device)
        return {name: x_T[token] for name, x_T in self.history.items()}, offsets_G1

    def cut(self, num_pieces: int) -> list[RequestBatch]:
        """The batch in so many pieces of equally many neighbouring requests, as views; some empty if it has fewer."""
        bounds = np.linspace(0, self.num_requests, num_pieces + 1).astype(int).tolist()
        return [self._requests(begin, end) for begin, end in itertools.pairwise(bounds)]

    def _requests(self, begin: int, end: int) -> RequestBatch:
        row_offsets, history_offsets = (x[begin : end + 1] for x in (self.row_offsets_R1, self.history_offsets_R1))
        rows, events = (slice(int(x[0]), int(x[-1])) for x in (row_offsets, history_offsets))
        return RequestBatch(
            user_id_R=self.user_id_R[begin:end],
            item_id_B=self.item_id_B[rows],
            request_of_row_B=self.request_of_row_B[rows] - begin,
            row_offsets_R1=row_offsets - row_offsets[0],
            history_offsets_R1=history_offsets - history_offsets[0],
            request={name: x_R[begin:end] for name, x_R in self.request.items()},
            row={name: x_B[rows] for name, x_B in self.row.items()},
            history={name: x_T[events] for name, x_T in self.history.items()},
        )

    def with_padded_rows(self, multiple: int) -> RequestBatch:
        """The batch with its last row repeated, as rows of that row's request, up to a multiple."""
        more = -self.num_rows % multiple
        if not more:
            return self

        def padded(x_B: torch.Tensor) -> torch.Tensor:
            return torch.cat([x_B, x_B[-1:].expand(more, *x_B.shape[1:])])

        ends_R1 = self.row_offsets_R1
        return replace(
            self,
            item_id_B=padded(self.item_id_B),
            request_of_row_B=padded(self.request_of_row_B),
            row_offsets_R1=torch.where(ends_R1 == self.num_rows, ends_R1 + more, ends_R1),
            row={name: padded(x_B) for name, x_B in self.row.items()},
        )

    @staticmethod
    def concatenate(batches: Sequence[RequestBatch]) -> RequestBatch:
        """The requests of several batches as one, in order; at least one batch, all with the columns of the first."""
        if len(batches) == 1:
            return batches[0]

        def offsets(name: str) -> torch.Tensor:
            lengths = torch.cat([getattr(batch, name).diff() for batch in batches])
            return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

        row_offsets_R1 = offsets("row_offsets_R1")
        request_R = torch.arange(len(row_offsets_R1) - 1, device=row_offsets_R1.device)
        first = batches[0]
        return RequestBatch(
            user_id_R=torch.cat([batch.user_id_R for batch in batches]),
            item_id_B=torch.cat([batch.item_id_B for batch in batches]),
            request_of_row_B=torch.repeat_interleave(request_R, row_offsets_R1.diff()),
            row_offsets_R1=row_offsets_R1,
            history_offsets_R1=offsets("history_offsets_R1"),
            request={name: torch.cat([batch.request[name] for batch in batches]) for name in first.request},
            row={name: torch.cat([batch.row[name] for batch in batches]) for name in first.row},
            history={name: torch.cat([batch.history[name] for batch in batches]) for name in first.history},
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor under a flat name, `history/item_id` for example."""
        flat: dict[str, torch.Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                flat.update({f"{f.name}/{name}": tensor for name, tensor in value.items()})
            else:
                flat[f.name] = value
        return flat

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors: what moves to the device."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> RequestBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> RequestBatch:
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            moved[f.name] = {k: move(v) for k, v in value.items()} if isinstance(value, dict) else move(value)
        return replace(self, **moved)

    def validate(self) -> RequestBatch:
        """Check every invariant, values included; raises ValueError naming the first that fails, else returns self."""
        num_requests, num_rows = self.num_requests, self.num_rows
        for name, count, end in (
            ("row_offsets_R1", num_rows, "rows"),
            ("history_offsets_R1", self.num_history_tokens, "history tokens"),
        ):
            offsets = getattr(self, name)
            if offsets.shape != (num_requests + 1,) or offsets.dtype != torch.int64:
                raise ValueError(
                    f"{name}: [{num_requests + 1}] int64 required, found {tuple(offsets.shape)} {offsets.dtype}"
                )
            if offsets[0] != 0 or offsets[-1] != count or bool((offsets.diff() < 0).any()):
                raise ValueError(f"{name}: must rise from 0 to {count} {end}, found {offsets.tolist()[:8]}...")
        wanted = torch.repeat_interleave(
            torch.arange(num_requests, device=self.row_offsets_R1.device), self.row_offsets_R1.diff()
        )
        if not torch.equal(self.request_of_row_B, wanted):
            raise ValueError("request_of_row_B: must be the request of each row as row_offsets_R1 says, found another")
        for group, axis, length in (
            ("request", "R", num_requests),
            ("row", "B", num_rows),
            ("history", "T", self.num_history_tokens),
        ):
            for name, tensor in getattr(self, group).items():
                if tensor.ndim == 0 or len(tensor) != length:
                    raise ValueError(
                        f"{group}[{name!r}]: first axis {axis} = {length} required, found {tuple(tensor.shape)}"
                    )
        if HISTORY_END in self.request and TIMELINE_VERSION in self.request:
            self._validate_prefixes()
        return self

    def _validate_prefixes(self) -> None:
        groups, begin_R = self.context_groups(), self.history_offsets_R1[:-1]
        longest_R = torch.repeat_interleave(groups.longest_G, groups.prefixes.request_offsets_G1.diff())
        shift_T = torch.repeat_interleave(begin_R[longest_R] - begin_R, self.history_offsets_R1.diff())
        token = torch.arange(len(shift_T), device=shift_T.device)
        for name, x_T in self.history.items():
            differs = torch.nonzero(x_T != x_T[token + shift_T])
            if len(differs):
                r = int(torch.searchsorted(self.history_offsets_R1, int(differs[0]), right=True)) - 1
                raise ValueError(
                    f"history[{name!r}] of request {r}: a prefix of request {int(longest_R[r])}'s required, since both "
                    f"begin at one event of one timeline version of user {int(self.user_id_R[r])}, found another "
                    "event; a timeline that was rewritten needs a new timeline_version"
                )
