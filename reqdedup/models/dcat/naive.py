"""DCAT computed B times: the law that the deduplicated model must equal; see `reqdedup.models.duplicated`."""

from __future__ import annotations

import torch

from reqdedup.batch import RequestBatch
from reqdedup.models.dcat import model
from reqdedup.models.duplicated import duplicate, pad_histories, transformer_pass


class DCAT(model.DCAT):
    """`reqdedup.models.DCAT` by its definition: one pass over [history ; candidate] for each row."""

    def forward(self, batch: RequestBatch) -> torch.Tensor:
        rows = duplicate(batch)
        length_B = rows.history_offsets_R1.diff()
        longest = int(length_B.max()) if batch.num_rows else 0
        x_BSD = pad_histories(self.embedding.events(rows.history), rows.history_offsets_R1, longest=longest)
        candidate_BD = self.embedding.candidates(self.candidate_ids(rows.item_id_B), rows.row) + self.candidate_marker
        x_BSD = torch.cat([x_BSD, x_BSD.new_zeros(len(length_B), 1, x_BSD.shape[2])], dim=1)
        x_BSD[torch.arange(len(length_B), device=length_B.device), length_B] = candidate_BD
        crossed_BD = self.final_norm(transformer_pass(self.transformer, x_BSD, length_B, read_candidate=True))
        head_in = self.head_in(crossed_BD)
        if self.head_in_request is not None:
            head_in = head_in + self.head_in_request(self.features(rows.request, head_in.dtype))
        return self.biased(self.head(head_in), rows)
