"""Retrieval: masked InfoNCE over in-batch negatives with logQ; held-out positives ranked in a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Self, cast

import numpy as np
import torch
from torch import nn

from reqdedup.arrays.places import places_in
from reqdedup.batch import RequestBatch
from reqdedup.models import TwoTower, TwoTowerConfig
from reqdedup.models.two_tower.context import with_shuffled_context, without_context
from reqdedup.ops.places import places_of
from reqdedup.training.catalogue import Catalogue
from reqdedup.training.catalogue_loss import catalogue_losses
from reqdedup.training.config import TrainingConfig
from reqdedup.training.frequency import ItemFrequency, StreamingFrequency
from reqdedup.training.gather import gather_columns
from reqdedup.training.judgement.catalogue_ranks import (
    ROUNDING_OF_COSINES,
    best_places,
    holds,
    ranks_of_rows,
    seen_places,
)
from reqdedup.training.judgement.outcomes import Ranked, rows_of
from reqdedup.training.loss import Columns, row_losses
from reqdedup.training.split import Split
from reqdedup.training.survey import Survey
from reqdedup.training.tasks.task import LoaderOf


@dataclass(frozen=True)
class _Items:
    """All items of the log with their columns, on the device. item_id_V: rising."""

    item_id_V: torch.Tensor
    columns: dict[str, torch.Tensor]

    @classmethod
    def of(cls, catalogue: Catalogue, device: torch.device) -> _Items:
        columns = {name: torch.from_numpy(x_V).to(device) for name, x_V in catalogue.columns.items()}
        return cls(torch.from_numpy(catalogue.item_id_V).to(device), columns)

    def drawn(
        self, most: int, own_id_B: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor | None]:
        """Ids (rising) and columns of all items, or of at most `most` drawn by torch's generator and of `own_id_B`; and
        which of them were drawn, [C] bool, None if all items are there."""
        if len(self.item_id_V) <= most:
            return self.item_id_V, self.columns, None
        drawn = torch.randint(len(self.item_id_V), (most,), device=self.item_id_V.device)
        place = torch.cat([drawn, torch.searchsorted(self.item_id_V, own_id_B)]).unique()
        columns = {name: x_V[place] for name, x_V in self.columns.items()}
        return self.item_id_V[place], columns, torch.isin(place, drawn)


class Retrieval:
    """A model of two towers; it says the rank of held-out positives in a catalogue.

    learns_from_labels: from the rows alone whose label is positive.
    """

    learns_from_labels = True

    def __init__(
        self,
        config: TrainingConfig,
        catalogue: Catalogue,
        device: torch.device,
        num_requests: Mapping[int, int] | None = None,
    ) -> None:
        model = config.model
        self.has_row_heads = getattr(model, "has_row_heads", False)
        if self.has_row_heads and config.negatives == "catalogue":
            raise ValueError(
                "training: negatives='batch' required with context_from='positive', whose user vectors are of rows, "
                "found 'catalogue'"
            )
        self.num_requests, self.learned_until_us = num_requests or {}, 0
        self.config = config
        self.conversions = config.conversion_loss
        if self.conversions is not None and self.has_row_heads:
            raise ValueError(
                "training: context_from='logged' required with positives, hard negatives or groups, found 'positive'"
            )
        labels = self.conversions.columns if self.conversions is not None else ()
        own = (config.positive_label,) if config.positive_label else ()
        self.columns = tuple(dict.fromkeys((*model.columns, *labels, *own)))
        self.judged_label = config.positive_label
        self.positive_label = config.positive_label if self.conversions is None else None
        self.item_columns = model.item_columns
        item_id_C, columns = catalogue.sample(config.catalogue_items, config.seed)
        self.catalogue = item_id_C.to(device), {name: column.to(device) for name, column in columns.items()}
        self.counts = catalogue
        self.items = _Items.of(catalogue, device) if config.negatives == "catalogue" else None
        self.frequency: ItemFrequency | StreamingFrequency | None = None
        if config.negatives == "catalogue":
            pass  # a softmax over all items needs no correction
        elif config.log_q == "exact":
            self.frequency = ItemFrequency.from_counts(catalogue.item_id_V, catalogue.count_V).to(device)
        elif config.log_q == "streaming":
            self.frequency = StreamingFrequency(4 * len(catalogue.item_id_V) + 1)

    @classmethod
    def prepare(cls, config: TrainingConfig, loader_of: LoaderOf, device: torch.device, train: Split) -> Self:
        """Raises ValueError for a log that nothing can be learned from; see `Survey`."""
        requests = config.requests_per_step if config.gather_negatives else config.requests_per_rank
        if config.negatives == "batch" and config.mask_same_user and requests < 2:
            raise ValueError(
                f"training: at least two requests that are contrasted in a step required, found {requests}, whose "
                "negatives mask_same_user takes out; raise requests_per_step"
            )
        label, items = config.positive_label, config.model.item_columns
        labels: tuple[str, ...] = (label,) if label else ()
        if not cls.learns_from_labels:
            label = None
        if config.conversion_loss is not None:  # reads all rows of a request
            label, labels = None, config.conversion_loss.labels
        survey = Survey.of(config.model, train, positive_label=label, chunk_rows=config.chunk_rows)
        loader = loader_of(tuple(dict.fromkeys((*items, *survey.columns, *labels))), on_block=survey.count)
        batches = survey.passing(chain([loader.empty_batch()], loader))
        catalogue = Catalogue.read(batches, items, counted=train, labels=labels)
        survey = survey.over_ranks()
        survey.check_rows()
        survey.check_inputs()
        survey.warn_of_impressions(catalogue.varying)
        num_items = int((catalogue.count_V > 0).sum())
        survey.check_contrast(num_items, mask_same_user=config.mask_same_user and config.negatives == "batch")
        task = cls(config, catalogue, device, survey.num_requests)
        task.learned_until_us = survey.newest_counted_us
        return task

    def inputs(self, batch: RequestBatch) -> tuple[Any, ...]:
        """The items that a softmax runs over: all, or some that are drawn, and the batch's own. See `_Items.drawn`."""
        if self.items is None:
            return ()
        return (self.items.drawn(self.config.negatives_per_step, batch.item_id_B),)

    def loss(
        self, outputs: tuple[torch.Tensor, torch.Tensor], batch: RequestBatch, *inputs: Any
    ) -> tuple[torch.Tensor, int]:
        """inputs: see `inputs`; the items of `outputs` are then these."""
        user_RD, item_BD = outputs
        if inputs:
            return self._catalogue_loss(user_RD, item_BD, batch, *inputs[0])
        if self.conversions is not None:
            return self.conversions(user_RD, item_BD, batch, self._log_q(batch.item_id_B))
        columns = Columns(
            item_ND=item_BD,
            item_id_N=batch.item_id_B,
            user_id_N=batch.user_id_R[batch.request_of_row_B],
            log_q_N=self._log_q(batch.item_id_B),
        )
        request_of_row_B, user_id_R = batch.request_of_row_B, batch.user_id_R
        if self.has_row_heads:  # each row counts as a request of its own
            request_of_row_B = torch.arange(batch.num_rows, device=user_RD.device)
            user_id_R = columns.user_id_N
        losses = row_losses(
            user_RD,
            gather_columns(columns) if self.config.gather_negatives else columns,
            request_of_row_B=request_of_row_B,
            user_id_R=user_id_R,
            item_id_B=batch.item_id_B,
            temperature=self.config.temperature,
            mask_same_user=self.config.mask_same_user,
            same_user_share=self.config.same_user_share,
        )
        return losses.loss_B.sum() + 0.0 * (user_RD.sum() + item_BD.sum()), int(losses.is_legal_B.sum())

    def _catalogue_loss(
        self,
        user: torch.Tensor,
        item_CD: torch.Tensor,
        batch: RequestBatch,
        item_id_C: torch.Tensor,
        _: Mapping[str, torch.Tensor],
        is_drawn_C: torch.Tensor | None,
    ) -> tuple[torch.Tensor, int]:
        """user: [R, D], or [R, L, D] of L heads; see `ConversionLoss` for their weights."""
        weight_BL = user.new_ones(batch.num_rows, 1) if self.conversions is None else self.conversions.weights(batch)[0]
        row = torch.nonzero((weight_BL > 0).any(1)).squeeze(1)
        request_N, own_N = batch.request_of_row_B[row], torch.searchsorted(item_id_C, batch.item_id_B[row])
        is_out_RC = torch.zeros(len(user), len(item_id_C), dtype=torch.bool, device=user.device)
        is_out_RC[request_N, own_N] = True
        seen_T = batch.history["item_id"]
        place_T = places_of(seen_T, item_id_C)
        request_R = torch.arange(len(user), device=user.device)
        request_T = torch.repeat_interleave(request_R, batch.history_offsets_R1.diff(), output_size=len(seen_T))
        is_there_T = place_T >= 0
        is_out_RC[request_T[is_there_T], place_T[is_there_T]] = True
        items_per_negative = 1.0
        if is_drawn_C is not None:
            assert self.items is not None
            is_out_RC |= ~is_drawn_C
            items_per_negative = len(self.items.item_id_V) / int(is_drawn_C.sum())
        total, num_terms = 0.0 * (user.sum() + item_CD.sum()), 0
        user_RLD = user if user.dim() == 3 else user[:, None]
        for user_RD, weight_N in zip(user_RLD.unbind(1), weight_BL[row].unbind(1), strict=True):
            of_head = torch.nonzero(weight_N > 0).squeeze(1)
            losses_M = catalogue_losses(
                user_RD,
                item_CD,
                request_of_row_B=request_N[of_head],
                own_B=own_N[of_head],
                is_out_RC=is_out_RC,
                temperature=self.config.temperature,
                items_per_negative=items_per_negative,
            )
            total = total + (weight_N[of_head].to(losses_M.dtype) * losses_M).sum()
            num_terms += len(of_head)
        return total, num_terms

    def _log_q(self, item_id_B: torch.Tensor) -> torch.Tensor:
        if self.frequency is None:
            return torch.zeros(len(item_id_B), device=item_id_B.device)
        if isinstance(self.frequency, StreamingFrequency):
            on_cpu = item_id_B.cpu()  # its tables stay there
            self.frequency.update(on_cpu)
            return self.frequency.log_q(on_cpu).to(item_id_B.device)
        return self.frequency.log_q(item_id_B)

    def evaluate(self, model: nn.Module, batches: Sequence[RequestBatch]) -> Ranked:
        item_id_C, columns = self.catalogue
        catalogue_CD = cast(TwoTower, model).encode_items(item_id_C, columns)  # or any other with this method
        candidate_id_C = item_id_C.cpu().numpy()
        if self.counts.varying:  # a server has one value of each item, and not that of the impression
            batches = [replace(batch, row={**batch.row, **self.counts.columns_of(batch)}) for batch in batches]
        parts = [self._ranks(model, batch, catalogue_CD, candidate_id_C) for batch in batches]
        rank_B, unseen_rank_B, top_BK = (np.concatenate(values) for values in zip(*parts))
        rows = rows_of(batches, self.config.slice_by)
        return Ranked(
            rank_B=rank_B,
            unseen_rank_B=unseen_rank_B,
            top_BK=top_BK,
            num_items=len(item_id_C),
            own_count_B=self.counts.counts_of(rows["item_id_B"]),
            count_C=self.counts.counts_of(candidate_id_C),
            **rows,
        )

    def _ranks(
        self, model: nn.Module, batch: RequestBatch, catalogue_CD: torch.Tensor, candidate_id_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        user_RD, item_BD = (x.float() for x in model(batch))
        score_RC = (user_RD @ catalogue_CD.float().mT).cpu().numpy()
        own_B = (user_RD[batch.request_of_row_B] * item_BD).sum(1).cpu().numpy()
        request_of_row_B, item_id_B = batch.request_of_row_B.cpu().numpy(), batch.item_id_B.cpu().numpy()
        seen_id_T, offsets_R1 = batch.history["item_id"].cpu().numpy(), batch.history_offsets_R1.cpu().numpy()
        rank_B, unseen_rank_B = ranks_of_rows(
            score_RC,
            own_B,
            request_of_row_B=request_of_row_B,
            place_B=places_in(item_id_B, candidate_id_C),
            is_seen_RC=seen_places(places_in(seen_id_T, candidate_id_C), offsets_R1, len(candidate_id_C)),
            rounding=ROUNDING_OF_COSINES,
        )
        is_seen_B = holds(seen_id_T, offsets_R1, request_of_row_B, item_id_B)
        return rank_B, np.where(is_seen_B, np.nan, unseen_rank_B), best_places(score_RC)[request_of_row_B]

    def rivals(self) -> Mapping[str, Callable[[RequestBatch], RequestBatch]]:
        """A context that only leaks is worth as much when it is another request's: then no rival is worse."""
        model = self.config.model
        if not getattr(model, "has_context", False):
            return {}
        config = cast(TwoTowerConfig, model)
        return {
            "no context": partial(without_context, config=config),
            "shuffled context": partial(with_shuffled_context, config=config),
        }

    def state_dict(self) -> dict[str, Any]:
        """Exact counts are counted again from the same snapshot."""
        return self.frequency.state_dict() if isinstance(self.frequency, StreamingFrequency) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(self.frequency, StreamingFrequency):
            self.frequency.load_state_dict(state)
