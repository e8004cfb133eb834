"""InfoNCE over in-batch negatives with identity and same-user masks and logQ correction, computed R x N.

    logits            request r (user tower, once) against every column n:  s(r, n) / temperature - log_q_n
    row i             positive: its own column;  negatives: columns n with item_n != item_i and user_n != user_i
    loss_i            log(exp(pos_i) + sum over its negatives exp(logit)) - pos_i

The rows of a request share their negatives up to the identity mask, so no B x B matrix is ever made: the sum over all
columns of other users is taken once per request, and the columns that carry row i's own item are taken out of it. Taking
out by subtraction is safe while they hold at most half of the sum; where they hold more (at most one item per request
can) the rest is summed again without them. Exact in value and gradient, stable for any finite logit.

Without ranks N = B, the rows of this batch.
`info_nce_naive` is the definition, a plain double loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LARGEST_SAFE_SHARE = 0.5
"""Subtracting up to this share of a sum costs at most one bit; two disjoint parts cannot both hold more."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What rows are contrasted with: N items, each with the user whose row it came from.

    item_ND: item tower output.  item_id_N, user_id_N: int64.  log_q_N: log-probability of the item as a negative, finite.
    first_own: this batch's row i is column first_own + i.
    """

    item_ND: torch.Tensor
    item_id_N: torch.Tensor
    user_id_N: torch.Tensor
    log_q_N: torch.Tensor
    first_own: int = 0


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Loss of each row [nats], 0 where it has no legal negative, and which rows have one."""

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
) -> torch.Tensor:
    """Mean InfoNCE loss [nats per row] over in-batch negatives with logQ correction.

    The mean runs over the rows that have a legal negative: a row of another item and, with `mask_same_user`, of another
    user. Where no row has one, it is 0 with a (zero) gradient. Request-sorted batches need the user mask: a user's other
    rows are items the same user engaged with, false negatives in up to a third of all pairs.

    user_RD: [R, D], once per request.  item_BD: [B, D].  request_of_row_B, item_id_B: [B] int64.  user_id_R: [R] int64.
    log_q_B: [B], log-probability of each row's item under the distribution rows are drawn from; finite. It is subtracted
        from the logits, the positive's too.
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
) -> RowLosses:
    """The InfoNCE loss of every row of this batch against `columns`; see `info_nce` for the rest.

    With uneven ranks, sum the losses, count the legal rows over all ranks, and scale: `scale_for_mean_over_ranks`.
    """
    num_rows, num_columns = len(item_id_B), len(columns.item_id_N)
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
    is_legal_B = _count_negatives(columns, item_of_column_N, item_count_N, mask_same_user)[own_B] > 0
    if mask_same_user:
        logits_NR = logits_NR.masked_fill(columns.user_id_N[:, None] == user_id_R, -torch.inf)
    negatives_B = _log_sum_of_negatives(
        logits_NR, item_of_column_N, item_count_N, own_B=own_B, request_of_row_B=request_of_row_B, is_legal_B=is_legal_B
    )
    excess_B = torch.where(is_legal_B, negatives_B - positive_B, 0.0)
    loss_B = torch.logaddexp(excess_B, torch.zeros_like(excess_B))
    return RowLosses(loss_B=torch.where(is_legal_B, loss_B, positive_B * 0.0), is_legal_B=is_legal_B)


def _numbered(id_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each element's id renumbered from 0, and how often that id occurs, both [N]."""
    _, number_N, counts = torch.unique(id_N, return_inverse=True, return_counts=True)
    return number_N, counts[number_N]


def _count_negatives(
    columns: Columns, item_of_column_N: torch.Tensor, item_count_N: torch.Tensor, mask_same_user: bool
) -> torch.Tensor:
    """How many legal negatives each column has when it is a row, [N] int64."""
    num_columns = len(item_of_column_N)
    if not mask_same_user:
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
    """Log of the sum of exponentials over each row's negatives, [B]; some finite number where a row has none.

    logits_NR: -inf where the user mask forbids the column.
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
) -> torch.Tensor:
    """The definition of `info_nce`: a double loop over the rows."""
    requests, items = request_of_row_B.tolist(), item_id_B.tolist()
    users = user_id_R[request_of_row_B].tolist()
    losses = []
    for i in range(len(items)):
        logits_B = item_BD @ user_RD[requests[i]] / temperature - log_q_B
        negatives = [
            k for k in range(len(items)) if items[k] != items[i] and not (mask_same_user and users[k] == users[i])
        ]
        if negatives:
            losses.append(torch.logsumexp(logits_B[[i, *negatives]], 0) - logits_B[i])
    return torch.stack(losses).mean() if losses else 0.0 * (user_RD.sum() + item_BD.sum())
