"""Which event of a history is asked which later one.

    window = 2    a b c d    a: b c    b: c d    c: d        of those the positive ones
    future = 2    a b c d    b: c d

A pair that both name counts twice. Pairs are drawn in the training step, so that a long history costs no more.
Source: PinFM (arXiv 2507.12704), its losses on the next token, on a window of positive tokens, and on the future.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.foundation.config import FoundationConfig
from reqdedup.models.foundation.timelines import timelines_of


@dataclass(frozen=True)
class Pairs:
    """anchor_P: place of the asked event among the packed ones that the transformer reads.  item_id_P: of the event to
    say.  user_id_P: whose they are. All [P] int64."""

    anchor_P: torch.Tensor
    item_id_P: torch.Tensor
    user_id_P: torch.Tensor

    def drawn(self, most: int) -> Pairs:
        """All, or `most` of them by torch's generator."""
        if len(self.anchor_P) <= most:
            return self
        chosen = torch.randperm(len(self.anchor_P))[:most].to(self.anchor_P.device)
        return Pairs(self.anchor_P[chosen], self.item_id_P[chosen], self.user_id_P[chosen])


def pairs_of(batch: RequestBatch, config: FoundationConfig) -> Pairs:
    """All pairs of a batch, those of `window` before those of `future`."""
    histories, user_G = timelines_of(batch, config)
    offsets_G1, item_id_T = histories.offsets_G1, histories.tokens["item_id"]
    length_G, num_tokens = offsets_G1.diff(), len(item_id_T)
    token_T = torch.arange(num_tokens, device=item_id_T.device)
    end_T = torch.repeat_interleave(offsets_G1[1:], length_G, output_size=num_tokens)
    anchors, targets = [], []
    for ahead in range(1, config.window + 1):
        anchors.append(token_T[token_T + ahead < end_T])
        targets.append(anchors[-1] + ahead)
    cut_G = (offsets_G1[1:] - 1 - config.future)[length_G > config.future]
    for ahead in range(1, config.future + 1):
        anchors.append(cut_G)
        targets.append(cut_G + ahead)
    anchor_P, target_P = torch.cat(anchors), torch.cat(targets)
    if config.positive_category:
        is_asked_P = is_asked(histories.tokens, config)[target_P]
        anchor_P, target_P = anchor_P[is_asked_P], target_P[is_asked_P]
    user_T = torch.repeat_interleave(user_G, length_G, output_size=num_tokens)
    return Pairs(anchor_P, item_id_T[target_P], user_T[anchor_P])


def is_asked(tokens: Mapping[str, torch.Tensor], config: FoundationConfig) -> torch.Tensor:
    """[T] bool: whether an event is one to predict."""
    if not config.positive_category:
        return torch.ones_like(tokens["item_id"], dtype=torch.bool)
    values = torch.tensor(config.positive_values, device=tokens["item_id"].device)
    return torch.isin(tokens[config.positive_category].long(), values)
