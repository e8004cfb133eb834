"""The two models of the study, small enough for many runs, and ranks simulated in one process.

    ranking     request [mean of history ; features] -> Linear  \
                item [embedding ; category ; position] -> Linear  > sum -> (BatchNorm, ReLU, Linear) x 2 -> logit
                product of two narrow projections -> Linear      /
    retrieval   user and item towers: Linear -> BatchNorm, ReLU, Linear -> length 1; the user's runs once per pass

The heads are the project's `NormedMLP`, with the user tower's statistics weighted by rows (`batch_norm_by_rows`).
History and candidates share one item table. `RankwiseBatchNorm1d` is BatchNorm of W ranks of equally many rows; with
one rank it is what `SyncBatchNorm1d` computes over all of them. Both are tested against real ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.study.log import StudyLog
from reqdedup.models.mlp import NormedMLP

ITEM_WIDTH, CATEGORY_WIDTH, HIDDEN, OUT_WIDTH = 16, 8, (64, 32), 32


class RankwiseBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` as `num_ranks` ranks compute it, each on its consecutive, equally many rows.

    Running statistics are the first rank's, as DDP hands them out (it broadcasts buffers from rank 0).
    """

    num_ranks: int = 1

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.num_ranks == 1:
            return super().forward(input)
        ranks, channels = self.num_ranks, self.num_features
        if len(input) % ranks:
            raise ValueError(f"equally many rows for each of {ranks} ranks required, found {len(input)}")
        x_bWC = input.view(ranks, -1, channels).transpose(0, 1).reshape(-1, ranks * channels)
        # A norm that tracks statistics, as all here do, has them; the types allow one that does not.
        mean, variance = self.running_mean.repeat(ranks), self.running_var.repeat(ranks)  # type: ignore[union-attr]
        y_bWC = F.batch_norm(
            x_bWC,
            mean,
            variance,
            self.weight.repeat(ranks),
            self.bias.repeat(ranks),
            True,
            self.momentum or 0.0,
            self.eps,
        )
        with torch.no_grad():
            self.running_mean.copy_(mean[:channels])  # type: ignore[union-attr]
            self.running_var.copy_(variance[:channels])  # type: ignore[union-attr]
        return y_bWC.view(-1, ranks, channels).transpose(0, 1).reshape(-1, channels)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One step of all ranks: P user-tower passes, B rows, rank after rank, U distinct items.

    item_U: item numbers, the last one the padding.  history_PH, item_B: places in item_U; item_id_B: the numbers.
    """

    item_U: torch.Tensor
    history_PH: torch.Tensor
    dense_PF: torch.Tensor
    user_P: torch.Tensor
    pass_of_row_B: torch.Tensor
    pass_offsets_P1: torch.Tensor
    item_B: torch.Tensor
    item_id_B: torch.Tensor
    category_B: torch.Tensor
    position_B: torch.Tensor
    click_B: torch.Tensor


class TorchLog:
    """The log's columns as tensors, and the batches of them."""

    def __init__(self, log: StudyLog) -> None:
        self.item_B, self.request_B = torch.from_numpy(log.item_B), torch.from_numpy(log.request_B)
        self.click_B, self.position_B = torch.from_numpy(log.click_B), torch.from_numpy(log.position_B)
        self.user_R, self.history_RH = torch.from_numpy(log.user_R), torch.from_numpy(log.history_RH)
        self.dense_RF, self.category_V = torch.from_numpy(log.dense_RF), torch.from_numpy(log.category_V)
        self.num_items = log.num_items

    def batch(self, rows_Wb: torch.Tensor) -> StepBatch:
        """rows_Wb: [W, rows_per_rank] row numbers; a request's consecutive rows on a rank share a pass."""
        request_Wb = self.request_B[rows_Wb]
        is_first_Wb = torch.ones_like(request_Wb, dtype=torch.bool)
        is_first_Wb[:, 1:] = request_Wb[:, 1:] != request_Wb[:, :-1]
        is_first_B, rows_B = is_first_Wb.flatten(), rows_Wb.flatten()
        starts = torch.nonzero(is_first_B).squeeze(1)
        request_P = request_Wb.flatten()[starts]
        history_PH, item_B = self.history_RH[request_P], self.item_B[rows_B]
        used = torch.cat([history_PH.flatten(), item_B, torch.tensor([self.num_items])])
        item_U, place = torch.unique(used, return_inverse=True)
        return StepBatch(
            item_U=item_U,
            history_PH=place[: history_PH.numel()].view(history_PH.shape),
            dense_PF=self.dense_RF[request_P],
            user_P=self.user_R[request_P],
            pass_of_row_B=is_first_B.cumsum(0) - 1,
            pass_offsets_P1=torch.cat([starts, torch.tensor([len(rows_B)])]),
            item_B=place[history_PH.numel() : -1],
            item_id_B=item_B,
            category_B=self.category_V[item_B],
            position_B=self.position_B[rows_B],
            click_B=self.click_B[rows_B],
        )


class _Embedded(nn.Module):
    """Embeddings and the request's inputs, shared by both models. The item table is no parameter: see `ItemTable`."""

    def __init__(self, log: StudyLog) -> None:
        super().__init__()
        self.category = nn.Embedding(int(log.category_V.max()) + 1, CATEGORY_WIDTH)
        self.request_width = log.dense_RF.shape[1] + (ITEM_WIDTH if log.history_RH.shape[1] else 0)

    def requests(self, batch: StepBatch, item_UD: torch.Tensor) -> torch.Tensor:
        if not batch.history_PH.shape[1]:
            return batch.dense_PF
        pooled_PD = F.embedding_bag(batch.history_PH, item_UD, mode="mean", padding_idx=len(item_UD) - 1)
        return torch.cat([pooled_PD, batch.dense_PF], dim=1)

    def items(self, item_BD: torch.Tensor, category_B: torch.Tensor) -> torch.Tensor:
        return torch.cat([item_BD, self.category(category_B)], dim=1)


class RankingModel(_Embedded):
    """Click logits [B]."""

    def __init__(self, log: StudyLog) -> None:
        super().__init__(log)
        item_width = ITEM_WIDTH + CATEGORY_WIDTH
        self.request_in = nn.Linear(self.request_width, HIDDEN[0])
        self.item_in = nn.Linear(item_width + 1, HIDDEN[0])
        self.request_factor, self.item_factor = nn.Linear(self.request_width, 32), nn.Linear(item_width, 32)
        self.product_in = nn.Linear(32, HIDDEN[0])
        self.head = NormedMLP(HIDDEN, 1)

    def forward(self, batch: StepBatch, item_UD: torch.Tensor) -> torch.Tensor:
        request_PD = self.requests(batch, item_UD)
        item_BD = self.items(item_UD[batch.item_B], batch.category_B)
        request_BD = torch.cat([self.request_in(request_PD), self.request_factor(request_PD)], 1)[batch.pass_of_row_B]
        product_BD = request_BD[:, HIDDEN[0] :] * self.item_factor(item_BD)
        x_BD = request_BD[:, : HIDDEN[0]] + self.item_in(torch.cat([item_BD, batch.position_B[:, None]], 1))
        return self.head(x_BD + self.product_in(product_BD)).squeeze(1)


class RetrievalModel(_Embedded):
    """User vectors [P, OUT_WIDTH] and item vectors [B, OUT_WIDTH] of length 1."""

    def __init__(self, log: StudyLog) -> None:
        super().__init__(log)
        self.user_in, self.user_mlp = nn.Linear(self.request_width, HIDDEN[0]), NormedMLP(HIDDEN[:1], OUT_WIDTH)
        self.item_in = nn.Linear(ITEM_WIDTH + CATEGORY_WIDTH, HIDDEN[0])
        self.item_mlp = NormedMLP(HIDDEN[:1], OUT_WIDTH)

    def forward(self, batch: StepBatch, item_UD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_PD = self.user_in(self.requests(batch, item_UD))
        user_PD = self.user_mlp.on_requests(x_PD, batch.pass_offsets_P1, len(batch.item_B))
        return F.normalize(user_PD, dim=1), self.encode_items(item_UD[batch.item_B], batch.category_B)

    def encode_items(self, item_ND: torch.Tensor, category_N: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.item_mlp(self.item_in(self.items(item_ND, category_N))), dim=1)


def set_norms(model: nn.Module, *, num_ranks: int, norm: bool) -> None:
    """Replace every BatchNorm1d in place: by one with statistics per rank, or by nothing."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                replacement: nn.Module = nn.Identity()
                if norm:
                    rankwise = RankwiseBatchNorm1d(child.num_features, child.eps, child.momentum)
                    rankwise.load_state_dict(child.state_dict())
                    rankwise.num_ranks = num_ranks
                    replacement = rankwise
                setattr(module, name, replacement)


class ItemTable:
    """[num_items + 1, ITEM_WIDTH], the last row zero for padding; row-wise Adagrad on the rows that a step touched.

    Source: row-wise Adagrad as in FBGEMM / torchrec, `exact_row_wise_adagrad`.
    """

    def __init__(self, num_items: int, generator: torch.Generator) -> None:
        self.weight_VD = torch.randn(num_items + 1, ITEM_WIDTH, generator=generator) * 0.05
        self.weight_VD[-1] = 0
        self.squares_V = torch.zeros(num_items + 1)

    def rows(self, item_U: torch.Tensor) -> torch.Tensor:
        return self.weight_VD[item_U].requires_grad_()

    @torch.no_grad()
    def update(self, item_U: torch.Tensor, gradient_UD: torch.Tensor, rate: float) -> None:
        self.squares_V[item_U] += gradient_UD.square().mean(1)
        scaled_UD = gradient_UD / (self.squares_V[item_U].sqrt() + 1e-10)[:, None]
        self.weight_VD[item_U] -= rate * scaled_UD
        self.weight_VD[-1] = 0
