"""The foundation model by its definition: every history alone, padded, and for each row a copy of its request."""

from __future__ import annotations

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.duplicated import duplicate, pad_histories, transformer_pass
from reqdedup.models.foundation import model
from reqdedup.models.foundation.pairs import Pairs
from reqdedup.models.foundation.timelines import timelines_of


class Foundation(model.Foundation):
    """`reqdedup.models.foundation.Foundation`, its transformer once per row, or once per pair."""

    def forward(self, batch: RequestBatch, pairs: Pairs | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if pairs is None:
            rows = duplicate(batch)
            tokens, offsets_B1 = rows.history, rows.history_offsets_R1
            last_BD = self._last(tokens, offsets_B1)
            return self.of_events(last_BD), self.encode_items(batch.item_id_B, batch.row)
        histories, _ = timelines_of(batch, self.config)
        seen = []
        for anchor in pairs.anchor_P.tolist():  # the history up to the event, read at its end
            start = int(histories.offsets_G1[histories.offsets_G1 <= anchor][-1])
            tokens = {name: x_T[start : anchor + 1] for name, x_T in histories.tokens.items()}
            seen.append(self._last(tokens, torch.tensor([0, anchor + 1 - start])))
        last_PD = torch.cat(seen) if seen else self.final_norm.weight.new_zeros(0, self.config.width)
        return self.of_events(last_PD), self.encode_items(pairs.item_id_P, {})

    def _last(self, tokens: dict[str, torch.Tensor], offsets_B1: torch.Tensor) -> torch.Tensor:
        length_B = offsets_B1.diff()
        longest = int(length_B.max()) if len(length_B) else 0
        x_BSD = pad_histories(self.embedding.events(tokens), offsets_B1, longest=longest)
        x_BSD = transformer_pass(self.transformer, x_BSD, length_B, read_candidate=False)
        is_last_BS1 = (torch.arange(longest, device=length_B.device) == length_B[:, None] - 1)[..., None]
        return (x_BSD * is_last_BS1).sum(1)
