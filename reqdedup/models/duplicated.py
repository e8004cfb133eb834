"""The same models computed B times: the law that the deduplicated ones must equal, and the baseline to beat.

Each row gets its own copy of its request (`duplicate`), and a plain transformer runs over the padded sequences
[history ; candidate]. Parameters and their names are those of the deduplicated twin, so a state_dict fits both.
It is naive in what it computes, not in how: batched attention, one padding for all, and a last layer that computes only
the position that is read, as a sensible implementer would.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from reqdedup.batch import RequestBatch
from reqdedup.models.transformer import HistoryTransformer, HSTULayer, Layer, Rotation
from reqdedup.ops.pointwise_attention import bucket_of


def duplicate(batch: RequestBatch) -> RequestBatch:
    """The batch as B requests of one row each: every request-level value and history copied to each of its rows."""
    if batch.num_requests == batch.num_rows and torch.equal(batch.request_of_row_B, batch.row_offsets_R1[:-1]):
        return batch
    request_of_row_B = batch.request_of_row_B
    start_B, length_B = batch.history_offsets_R1[request_of_row_B], batch.history_offsets_R1.diff()[request_of_row_B]
    offsets_B1 = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
    position = torch.arange(int(offsets_B1[-1]), device=length_B.device)
    token = position + torch.repeat_interleave(start_B - offsets_B1[:-1], length_B)
    row_B1 = torch.arange(batch.num_rows + 1, device=length_B.device)
    return RequestBatch(
        user_id_R=batch.user_id_R[request_of_row_B],
        item_id_B=batch.item_id_B,
        request_of_row_B=row_B1[:-1],
        row_offsets_R1=row_B1,
        history_offsets_R1=offsets_B1,
        request={name: x_R[request_of_row_B] for name, x_R in batch.request.items()},
        row=batch.row,
        history={name: x_T[token] for name, x_T in batch.history.items()},
    )


def pad_histories(x_TD: torch.Tensor, offsets_B1: torch.Tensor, *, longest: int) -> torch.Tensor:
    """Packed histories as a rectangle [B, longest, D], zeros behind each."""
    length_B = offsets_B1.diff()
    cell_BS = torch.arange(longest, device=x_TD.device) < length_B[:, None]
    x_BSD = x_TD.new_zeros(len(length_B), longest, x_TD.shape[1])
    x_BSD[cell_BS] = x_TD
    return x_BSD


def attend(
    layer: Layer,
    x_BSD: torch.Tensor,
    rotation: Rotation | None,
    *,
    sees_B1SS: torch.Tensor | None,
    read_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """One layer over rectangles, causal unless `sees` says what each position sees.

    read_B: compute only this position of each row, [B, D] then.
    """
    normed = layer.attention_norm(x_BSD)
    key, value = layer.keys_values(normed, rotation)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    if read_B is None:
        query = layer.queries(normed, rotation).transpose(1, 2)
        attended = read(layer, query, key, value, sees=sees_B1SS)
        return layer.finish(x_BSD, attended.transpose(1, 2))
    row_B = torch.arange(len(read_B), device=read_B.device)
    if rotation is not None:
        rotation = tuple(x.expand(len(read_B), -1, -1, -1)[row_B, read_B][:, None] for x in rotation)  # type: ignore[assignment]
    query = layer.queries(normed[row_B, read_B][:, None], rotation).transpose(1, 2)
    sees = torch.arange(x_BSD.shape[1], device=read_B.device) <= read_B[:, None]
    attended = read(layer, query, key, value, sees=sees[:, None, None, :], position_B=read_B)
    return layer.finish(x_BSD[row_B, read_B], attended.transpose(1, 2)[:, 0])


def read(
    layer: Layer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    sees: torch.Tensor | None,
    position_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention of a layer over rectangles [B, H, S, K]. position_B: of the one query of each row, if it is one."""
    if not isinstance(layer, HSTULayer):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=sees, is_causal=sees is None)
    token = torch.arange(key.shape[2], device=key.device)
    query_position = token[None, :, None] if position_B is None else position_B[:, None, None]
    distance = query_position - token
    score = query @ key.mT + layer.distance_bias[:, bucket_of(distance.clamp(min=0))].transpose(0, 1)
    return (score * score.sigmoid() * (distance >= 0)[:, None]) @ value


def transformer_pass(
    transformer: HistoryTransformer, x_BSD: torch.Tensor, length_B: torch.Tensor, *, read_candidate: bool
) -> torch.Tensor:
    """The transformer over rectangles of histories: [B, S, D].

    read_candidate: a candidate stands behind each history, and only its position is read, [B, D].
    """
    read_B = length_B if read_candidate else None
    position = torch.arange(x_BSD.shape[1], device=x_BSD.device)[None]
    sees_B1SS = None
    if not transformer.is_causal:  # all events of the history, and oneself
        is_event_B1S = position[:, None] < length_B[:, None, None]
        sees_B1SS = (is_event_B1S | (position[:, :, None] == position[:, None]))[:, None]
    if transformer.positions.from_end:
        position = (length_B[:, None] - position).clamp(min=0)
    x_BSD = transformer.positions.add(x_BSD, position)
    rotation = transformer.positions.rotation(position, x_BSD.dtype)
    last = len(transformer.layers) - 1
    for number, layer in enumerate(transformer):
        x_BSD = attend(layer, x_BSD, rotation, sees_B1SS=sees_B1SS, read_B=read_B if number == last else None)
    return x_BSD
