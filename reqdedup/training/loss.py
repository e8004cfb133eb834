"""InfoNCE over in-batch negatives with identity and same-user masks and logQ correction, computed R x N.

    logits            request r (user tower, once) against every column n:  s(r, n) / temperature - log_q_n
    row i             positive: its own column;  negatives: columns n with item_n != item_i, weighted by w_i(n)
    w_i(n)            1 where user_n != user_i; 0 (the mask) or a small weight if it is the same user
    loss_i            log(exp(pos_i) + sum over its negatives w_i(n) exp(logit)) - pos_i

The rows of a request share their negatives up to the identity mask, so no B x B matrix is ever made: the sum over all
columns of other users is taken once per request, and the columns that carry row i's own item are taken out of it.
Taking out by subtraction is safe while they hold at most half of the sum; if they hold more (at most one item per
request can) the rest is summed again without them. Exact in value and gradient, stable for any finite logit.

Without ranks N = B, the rows of this batch.
`info_nce_naive` is the definition, a plain double loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LARGEST_SAFE_SHARE = 0.5
"""Subtracting up to this share of a sum costs at most one bit; two disjoint parts cannot both hold more."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What rows are contrasted with: N items, each with the user whose row it came from.

    item_ND: item tower output.  item_id_N, user_id_N: int64.  log_q_N: log-probability of the item
        as a negative, finite.
    first_own: this batch's row i is column first_own + i.
    """

    item_ND: torch.Tensor
    item_id_N: torch.Tensor
    user_id_N: torch.Tensor
    log_q_N: torch.Tensor
    first_own: int = 0


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Loss of each row [nats], 0 if it has no legal negative, and which rows have one."""

    loss_B: torch.Tensor
    is_legal_B: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """Mean over the legal rows; 0 with a gradient where there is none."""
        return self.loss_B.sum() / self.is_legal_B.sum().clamp(min=1)


def info_nce(
    user_RD: torch.Tensor,
    item_BD: torch.Tensor,
    *,
    request_of_row_B: torch.Tensor,
    user_id_R: torch.Tensor,
    item_id_B: torch.Tensor,
    log_q_B: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    mask_same_user: bool = True,
    same_user_share: float = 0.0,
) -> torch.Tensor:
    """Mean InfoNCE loss [nats per row] over in-batch negatives with logQ correction.

    The mean runs over the rows that have a legal negative: a row of another item and, with `mask_same_user`, of another
    user. Where no row has one, it is 0 with a (zero) gradient. Request-sorted batches need the user mask: a user's
    other rows are items the same user engaged with, false negatives in up to a third of all pairs.

    `same_user_share` s > 0 keeps what IID batches have of them. A row whose user has n of the N columns meets n - 1
    columns of the same user beside N - n of others; the first weigh w = min(1, s / (1 - s) * (N - n) / (n - 1)) each,
    so that they count for at most the share s of all. It is the importance weight from the batch's mixture of negatives
    to one in which the own user has share s: with s the user's share of the log (about 1 / effective users), that of
    IID batches.

    user_RD: [R, D], once per request.  item_BD: [B, D].  request_of_row_B, item_id_B: [B] int64.  user_id_R: [R] int64.
    log_q_B: [B], log-probability of each row's item under the distribution rows are drawn from; finite. It is
        subtracted from the logits, the positive's too.
    mask_same_user, same_user_share: masked at 0, the default; kept in full if mask_same_user is False, and then
        same_user_share must be 0.  0 <= same_user_share < 1, else ValueError.
    Source: Yi et al. 2019, Sampling-bias-corrected neural modeling, section 3 (logQ).
    """
    columns = Columns(item_ND=item_BD, item_id_N=item_id_B, user_id_N=user_id_R[request_of_row_B], log_q_N=log_q_B)
    return row_losses(
        user_RD,
        columns,
        request_of_row_B=request_of_row_B,
        user_id_R=user_id_R,
        item_id_B=item_id_B,
        temperature=temperature,
        mask_same_user=mask_same_user,
        same_user_share=same_user_share,
    ).mean


def row_losses(
    user_RD: torch.Tensor,
    columns: Columns,
    *,
    request_of_row_B: torch.Tensor,
    user_id_R: torch.Tensor,
    item_id_B: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    mask_same_user: bool = True,
    same_user_share: float = 0.0,
    further_log_negatives_R: torch.Tensor | None = None,
) -> RowLosses:
    """The InfoNCE loss of every row of this batch against `columns`; see `info_nce` for the rest.

    further_log_negatives_R: log of a sum of exponentials over negatives that each request has beside the columns, -inf
        for none.
    With uneven ranks, sum the losses, count the legal rows over all ranks, and scale: `scale_for_mean_over_ranks`.
    """
    num_rows, num_columns = len(item_id_B), len(columns.item_id_N)
    check_same_user_share(same_user_share, mask_same_user)
    if len(request_of_row_B) != num_rows or not 0 <= columns.first_own <= num_columns - num_rows:
        raise ValueError(
            f"info_nce: {num_rows} rows must be columns {columns.first_own} onward of {num_columns}, "
            f"found {len(request_of_row_B)} request indices"
        )
    logits_NR = (columns.item_ND @ user_RD.mT) / temperature
    if logits_NR.dtype in (torch.float16, torch.bfloat16):
        logits_NR = logits_NR.float()
    logits_NR = logits_NR - columns.log_q_N.to(logits_NR.dtype)[:, None]
    if num_rows == 0 or num_columns == 0:
        return RowLosses(loss_B=logits_NR.sum(1)[:0] + 0.0 * logits_NR.sum(), is_legal_B=item_id_B > 0)

    own_B = torch.arange(columns.first_own, columns.first_own + num_rows, device=item_id_B.device)
    positive_B = logits_NR[own_B].gather(1, request_of_row_B[:, None]).squeeze(1)
    item_of_column_N, item_count_N = _numbered(columns.item_id_N)
    is_masked = mask_same_user and same_user_share == 0
    is_legal_B = _count_negatives(columns, item_of_column_N, item_count_N, is_masked)[own_B] > 0
    if mask_same_user:
        is_same_user_NR = columns.user_id_N[:, None] == user_id_R
        if is_masked:
            logits_NR = logits_NR.masked_fill(is_same_user_NR, -torch.inf)
        else:
            log_weight_R = same_user_log_weight(is_same_user_NR.sum(0), num_columns, same_user_share)
            logits_NR = logits_NR + torch.where(is_same_user_NR, log_weight_R.to(logits_NR.dtype), 0.0)
            is_legal_B = is_legal_B & torch.isfinite(log_weight_R[request_of_row_B])
    negatives_B = _log_sum_of_negatives(
        logits_NR, item_of_column_N, item_count_N, own_B=own_B, request_of_row_B=request_of_row_B, is_legal_B=is_legal_B
    )
    if further_log_negatives_R is not None:
        further_B = further_log_negatives_R[request_of_row_B]
        has_further_B = torch.isfinite(further_B)
        further_B = torch.where(has_further_B, further_B, torch.finfo(further_B.dtype).min)
        both_B = torch.where(is_legal_B, torch.logaddexp(negatives_B, further_B), further_B)
        negatives_B = torch.where(has_further_B, both_B, negatives_B)
        is_legal_B = is_legal_B | has_further_B
    excess_B = torch.where(is_legal_B, negatives_B - positive_B, 0.0)
    loss_B = torch.logaddexp(excess_B, torch.zeros_like(excess_B))
    return RowLosses(loss_B=torch.where(is_legal_B, loss_B, positive_B * 0.0), is_legal_B=is_legal_B)


def check_same_user_share(same_user_share: float, mask_same_user: bool) -> None:
    """Raises ValueError if the share says nothing or contradicts `mask_same_user`."""
    if not 0 <= same_user_share < 1 or (same_user_share and not mask_same_user):
        raise ValueError(
            "same_user_share: 0 <= share < 1 required, and 0 if mask_same_user is False, found "
            f"{same_user_share} with mask_same_user={mask_same_user}"
        )


def same_user_log_weight(num_same: torch.Tensor, num_columns: int, share: float) -> torch.Tensor:
    """Log of the weight of a same-user negative, at most 0; -inf if there is no other user; see `info_nce`.

    num_same: columns of the row's user, its own one included, int64 of any shape.
    """
    ratio = (num_columns - num_same).double() / (num_same - 1).clamp(min=1)
    return torch.log((share / (1 - share) * ratio).clamp(max=1.0))


def _numbered(id_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each element's id renumbered from 0, and how often that id occurs, both [N]."""
    _, number_N, counts = torch.unique(id_N, return_inverse=True, return_counts=True)
    return number_N, counts[number_N]


def _count_negatives(
    columns: Columns, item_of_column_N: torch.Tensor, item_count_N: torch.Tensor, is_masked: bool
) -> torch.Tensor:
    """How many legal negatives each column has when it is a row, [N] int64; is_masked: those of other users alone."""
    num_columns = len(item_of_column_N)
    if not is_masked:
        return num_columns - item_count_N
    user_N, user_count_N = _numbered(columns.user_id_N)
    _, both_count_N = _numbered(user_N * num_columns + item_of_column_N)
    return num_columns - user_count_N - item_count_N + both_count_N


def _log_sum_of_negatives(
    logits_NR: torch.Tensor,
    item_of_column_N: torch.Tensor,
    item_count_N: torch.Tensor,
    *,
    own_B: torch.Tensor,
    request_of_row_B: torch.Tensor,
    is_legal_B: torch.Tensor,
) -> torch.Tensor:
    """Log of the sum of exponentials over each row's negatives, [B]; some finite number if a row has none.

    logits_NR: -inf if the user mask forbids the column.
    """
    largest_R = logits_NR.detach().amax(0)
    largest_R = torch.where(torch.isfinite(largest_R), largest_R, 0.0)
    terms_NR = torch.exp(logits_NR - largest_R)
    sum_R = terms_NR.sum(0)

    # The part of row i's sum that its own item holds: its own column (0 under the user mask), or all columns of an item
    # that occurs more than once.
    excluded_B = terms_NR[own_B].gather(1, request_of_row_B[:, None]).squeeze(1)
    repeated = torch.nonzero(item_count_N > 1).squeeze(1)
    if len(repeated):
        items, group_of_repeated = torch.unique(item_of_column_N[repeated], return_inverse=True)
        sum_GR = terms_NR.new_zeros(len(items), terms_NR.shape[1]).index_add(0, group_of_repeated, terms_NR[repeated])
        item_of_row_B = item_of_column_N[own_B]
        group_B = torch.searchsorted(items, item_of_row_B).clamp(max=len(items) - 1)
        repeated_sum_B = sum_GR.flatten()[group_B * terms_NR.shape[1] + request_of_row_B]
        excluded_B = torch.where(item_count_N[own_B] > 1, repeated_sum_B, excluded_B)

    rest_B = sum_R[request_of_row_B] - excluded_B
    is_dominated_B = is_legal_B & (excluded_B > LARGEST_SAFE_SHARE * sum_R[request_of_row_B])
    is_direct_B = is_legal_B & ~is_dominated_B
    log_sum_B = torch.log(torch.where(is_direct_B, rest_B, 1.0)) + largest_R[request_of_row_B]

    dominated = torch.nonzero(is_dominated_B).squeeze(1)
    if len(dominated):
        num_requests = logits_NR.shape[1]
        key = item_of_column_N[own_B[dominated]] * num_requests + request_of_row_B[dominated]
        pairs, pair_of_dominated = torch.unique(key, return_inverse=True)  # about one per request, never B of them
        without_item = logits_NR[:, pairs % num_requests].masked_fill(
            item_of_column_N[:, None] == pairs // num_requests, -torch.inf
        )
        log_sum_B = log_sum_B.index_put((dominated,), torch.logsumexp(without_item, 0)[pair_of_dominated])
    return log_sum_B


def scale_for_mean_over_ranks(
    loss_sum: torch.Tensor, num_global: torch.Tensor | float, world_size: int
) -> torch.Tensor:
    """A rank's loss such that DDP's average of gradients is the gradient of the mean over all ranks' rows.

    loss_sum: this rank's sum of row losses; num_global: rows that count, over all ranks. DDP divides by W whatever each
    rank holds, so uneven ranks need `sum * W / N_global`.
    """
    denominator = torch.as_tensor(num_global, dtype=loss_sum.dtype, device=loss_sum.device).clamp(min=1)
    return loss_sum * (world_size / denominator)


def info_nce_naive(
    user_RD: torch.Tensor,
    item_BD: torch.Tensor,
    *,
    request_of_row_B: torch.Tensor,
    user_id_R: torch.Tensor,
    item_id_B: torch.Tensor,
    log_q_B: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    mask_same_user: bool = True,
    same_user_share: float = 0.0,
) -> torch.Tensor:
    """The definition of `info_nce`: a double loop over the rows."""
    requests, items = request_of_row_B.tolist(), item_id_B.tolist()
    users = user_id_R[request_of_row_B].tolist()
    losses = []
    for i in range(len(items)):
        logits_B = item_BD @ user_RD[requests[i]] / temperature - log_q_B
        same = sum(users[k] == users[i] for k in range(len(items)) if k != i)
        same_user_weight = 1.0
        if mask_same_user:
            others = len(items) - 1 - same
            same_user_weight = min(1.0, same_user_share / (1 - same_user_share) * others / max(same, 1))
        weights = [same_user_weight if user == users[i] else 1.0 for user in users]
        negatives = [k for k in range(len(items)) if items[k] != items[i] and weights[k] > 0]
        if negatives:
            log_weights = torch.tensor([0.0, *(math.log(weights[k]) for k in negatives)], dtype=logits_B.dtype)
            losses.append(torch.logsumexp(logits_B[[i, *negatives]] + log_weights, 0) - logits_B[i])
    return torch.stack(losses).mean() if losses else 0.0 * (user_RD.sum() + item_BD.sum())
