"""The two-tower model computed B times: the law that the deduplicated one must equal; see
`reqdedup.models.duplicated`."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from reqdedup.batch import RequestBatch
from reqdedup.models.duplicated import duplicate, pad_histories, transformer_pass
from reqdedup.models.two_tower import model


class TwoTower(model.TwoTower):
    """`reqdedup.models.TwoTower` by its definition: the user tower on each of the B rows."""

    def user_tower(self, batch: RequestBatch) -> torch.Tensor:
        """User vectors, one per row: [B, output_width], or [B, L, output_width] where it has several."""
        rows = duplicate(batch)
        length_B = rows.history_offsets_R1.diff()
        longest = int(length_B.max()) if batch.num_rows else 0
        x_BSD = pad_histories(self.embedding.events(rows.history), rows.history_offsets_R1, longest=longest)
        x_BSD = self.final_norm(transformer_pass(self.transformer, x_BSD, length_B, read_candidate=False))
        valid_BS1 = (torch.arange(longest, device=length_B.device) < length_B[:, None])[..., None]
        parts = []
        if self.config.pooling != "last":
            parts.append((x_BSD * valid_BS1).sum(1) / length_B.clamp(min=1)[:, None])
        if self.config.pooling != "mean":
            is_last_BS1 = (torch.arange(longest, device=length_B.device) == length_B[:, None] - 1)[..., None]
            parts.append((x_BSD * is_last_BS1).sum(1))
        pooled_BD = torch.cat(parts, dim=1)
        if self.config.has_context:
            is_synthetic = self.training and self.config.context_from == "positive"
            of, values = (self.context.of_items, rows.row) if is_synthetic else (self.context.of_requests, rows.request)
            pooled_BD = self.fusion(pooled_BD, of(values, pooled_BD.dtype))
        if self.features.width:
            pooled_BD = torch.cat([pooled_BD, self.features(rows.request, pooled_BD.dtype)], dim=1)

        def make(head: model.TwoTower | model.FurtherHead) -> torch.Tensor:
            out_BO = head.user_mlp(head.user_in(head.user_cross.before(pooled_BD)))
            return F.normalize(head.user_cross.beside(out_BO, pooled_BD), dim=1)

        return self._of_heads(make)
