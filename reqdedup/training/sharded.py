"""Embedding tables that are larger than a process: each rank keeps every W-th row, and rows travel to who reads them.

    table row     0  1  2  3  4  5  6             V = 7 rows on W = 3 ranks: row r is row r // W of rank r % W
    rank 0        0        3        6
    rank 1           1        4
    rank 2              2        5

A look-up asks each row once, of the rank that has it: one all-to-all of row numbers, one of vectors; backward one of
gradients. What arrives is added up in rank order, so that a run repeats bit for bit, and is the mean over the ranks, as
DDP makes it of all else. Neither a table nor its optimiser's state is whole in any process: initial rows are drawn
where they lie, and a checkpoint is put together in a file (`Shards.whole`).

Every rank must call the model equally often, in evaluation too: with batches of nothing if it has no more.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from reqdedup.models.config import ModelConfig
from reqdedup.models.inputs import HashedEmbedding, hashed_row
from reqdedup.models.registry import build_model
from reqdedup.training.ranks import group_for

_TABLE_ROWS = ("item_table_rows", "category_table_rows")


class ShardedEmbedding(HashedEmbedding):
    """`HashedEmbedding` of which this rank has the rows rank, rank + W, ...: `weight` is [own rows, D]."""

    def __init__(self, own_rows: torch.Tensor, num_rows: int, group: dist.ProcessGroup | None) -> None:
        """own_rows: [own rows, D].  num_rows: V of the whole table."""
        super().__init__(1, own_rows.shape[1], _weight=own_rows[:1].new_empty(1, own_rows.shape[1]))
        self.weight = nn.Parameter(own_rows)
        self.num_embeddings, self.group = num_rows, group

    @property
    def own(self) -> slice:
        """This rank's rows of the whole table."""
        return slice(dist.get_rank(self.group), None, dist.get_world_size(self.group))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """A collective, as its backward is."""
        row_U, place_N = hashed_row(ids, self.num_embeddings).unique(return_inverse=True)
        value_UD = _LookUp.apply(self.weight, row_U, self.group)
        return value_UD[place_N]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A whole table's own rows; own rows as they are."""
        whole = state_dict.get(prefix + "weight")
        if whole is not None and len(whole) == self.num_embeddings:
            state_dict = {**state_dict, prefix + "weight": whole[self.own]}
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _LookUp(torch.autograd.Function):
    """Rows [U, D] of a table in parts; the gradient of a part is sparse."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, row_U: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        world_size = dist.get_world_size(group)
        by_rank_U = (row_U % world_size).argsort(stable=True)
        num_asked = (row_U % world_size).bincount(minlength=world_size)
        num_given = torch.empty_like(num_asked)
        dist.all_to_all_single(num_given, num_asked, group=group)
        ctx.asked, ctx.given, ctx.group, ctx.rows = num_asked.tolist(), num_given.tolist(), group, len(weight)
        given_N = _exchanged(row_U[by_rank_U], ctx.asked, ctx.given, group) // world_size
        ctx.save_for_backward(by_rank_U, given_N)
        value_UD = weight.new_empty(len(row_U), weight.shape[1])
        value_UD[by_rank_U] = _exchanged(weight[given_N], ctx.given, ctx.asked, group)
        return value_UD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        by_rank_U, given_N = ctx.saved_tensors
        gradient_ND = _exchanged(gradients[0][by_rank_U], ctx.asked, ctx.given, ctx.group)
        row_V, place_N = given_N.unique(return_inverse=True)
        total_VD = gradient_ND.new_zeros(len(row_V), gradient_ND.shape[1]).index_add_(0, place_N, gradient_ND)
        total_VD /= len(ctx.asked)
        size = (ctx.rows, gradient_ND.shape[1])
        return (
            torch.sparse_coo_tensor(row_V[None], total_VD, size, is_coalesced=True, check_invariants=False),
            None,
            None,
        )


def _exchanged(x: torch.Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None) -> torch.Tensor:
    """The next sent[w] rows of x go to rank w; what came, in rank order."""
    came = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(came, x.contiguous(), received, sent, group=group)
    return came


def build_sharded(config: ModelConfig, *, tables_from: int, seed: int) -> nn.Module:
    """The model, with tables of at least `tables_from` rows in parts; no process has one whole. A collective.

    seed: of the initial rows, which differ from those of `build_model`; all else is drawn alike on every rank.
    """
    group = group_for("tables")
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    with torch.device("meta"):
        whole = {name: x for name, x in build_model(config).named_modules() if isinstance(x, HashedEmbedding)}
    large = {name: getattr(config, name) for name in _TABLE_ROWS if getattr(config, name) >= tables_from}
    model = build_model(replace(config, **{name: -(-rows // world_size) for name, rows in large.items()}))
    for number, (name, table) in enumerate(whole.items()):
        if table.num_embeddings < tables_from:
            continue
        part = model.get_submodule(name)
        assert isinstance(part, HashedEmbedding)
        own_VD = part.weight.detach()[: len(range(rank, table.num_embeddings, world_size))].clone()
        if own_VD.any():  # one that begins at zero stays there
            generator = torch.Generator().manual_seed((seed * world_size + rank) * 1009 + number)
            nn.init.normal_(own_VD, std=own_VD.shape[1] ** -0.5, generator=generator)
        above, _, last = name.rpartition(".")
        setattr(model.get_submodule(above), last, ShardedEmbedding(own_VD, table.num_embeddings, group))
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = config  # type: ignore[assignment]  # a model names its configuration so
    return model


class Shards:
    """The sharded tables of a model, by the names of their weights; none of a model without them."""

    def __init__(self, model: nn.Module) -> None:
        self.tables = {f"{n}.weight": x for n, x in model.named_modules() if isinstance(x, ShardedEmbedding)}

    def own(self, state: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        """This rank's rows of a state with whole tables."""
        return None if state is None else {**state, **{n: state[n][x.own].clone() for n, x in self.tables.items()}}

    @contextlib.contextmanager
    def whole(self, *states: Mapping[str, torch.Tensor] | None) -> Iterator[list[dict[str, torch.Tensor] | None]]:
        """These states by names of weights, on rank 0 with whole tables, which lie in a file and not in memory while
        the context lasts. A collective."""
        with tempfile.TemporaryDirectory(prefix="reqdedup-shards-") as folder:
            yield [
                None if state is None else {**state, **self._gathered(state, Path(folder) / str(number))}
                for number, state in enumerate(states)
            ]

    def _gathered(self, state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
        found = {}
        for number, (name, table) in enumerate(self.tables.items()):
            own, rank, world_size = state[name], dist.get_rank(table.group), dist.get_world_size(table.group)
            if rank:
                dist.send(own.contiguous(), 0, group=table.group)
                continue
            shape = (table.num_embeddings, *own.shape[1:])
            numel = torch.Size(shape).numel()
            whole = torch.from_file(f"{path}-{number}", shared=True, size=numel, dtype=own.dtype).view(shape)
            whole[0::world_size] = own.cpu()
            for other in range(1, world_size):
                came = own.new_empty(len(range(other, shape[0], world_size)), *shape[1:])
                dist.recv(came, other, group=table.group)
                whole[other::world_size] = came.cpu()
            found[name] = whole
        return found
