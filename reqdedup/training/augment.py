"""What training does to a batch that evaluation does not: events are hidden, or the user's judgements change order.

A hidden event keeps its place and loses its item and categories, so that the model does not learn to lean on single
events. Where a log holds judgements of things known anyhow (ratings in one sitting), their order says little: a user's
rows in another order are as good an example of the same user, with other histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.schema import HISTORY_END

HIDDEN = -(2**62)
"""The item of a hidden event, an id that no log has."""


def hide_events(batch: RequestBatch, share: float) -> RequestBatch:
    """The batch with this share of its events hidden, drawn by torch's generator; the batch given stays as it is."""
    if not share or not batch.num_history_tokens:
        return batch
    is_hidden_T = torch.rand(batch.num_history_tokens, device=batch.item_id_B.device) < share
    history = {}
    for name, x_T in batch.history.items():
        if x_T.dtype == torch.bool:
            x_T = x_T.to(torch.int8)  # which has a value beside both
        if not x_T.is_floating_point():
            x_T = torch.where(is_hidden_T, HIDDEN if x_T.dtype == torch.int64 else -1, x_T)
        history[name] = x_T
    return replace(batch, history=history)


def permute_judgements(batch: RequestBatch, labels: Sequence[str], cut: HistoryCut) -> RequestBatch:
    """The batch with each user's rows in a new order, drawn by torch's generator, and histories that follow from it.

    The history of a row becomes the user's rows of this batch before it in that order: item_id, and action, whose bit i
    says that label i was positive. Of users whose rows are one request each; what a request says beside is as before.
    labels: all of the log, in its order, by which its own histories number the bits.  cut: of longer histories.
    Raises ValueError for requests of several rows, and for histories with other columns.
    """
    others = sorted(set(batch.history) - {"item_id", "action"})
    if others or batch.num_rows != batch.num_requests:
        found = f"history columns {others}" if others else f"{batch.num_rows} rows in {batch.num_requests} requests"
        raise ValueError(
            "training: permute_judgements needs requests of one row and histories of item_id and action alone, found "
            f"{found}; switch it off, or leave these columns out of the model"
        )
    device = batch.item_id_B.device
    action_B = batch.item_id_B.new_zeros(batch.num_rows, dtype=torch.int32)
    for bit, label in enumerate(labels):
        action_B += (batch.row[label] > 0).int() << bit
    _, user_R = torch.unique(batch.user_id_R, return_inverse=True)
    order = torch.rand(batch.num_rows).argsort().to(device)
    order = order[user_R[order].argsort(stable=True)]  # by user, and within a user at random
    first_U = torch.cat([user_R.new_zeros(1), user_R.bincount().cumsum(0)])[:-1]
    place_R = torch.empty_like(order)
    place_R[order] = torch.arange(len(order), device=device)
    end_R = place_R - first_U[user_R]
    start_R = torch.from_numpy(cut.start_of(end_R.cpu().numpy())).to(device)
    offsets_R1 = torch.cat([end_R.new_zeros(1), (end_R - start_R).cumsum(0)])
    begin_T = torch.repeat_interleave(first_U[user_R] + start_R - offsets_R1[:-1], end_R - start_R)
    event_T = order[begin_T + torch.arange(int(offsets_R1[-1]), device=device)]
    history = {"item_id": batch.item_id_B[event_T]}
    if "action" in batch.history:
        history["action"] = action_B[event_T].to(batch.history["action"].dtype)
    request = dict(batch.request)
    if HISTORY_END in request:
        request[HISTORY_END] = end_R
    return replace(batch, history=history, history_offsets_R1=offsets_R1, request=request)
