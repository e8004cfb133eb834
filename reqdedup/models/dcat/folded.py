"""A DCAT for inference: the same logits from fewer and larger matrix products, without calls of modules.

    scale and shift of a LayerNorm     into the product that reads it
    query, key and value               one product
    BatchNorm of the head              into the product before it
    projection of a request's vector   into the head's first product
    candidate marker                   into the learned positions

What a kept context lacks and the candidates of a step are a few rows each, and there calls cost as much as arithmetic:
without them a step takes about two thirds of the time. `DCAT.encode_context` and `DCAT.score` are the definition.
Embedding tables are those of the model; all other weights are copies, which do not follow it when it learns.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from reqdedup.batch import RequestBatch
from reqdedup.models.dcat.block_context import BlockContext, BlockContexts, Blocks, KVType, Slab
from reqdedup.models.derived import with_derived
from reqdedup.models.inputs import HashedEmbedding, column, hashed_row, squeezed
from reqdedup.models.transformer import HSTULayer, Layer, Rotation, SoftmaxLayer, rotate
from reqdedup.ops.attention import Attention
from reqdedup.ops.pointwise_attention import Pointwise

if TYPE_CHECKING:
    from reqdedup.models.dcat.model import DCAT

DEFAULT_BLOCKS = Blocks()
EXACT_ROWS = 16
"""Rows of a tile of the CPU's matrix products."""

TOGETHER_AT_MOST = 64
"""Events of a block that is computed together with those of other histories: larger ones gain nothing."""

Product = tuple[torch.Tensor, torch.Tensor]
"""Weight [in, out] and bias [out]: few rows are multiplied faster than with a weight [out, in]."""

Asked = tuple[Mapping[str, torch.Tensor], BlockContext | None, int]
"""A history, a kept context or None, and how many events the two begin with."""


@dataclass
class _Growing:
    """A context that is being computed: `slab` holds what there is, `blocks` are still to come.

    length: events of the history.  begin: those that were taken over.
    """

    history: Mapping[str, torch.Tensor]
    length: int
    begin: int
    slab: Slab
    blocks: list[tuple[int, int]]

    def events(self) -> dict[str, torch.Tensor]:
        """Of the next block; the last event is repeated if there are no more."""
        first, end = self.blocks[0]
        if end <= self.length:
            return {name: x_L[first:end] for name, x_L in self.history.items()}
        more = end - self.length
        return {name: torch.cat([x_L[first:], x_L[-1:].expand(more)]) for name, x_L in self.history.items()}

    def take(self, keys_values: Sequence[torch.Tensor]) -> None:
        """The next block was computed, [N, 2, H, K] of each layer: what is new and no padding goes into the slab."""
        first, end = self.blocks.pop(0)
        begin, end = max(first, self.begin), min(end, self.length)
        self.slab = self.slab.appended(begin, [x_N2HK[begin - first : end - first] for x_N2HK in keys_values])


class _FoldedLayer:
    """`Layer`: query, key and value are one product of its normed input.

    attention: with weights of its own, if it has any.
    """

    attention: Attention

    def __init__(self, layer: Layer) -> None:
        self.heads = layer.num_heads, layer.query.out_features // layer.num_heads
        query, key_value = (_behind(layer.attention_norm, linear) for linear in (layer.query, layer.key_value))
        self.query_key_value = torch.cat([query[0], key_value[0]], dim=1), torch.cat([query[1], key_value[1]])
        self.key_value = key_value
        self.output, self.eps = _copy(layer.output), layer.attention_norm.eps

    def project(self, x_ND: torch.Tensor, rotation: Rotation | None, *, with_query: bool = True) -> torch.Tensor:
        """Query, key and value [N, 3, H, K]; without the query [N, 2, H, K]."""
        product = self.query_key_value if with_query else self.key_value
        projected = self.activated(_times(_normed(x_ND, self.eps), product))
        x = projected.view(x_ND.shape[0], 3 if with_query else 2, *self.heads)
        if rotation is not None:
            x[:, :-1] = rotate(x[:, :-1], (rotation[0][:, None], rotation[1][:, None]))
        return x

    def activated(self, projected: torch.Tensor) -> torch.Tensor:
        return projected

    def finish(self, x_ND: torch.Tensor, attended_NHK: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # each kind of layer has its own


class _FoldedSoftmaxLayer(_FoldedLayer):
    def __init__(self, layer: SoftmaxLayer) -> None:
        super().__init__(layer)
        self.attention, self.ffn_out = layer.attention, _copy(layer.ffn_out)
        self.ffn_in, self.ffn_eps = _behind(layer.ffn_norm, layer.ffn_in), layer.ffn_norm.eps

    def finish(self, x_ND: torch.Tensor, attended_NHK: torch.Tensor) -> torch.Tensor:
        x_ND = _times(attended_NHK.flatten(1), self.output).add_(x_ND)
        hidden = F.gelu(_times(_normed(x_ND, self.ffn_eps), self.ffn_in))
        return _times(hidden, self.ffn_out).add_(x_ND)


class _FoldedHSTULayer(_FoldedLayer):
    def __init__(self, layer: HSTULayer) -> None:
        super().__init__(layer)
        self.attention, self.gate = Pointwise(layer.distance_bias.clone()), _behind(layer.attention_norm, layer.gate)
        norm = layer.attended_norm
        self.attended_norm = norm.weight.clone(), norm.bias.clone(), norm.eps

    def activated(self, projected: torch.Tensor) -> torch.Tensor:
        return F.silu(projected)

    def finish(self, x_ND: torch.Tensor, attended_NHK: torch.Tensor) -> torch.Tensor:
        gate = F.silu(_times(_normed(x_ND, self.eps), self.gate))
        normed = torch.layer_norm(attended_NHK.flatten(1), x_ND.shape[1:], *self.attended_norm)
        return _times(normed * gate, self.output).add_(x_ND)


def _folded(layer: Layer) -> _FoldedLayer:
    if isinstance(layer, HSTULayer):
        return _FoldedHSTULayer(layer)
    assert isinstance(layer, SoftmaxLayer)
    return _FoldedSoftmaxLayer(layer)


class FoldedDCAT:
    """Contexts and logits of a DCAT in evaluation mode. Threads may share it."""

    @torch.inference_mode()
    def __init__(self, model: DCAT) -> None:
        """Raises ValueError for a model in training mode."""
        model.check_evaluates()
        self.config, self._embedding, self._transformer = model.config, model.embedding, model.transformer
        self._positions, table = model.transformer.positions, model.transformer.positions.table
        self._marker = model.candidate_marker.clone()
        self._event_position = None if table is None else table.weight
        self._candidate_position = None if table is None else table.weight + self._marker
        self._layers = [_folded(layer) for layer in model.transformer]
        self._eps, self._item_bias = model.final_norm.eps, model.item_bias
        self._known = model.embedding.known
        if self._known is not None:  # projected ahead: bits of an event do not depend on how many there are
            self._known_VD = self._known.project(self._known.vector_VW.to(self._marker.dtype))
        self._fold_head(model)

    def _fold_head(self, model: DCAT) -> None:
        head, features = model.head, model.features
        self._features = features
        first, request = _behind(model.final_norm, model.head_in), model.head_in_request
        self._of_category = [*zip(features.categories, features.of_category, strict=True)]
        self._request: torch.Tensor | None = None
        if request is not None:
            (weight, bias), parts = first, list(request.weight.T.split(features.widths))
            for number, project in enumerate(features.of_vector, start=len(features.categories)):
                bias = bias + project.bias @ parts[number]
                parts[number] = project.weight.T @ parts[number]
            first = weight, bias
            self._request = torch.cat(parts) * _scale_shift(head.norms[0])[0]
        self._head_in = _before(head.norms[0], first)
        self._head: list[Product] = []
        for number, linear in enumerate(head.linears, start=1):
            assert isinstance(linear, nn.Linear)
            product = _copy(linear)
            self._head.append(_before(head.norms[number], product) if number < len(head.norms) else product)

    @torch.inference_mode()
    def encode_together(
        self, histories: Sequence[Asked], *, blocks: Blocks | None = DEFAULT_BLOCKS, kv_type: KVType = "full"
    ) -> list[BlockContext]:
        """`DCAT.encode_blocks` of several; of each the last few events are computed together."""
        growing = [self._growing(*one, blocks, kv_type) for one in histories]
        for one in growing:
            while len(one.blocks) > 1 or (one.blocks and one.blocks[0][1] - one.blocks[0][0] > TOGETHER_AT_MOST):
                self._append([one])
        if last := [one for one in growing if one.blocks]:
            self._append(last)
        return [BlockContext(one.slab, one.length, blocks) for one in growing]

    def _growing(
        self,
        history: Mapping[str, torch.Tensor],
        kept: BlockContext | None,
        num_shared: int,
        blocks: Blocks | None,
        kv_type: KVType,
    ) -> _Growing:
        length = len(column(history, "item_id", "history"))
        self._transformer.check_grows(length)
        if kept is not None and kept.blocks != blocks:
            raise ValueError(f"encode_blocks: {blocks} required, found {kept.blocks} in `kept`")
        if kept is None:
            heads = (self.config.num_heads, self.config.head_width)
            begin, slab = 0, Slab.empty(self.config.num_layers, length, heads, like=self._marker, kv_type=kv_type)
        else:
            begin, slab = kept.reusable(length, num_shared), kept.slab
        whole = [(begin, length)] if begin < length else []
        return _Growing(history, length, begin, slab, whole if blocks is None else list(blocks.between(begin, length)))

    def _append(self, growing: Sequence[_Growing]) -> None:
        """Computes the next block of each."""
        events = [one.events() for one in growing]
        if len(events) > 1:
            events = [{name: torch.cat([x[name] for x in events]) for name in events[0]}]
        spans = [one.blocks[0] for one in growing]
        lengths = [end - first for first, end in spans]
        x_ND, rotation = self._placed(self._embed(events[0]), spans)
        keys_values = []
        for number, layer in enumerate(self._layers):
            is_last = number == len(self._layers) - 1  # of which nobody reads more than keys and values
            projected = layer.project(x_ND, rotation, with_query=not is_last)
            keys_values.append(projected[:, -2:])
            if not is_last:
                attended = [
                    layer.attention.append(q, k, v, *one.slab.first(first, number, x_ND.dtype))
                    for q, k, v, one, (first, _) in zip(
                        *(x.split(lengths) for x in projected.unbind(1)), growing, spans, strict=True
                    )
                ]
                x_ND = layer.finish(x_ND, attended[0] if len(attended) == 1 else torch.cat(attended))
        for one, *new in zip(growing, *(x.split(lengths) for x in keys_values), strict=True):
            one.take(new)

    def _embed(self, history: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x_ND = self._items(column(history, "item_id", "history"))
        for name, table in zip(self._embedding.history_categories, self._embedding.of_event, strict=True):
            x_ND += _looked_up(table, column(history, name, "history"))
        return x_ND

    def _items(self, item_id_N: torch.Tensor) -> torch.Tensor:
        x_ND = _looked_up(self._embedding.item, item_id_N)
        return x_ND if self._known is None else x_ND + self._known.of(item_id_N, self._known_VD)

    def _placed(self, x_ND: torch.Tensor, spans: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, Rotation | None]:
        """Events at their positions, and the rotation of rope. Those beyond a learned table are padding: they stand at
        its last place."""
        places = [torch.arange(first, end, device=x_ND.device) for first, end in spans]
        position_N = places[0] if len(places) == 1 else torch.cat(places)
        if self._event_position is None:
            return x_ND, self._positions.rotation(position_N, x_ND.dtype)
        last = len(self._event_position) - 1
        return x_ND.add_(torch.embedding(self._event_position, position_N.clamp_(max=last))), None

    @torch.inference_mode()
    def predict_exact(self, batch: RequestBatch, contexts: Sequence[BlockContext] | None = None) -> torch.Tensor:
        """Logits [B, num_labels]; see `DCAT.predict_exact`."""
        if contexts is None:
            bounds = itertools.pairwise(batch.history_offsets_R1.tolist())
            histories = [{name: x_T[begin:end] for name, x_T in batch.history.items()} for begin, end in bounds]
            contexts = [self.encode_together([(history, None, 0)])[0] for history in histories]
        return self.score(contexts, batch, is_exact=True)

    @torch.inference_mode()
    def score(self, contexts: Sequence[BlockContext], batch: RequestBatch, *, is_exact: bool) -> torch.Tensor:
        """Logits [B, num_labels]; `DCAT.score`, which has `is_exact` too."""
        if len(contexts) != batch.num_requests:
            raise ValueError(
                f"score: a context of the batch's {batch.num_requests} requests required, found {len(contexts)}"
            )
        num_logits, num_rows = batch.num_rows, None
        if is_exact:
            num_rows = tuple(batch.row_offsets_R1.diff().tolist())
            batch = batch.with_padded_rows(EXACT_ROWS)
        x_BD = self._cross(BlockContexts(tuple(contexts), num_rows), batch)
        hidden_B = _times(_normed(x_BD, self._eps), self._head_in)
        if self._request is not None:
            hidden_B = self._add(hidden_B, self._shares(batch, is_exact=is_exact), batch)
        for product in self._head:
            hidden_B = _times(F.relu_(hidden_B), product)
        if self._item_bias is not None:
            hidden_B += _looked_up(self._item_bias, batch.item_id_B)
        return hidden_B[:num_logits]

    def _cross(self, contexts: BlockContexts, batch: RequestBatch) -> torch.Tensor:
        """The candidates after all layers, [B, D]."""
        x_BD = self._items(batch.item_id_B)
        row = with_derived(self._embedding.derived, batch.row)
        for name, table in zip(self._embedding.item_categories, self._embedding.of_item, strict=True):
            x_BD += _looked_up(table, column(row, name, "row"))
        if self._embedding.of_numbers is not None:
            x_BD += self._embedding.of_numbers(self._embedding.numbers(row, x_BD.dtype))
        length_R = contexts.request_lengths.to(x_BD.device)
        rotation = None
        if self._candidate_position is None:
            x_BD += self._marker
            rotation = self._positions.rotation(batch.expand(length_R), x_BD.dtype)
        else:
            x_BD = self._add(x_BD, torch.embedding(self._candidate_position, length_R), batch)
        for number, layer in enumerate(self._layers):
            query, key, value = layer.project(x_BD, rotation).unbind(1)
            rows = (query, key, value, batch.row_offsets_R1)
            x_BD = layer.finish(x_BD, contexts.attend(number, *rows, attention=layer.attention))
        return x_BD

    def _shares(self, batch: RequestBatch, *, is_exact: bool) -> torch.Tensor:
        """What each request's features add to the head's first layer, [R, first hidden width]."""
        assert self._request is not None
        dtype, num_requests = self._marker.dtype, batch.num_requests
        request = with_derived(self._features.derived, batch.request)
        parts = [_looked_up(table, column(request, name, "request")) for name, table in self._of_category]
        parts += [column(request, name, "request").to(dtype) for name, _ in self.config.request_vectors]
        parts += [squeezed(column(request, x, "request"), dtype)[:, None] for x in self.config.request_numbers]
        parts += [request[name].to(dtype) for name, _ in self._features.derived_numbers]
        features_RF = torch.cat(parts, dim=1)
        if is_exact and num_requests:
            features_RF = F.pad(features_RF, (0, 0, 0, -num_requests % EXACT_ROWS))
        return (features_RF @ self._request)[:num_requests]

    def _add(self, x_BD: torch.Tensor, of_request_RD: torch.Tensor, batch: RequestBatch) -> torch.Tensor:
        return x_BD.add_(of_request_RD if of_request_RD.shape[0] == 1 else batch.expand(of_request_RD))


def _normed(x_ND: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.layer_norm(x_ND, x_ND.shape[1:], None, None, eps)


def _looked_up(table: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    if not isinstance(table, HashedEmbedding):  # of 8-bit numbers
        return table(ids)
    return torch.embedding(table.weight, hashed_row(ids, table.num_embeddings))


def _times(x_ND: torch.Tensor, product: Product) -> torch.Tensor:
    return torch.addmm(product[1], x_ND, product[0])


def _copy(linear: nn.Linear) -> Product:
    return linear.weight.T.contiguous(), linear.bias.clone()


def _behind(norm: nn.LayerNorm, linear: nn.Linear) -> Product:
    """The linear layer over what the norm does without scale and shift."""
    return (linear.weight * norm.weight).T.contiguous(), linear.bias + linear.weight @ norm.bias


def _before(norm: nn.Module, product: Product) -> Product:
    """The product, then a BatchNorm in evaluation."""
    scale, shift = _scale_shift(norm)
    return product[0] * scale, product[1] * scale + shift


def _scale_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What a BatchNorm in evaluation does to each of its inputs, [D] twice."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale
