"""Cross layers (DCN v2, low rank) beside a tower's MLP, in parallel with it or stacked before it.

    x_{l+1} = x_0 * (U_l V_l x_l + b_l) + x_l            V_l: [rank, width], U_l: [width, rank]

    mlp        out = MLP(x_0)                            no cross layers
    stacked    out = MLP(x_L)
    parallel   out = MLP(x_0) + W x_L                    what a last Linear over both, side by side, is

They act on each row alone and have no BatchNorm, so once per request equals once per row.
Source: Wang et al. 2021, DCN V2 (arXiv 2008.13535), section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

TowerKind = Literal["mlp", "stacked", "parallel"]


class CrossLayers(nn.Module):
    """x_0 -> x_L, [N, width] both."""

    def __init__(self, width: int, *, num_layers: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(num_layers))
        self.wide = nn.ModuleList(nn.Linear(rank, width) for _ in range(num_layers))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        crossed_ND = x_ND
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            crossed_ND = x_ND * wide(narrow(crossed_ND)) + crossed_ND
        return crossed_ND


class Crossing(nn.Module):
    """Where a tower's cross layers stand; without parameters if it has none."""

    def __init__(self, kind: TowerKind, width: int, out_width: int, *, num_layers: int, rank: int) -> None:
        super().__init__()
        self.kind = kind
        self.layers = None if kind == "mlp" else CrossLayers(width, num_layers=num_layers, rank=rank)
        self.out = nn.Linear(width, out_width, bias=False) if kind == "parallel" else None

    def before(self, x_ND: torch.Tensor) -> torch.Tensor:
        """What the MLP reads of the tower's input, [N, width]."""
        return self.layers(x_ND) if self.layers is not None and self.kind == "stacked" else x_ND

    def beside(self, y_NO: torch.Tensor, x_ND: torch.Tensor) -> torch.Tensor:
        """The tower's output [N, out_width] from the MLP's and the tower's input."""
        return y_NO if self.layers is None or self.out is None else y_NO + self.out(self.layers(x_ND))
