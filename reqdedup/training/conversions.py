"""Retrieval with a sparse label: several positives of different worth, the request's own misses, and groups of items.

    weight_i   largest of weight * w(t_i) over the positives that row i has
    w(t)       log(1 + min(t, cap)) / log(1 + cap), of a duration t: 0 at 0, 1 from the cap on
    loss_i     InfoNCE of row i; the rows of its own request without any positive are further, weighed negatives
    coarse_i   the same against groups of items (their advertiser, say): a group is the mean of its items' vectors
    total      sum of weight_i * (loss_i + coarse_weight * coarse_i) over the rows with a positive, over the number of
               those that have a negative

With `heads` there is such a sum for each label: of the rows that are positive by it, with its weight alone, scored by
the user vector of its own head; the total is theirs together, over the number of terms. Negatives stay the same, items
of rows with any of the positives: a rare label then has as many as a frequent one, and logQ is of one distribution.
With a softmax over the catalogue (`negatives`) weights and heads are these, and loss_i is of `catalogue_loss`.

A duration without a value, or below 0, is 0. A row whose label is missing is neither positive nor negative. Hard
negatives are of the same user, so they pass by the user mask by name; an item that its request has as a positive too is
none. In the coarse loss groups carry no logQ correction, and rows without a group (null) are not there.
`conversion_loss_naive` is the definition, plain loops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from reqdedup.batch import RequestBatch
from reqdedup.training.gather import gather_columns
from reqdedup.training.loss import Columns, row_losses
from reqdedup.values import NULL_INTEGER

Positive = tuple[str, float, str, float]
"""Label, weight, column of the row with a duration [s] that scales the weight ("" for none), and its cap [s]."""


@dataclass(frozen=True, kw_only=True)
class ConversionLoss:
    """positives: at least one.  heads: their labels in the order of the model's heads, () for one head.
    hard_negative_weight: of the request's own rows without a positive, 0 for none.  coarse_column: of the row, its
    item's group; "" for none.  coarse_weight: of that loss.  gather: contrast with the items of all ranks.
    temperature, mask_same_user, same_user_share: as in `info_nce`."""

    positives: tuple[Positive, ...]
    heads: tuple[str, ...] = ()
    hard_negative_weight: float = 0.0
    coarse_column: str = ""
    coarse_weight: float = 0.0
    gather: bool = False
    temperature: float = 1.0
    mask_same_user: bool = True
    same_user_share: float = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for label, *_ in self.positives)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of rows, beside what the model reads."""
        durations = (duration for _, _, duration, _ in self.positives if duration)
        return (*dict.fromkeys((*self.labels, *durations)), *((self.coarse_column,) if self.coarse_column else ()))

    def weights(self, batch: RequestBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight of each row for each head, [B, L] float64, 0 without a positive; and which rows surely have none,
        [B] bool."""
        weight_of = {}
        has_none_B = torch.ones(batch.num_rows, device=batch.item_id_B.device, dtype=torch.bool)
        for label, weight, duration, cap_s in self.positives:
            of_label_B = weight * (batch.row[label] > 0).double()
            if duration:
                length_B = batch.row[duration].double().nan_to_num(0.0, cap_s, 0.0).clamp(0, cap_s)
                of_label_B = of_label_B * (length_B.log1p() / math.log1p(cap_s))
            weight_of[label] = of_label_B
            has_none_B &= batch.row[label] == 0
        weight_BL = torch.stack([weight_of[label] for label in self.heads or self.labels], dim=1)
        return weight_BL if self.heads else weight_BL.amax(1, keepdim=True), has_none_B

    def __call__(
        self, user: torch.Tensor, item_BD: torch.Tensor, batch: RequestBatch, log_q_B: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """Sum of this rank's terms [nats] and their number; a collective if `gather`.

        user: [R, D], or [R, L, D] of the L heads.  log_q_B: of the batch's rows, as in `info_nce`.
        """
        user_RLD = user if self.heads else user[:, None]
        weight_BL, has_none_B = self.weights(batch)
        row = torch.nonzero((weight_BL > 0).any(1)).squeeze(1)
        weight_NL = weight_BL[row].to(item_BD.dtype)
        request_of_row, item_id, user_id_R = batch.request_of_row_B[row], batch.item_id_B[row], batch.user_id_R
        options: dict[str, Any] = {
            "request_of_row_B": request_of_row,
            "user_id_R": user_id_R,
            "temperature": self.temperature,
            "mask_same_user": self.mask_same_user,
            "same_user_share": self.same_user_share,
        }
        hard = _hard_negatives(batch, has_none_B, row)
        heads = list(zip(user_RLD.unbind(1), weight_NL.unbind(1), strict=True))
        columns = self._columns(item_BD[row], item_id, user_id_R[request_of_row], log_q_B[row])
        total, num_terms = 0.0 * (user.sum() + item_BD.sum()), 0
        for user_RD, weight_N in heads:
            hard_R = self._hard(user_RD, item_BD, batch, log_q_B, hard) if self.hard_negative_weight else None
            losses = row_losses(user_RD, columns, item_id_B=item_id, further_log_negatives_R=hard_R, **options)
            total = total + (weight_N * losses.loss_B).sum()
            num_terms += int((losses.is_legal_B & (weight_N > 0)).sum())
        if self.coarse_column:
            has_group_N = batch.row[self.coarse_column][row] != NULL_INTEGER
            row, request_of_row = row[has_group_N], request_of_row[has_group_N]
            group = batch.row[self.coarse_column][row].long()
            columns = self._columns(item_BD[row], group, user_id_R[request_of_row], torch.zeros_like(log_q_B[row]))
            columns, options = _of_groups(columns), {**options, "request_of_row_B": request_of_row}
            for user_RD, weight_N in heads:
                coarse = row_losses(user_RD, columns, item_id_B=group, **options)
                total = total + (self.coarse_weight * weight_N[has_group_N] * coarse.loss_B).sum()
        return total, num_terms

    def _columns(
        self, item_ND: torch.Tensor, item_id_N: torch.Tensor, user_id_N: torch.Tensor, log_q_N: torch.Tensor
    ) -> Columns:
        columns = Columns(item_ND=item_ND, item_id_N=item_id_N, user_id_N=user_id_N, log_q_N=log_q_N)
        return gather_columns(columns) if self.gather else columns

    def _hard(
        self,
        user_RD: torch.Tensor,
        item_BD: torch.Tensor,
        batch: RequestBatch,
        log_q_B: torch.Tensor,
        hard: torch.Tensor,
    ) -> torch.Tensor:
        """Log of the sum of weighed exponentials over each request's hard negatives, [R], -inf if it has none."""
        request = batch.request_of_row_B[hard]
        logit = (user_RD[request] * item_BD[hard]).sum(1) / self.temperature - log_q_B[hard].to(user_RD.dtype)
        lowest = logit.new_full((batch.num_requests,), torch.finfo(logit.dtype).min)
        largest_R = lowest.scatter_reduce(0, request, logit.detach(), "amax")
        sum_R = torch.zeros_like(largest_R).index_add(0, request, (logit - largest_R[request]).exp())
        has_any_R = sum_R > 0
        log_R = torch.where(has_any_R, sum_R, 1.0).log() + largest_R + math.log(self.hard_negative_weight)
        return torch.where(has_any_R, log_R, -torch.inf)


def _hard_negatives(batch: RequestBatch, has_none_B: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Rows without a positive whose item their request has as none."""
    number_B = torch.unique(batch.item_id_B, return_inverse=True)[1]
    key_B = batch.request_of_row_B * (batch.num_rows + 1) + number_B
    return torch.nonzero(has_none_B & ~torch.isin(key_B, key_B[positive])).squeeze(1)


def _of_groups(columns: Columns) -> Columns:
    """Each column with the mean of the items of its group, which its item_id is."""
    _, number_N, counts = torch.unique(columns.item_id_N, return_inverse=True, return_counts=True)
    item_ND = columns.item_ND
    sum_of_group = item_ND.new_zeros(len(counts), item_ND.shape[1]).index_add(0, number_N, item_ND)
    return replace(columns, item_ND=(sum_of_group / counts[:, None])[number_N])


def conversion_loss_naive(
    loss: ConversionLoss, user: torch.Tensor, item_BD: torch.Tensor, batch: RequestBatch, log_q_B: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The definition of `ConversionLoss`, for one rank and masked users: loops over rows."""
    rows, users, items = (
        range(batch.num_rows),
        batch.user_id_R[batch.request_of_row_B].tolist(),
        batch.item_id_B.tolist(),
    )
    requests = batch.request_of_row_B.tolist()
    labels = {name: batch.row[name].tolist() for name in loss.columns}

    def weight_of(b: int, counted: Sequence[str] = loss.labels) -> float:
        found = [0.0]
        for label, weight, duration, cap_s in loss.positives:
            if label in counted and labels[label][b] > 0:
                t = labels[duration][b] if duration else 0.0
                t = min(max(t, 0.0), cap_s) if t == t else 0.0
                found.append(weight * (math.log(1 + t) / math.log(1 + cap_s) if duration else 1.0))
        return max(found)

    positive = [b for b in rows if weight_of(b) > 0]
    hard = [b for b in rows if all(labels[label][b] == 0 for label in loss.labels)]
    hard = [h for h in hard if not any(requests[b] == requests[h] and items[b] == items[h] for b in positive)]
    groups = labels[loss.coarse_column] if loss.coarse_column else []
    total, num_terms = 0.0 * (user.sum() + item_BD.sum()), 0

    def score(user_D: torch.Tensor, vector: torch.Tensor, log_q: float | torch.Tensor) -> torch.Tensor:
        return user_D @ vector / loss.temperature - log_q

    heads: list[tuple[torch.Tensor, tuple[str, ...]]] = [(user[:, n], (label,)) for n, label in enumerate(loss.heads)]
    for (user_RD, counted), i in itertools.product(heads or [(user, loss.labels)], positive):
        if not weight_of(i, counted):
            continue
        user_D = user_RD[requests[i]]
        own = score(user_D, item_BD[i], log_q_B[i])
        others = [k for k in positive if items[k] != items[i] and users[k] != users[i]]
        terms = [score(user_D, item_BD[k], log_q_B[k]) for k in others]
        if loss.hard_negative_weight:
            added = math.log(loss.hard_negative_weight)
            terms += [score(user_D, item_BD[h], log_q_B[h]) + added for h in hard if requests[h] == requests[i]]
        if terms:
            total = total + weight_of(i, counted) * (torch.logsumexp(torch.stack([own, *terms]), 0) - own)
            num_terms += 1
        if loss.coarse_column and groups[i] != NULL_INTEGER:
            members = {g: [b for b in positive if groups[b] == g] for g in set(groups) - {NULL_INTEGER}}
            mean = {g: item_BD[of].mean(0) for g, of in members.items() if of}
            own = score(user_D, mean[groups[i]], 0.0)
            apart = [k for k in positive if groups[k] not in (groups[i], NULL_INTEGER) and users[k] != users[i]]
            if terms := [score(user_D, mean[groups[k]], 0.0) for k in apart]:
                coarse = torch.logsumexp(torch.stack([own, *terms]), 0) - own
                total = total + loss.coarse_weight * weight_of(i, counted) * coarse
    return total, num_terms


def check_positives(positives: Sequence[Positive]) -> None:
    """Raises ValueError for a weight or a cap that means nothing."""
    for label, weight, duration, cap_s in positives:
        if not 0 < weight < math.inf or (duration and not 0 < cap_s < math.inf):
            raise ValueError(
                f"training: positives: a weight above 0, and with a duration a cap above 0 s, required of {label}, "
                f"found {weight} and {cap_s}"
            )
        if cap_s and not duration:
            raise ValueError(
                f"training: positives: a column with the duration beside a cap required, found a cap of {cap_s} s and "
                f"none at {label}; name it, or let the cap be 0"
            )
    for (one, *_), (other, *_) in itertools.pairwise(sorted(positives)):
        if one == other:
            raise ValueError(f"training: positives: each label once required, found {one} twice")
