"""Softmax over a catalogue, computed R x C: every item is a negative but those that the user has.

    logits         request r (once) against item c:  s(r, c) / temperature, -inf for items of r's history and positives
    row i          loss_i = log(exp(own_i) + sum over c of exp(logit)) - own_i

The rows of a request share their negatives, so the sum is taken once per request. Of a large catalogue's V items D are
drawn evenly: each negative then stands for V / D items (sampled softmax), so that the sum is right in the mean.
A row's own item that was not drawn is its positive alone; as a negative of others it would be one for certain.
`catalogue_loss_naive` is the definition, a plain loop.
"""

from __future__ import annotations

import math

import torch


def catalogue_losses(
    user_RD: torch.Tensor,
    item_CD: torch.Tensor,
    *,
    request_of_row_B: torch.Tensor,
    own_B: torch.Tensor,
    is_out_RC: torch.Tensor,
    temperature: float,
    items_per_negative: float = 1.0,
) -> torch.Tensor:
    """Loss of each row [nats], [B].

    own_B: place of each row's item among the C.  is_out_RC: items that are no negatives of a request, its rows' own
    ones among them, and those that were not drawn.  items_per_negative: V / D; 1 if the C are the whole catalogue.
    """
    logit_RC = (user_RD @ item_CD.mT) / temperature
    if logit_RC.dtype in (torch.float16, torch.bfloat16):
        logit_RC = logit_RC.float()
    own_logit_B = logit_RC.flatten()[request_of_row_B * logit_RC.shape[1] + own_B]
    # The least finite number instead of -inf: a request without any negative then has loss 0 and no NaN gradient.
    lowest = torch.finfo(logit_RC.dtype).min
    negatives_R = logit_RC.masked_fill(is_out_RC, lowest).logsumexp(1)
    negatives_R = negatives_R + math.log(items_per_negative)
    excess_B = negatives_R[request_of_row_B] - own_logit_B
    return torch.logaddexp(excess_B, torch.zeros_like(excess_B))


def catalogue_loss_naive(
    user_RD: torch.Tensor,
    item_CD: torch.Tensor,
    *,
    request_of_row_B: torch.Tensor,
    own_B: torch.Tensor,
    is_out_RC: torch.Tensor,
    temperature: float,
    items_per_negative: float = 1.0,
) -> torch.Tensor:
    """The definition of `catalogue_losses`: a loop over the rows."""
    losses = []
    for r, own in zip(request_of_row_B.tolist(), own_B.tolist()):
        logits = item_CD @ user_RD[r] / temperature
        total = logits[own].exp()
        for c in range(len(item_CD)):
            if not is_out_RC[r, c]:
                total = total + items_per_negative * logits[c].exp()
        losses.append(total.log() - logits[own])
    return torch.stack(losses) if losses else user_RD.sum(1)[:0] + 0.0 * item_CD.sum()
