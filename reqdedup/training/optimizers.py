"""How weights move: row-wise Adagrad for embedding tables, on the rows that a step read, and AdamW for all else.

A dense optimiser touches every row of every table each step: with a table of a million rows of 64 that is 1 GB of
traffic for some thousand rows that changed, and its moments are twice the table. Row-wise Adagrad keeps one number per
row and moves only rows with a gradient, so that an item's rate falls with how often *it* was seen and not with the
steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, cast

import torch
from torch import nn

from reqdedup.models.inputs import HashedEmbedding
from reqdedup.training.gather import means_over_ranks
from reqdedup.training.sharded import ShardedEmbedding

TableOptimizer = Literal["adagrad", "adamw"]


class RowwiseAdagrad(torch.optim.Optimizer):
    """w_v <- w_v - lr * g_v / (sqrt(s_v) + eps) with s_v the sum over steps of mean(g_v^2), one number for each row v.

    Parameters are tables [V, D]; gradients sparse or dense, of which rows without a gradient stay as they are.
    Source: FBGEMM and torchrec, `EXACT_ROW_WISE_ADAGRAD`.
    """

    def __init__(self, params: Iterable[nn.Parameter] | list[dict[str, Any]], lr: float, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for table in group["params"]:
                self.state[table]["squares_V"] = torch.zeros(len(table), device=table.device)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # torch's takes a closure too, which nobody here has
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                row_U, gradient_UD = _touched(table.grad)
                squares_V = self.state[table]["squares_V"]
                squares_V[row_U] += gradient_UD.square().mean(1)
                scale_U = group["lr"] / (squares_V[row_U].sqrt() + group["eps"])
                table.index_add_(0, row_U, -scale_U[:, None] * gradient_UD)


def _touched(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with a gradient, each once, and their gradients."""
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()
    row_U = torch.nonzero((gradient != 0).any(1)).squeeze(1)
    return row_U, gradient[row_U]


def check_rate_factors(names: Collection[str], factors: Mapping[str, float]) -> None:
    """Raises ValueError for a factor of parameters that the model lacks. names: of all its parameters."""
    if unknown := [begin for begin in factors if not any(name.startswith(begin) for name in names)]:
        raise ValueError(
            f"training: beginnings of names of the model's parameters required in rate_factors, found {unknown[0]};"
            f" it has {', '.join(sorted({name.split('.')[0] for name in names}))}"
        )


class Optimizers:
    """Those of a model, used as one: tables by `table_optimizer` at a rate of their own, all else by AdamW.

    clip_norm: of the gradients of all but tables, 0 for none.  tables: names of the parameters whose gradients are
    averaged over the ranks here, and not by DDP; those of tables in parts were when they came.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        table_learning_rate: float,
        table_optimizer: TableOptimizer,
        weight_decay: float,
        clip_norm: float,
        rate_factors: Mapping[str, float] | None = None,
    ) -> None:
        is_sparse = table_optimizer == "adagrad"
        found = [module for module in model.modules() if isinstance(module, HashedEmbedding) and is_sparse]
        tables: dict[int, nn.Parameter] = {id(module.weight): cast(nn.Parameter, module.weight) for module in found}
        self.tables = [name for name, parameter in model.named_parameters() if id(parameter) in tables]
        self._tables = list(tables.values())
        self._parts = {id(module.weight): module for module in found if isinstance(module, ShardedEmbedding)}
        self._dense = [parameter for parameter in model.parameters() if id(parameter) not in tables]
        self._clip_norm = clip_norm
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        factors = rate_factors or {}
        check_rate_factors(names.values(), factors)
        self._rates: dict[str, list[float]] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        dense, rates = _grouped(self._dense, names, factors, learning_rate)
        self._rates["dense"] = rates
        self._optimizers["dense"] = torch.optim.AdamW(dense, lr=learning_rate, weight_decay=weight_decay, fused=True)
        if tables:
            for module in found:
                module.sparse = True
            grouped, self._rates["tables"] = _grouped(self._tables, names, factors, table_learning_rate)
            self._optimizers["tables"] = RowwiseAdagrad(grouped, lr=table_learning_rate)
        self._ordered = [table for group in self._groups("tables") for table in group["params"]]
        self._names = [names[id(table)] for table in self._ordered]

    def zero_grad(self) -> None:
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()

    def divide_gradients(self, by: float) -> None:
        """Of a step whose gradients are a sum over `by` terms."""
        for parameter in (*self._dense, *self._tables):
            if parameter.grad is not None:
                parameter.grad /= by

    def step(self, share: float) -> None:
        """share: of the highest rates. A collective if there are tables."""
        whole = [table for table in self._tables if id(table) not in self._parts]
        for table, mean in zip(whole, means_over_ranks([cast(torch.Tensor, table.grad) for table in whole])):
            table.grad = mean
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._dense, self._clip_norm)
        for name, optimizer in self._optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = share * rate
            optimizer.step()

    def _groups(self, name: str) -> list[dict[str, Any]]:
        return self._optimizers[name].param_groups if name in self._optimizers else []

    @property
    def squares(self) -> dict[str, torch.Tensor]:
        """State of the tables, by their names."""
        state = self._optimizers["tables"].state if self._ordered else {}
        return {name: state[table]["squares_V"] for name, table in zip(self._names, self._ordered, strict=True)}

    def state_dict(self, squares: Mapping[str, torch.Tensor] | None = None) -> dict[str, Any]:
        """squares: what to say of tables in parts, whole."""
        state = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        for number, name in enumerate(self._names if squares else []):
            state["tables"]["state"][number] = {"squares_V": (squares or {})[name]}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])
        for table in self._ordered:
            of_table = self._optimizers["tables"].state[table]
            if len(of_table["squares_V"]) != len(table):
                of_table["squares_V"] = of_table["squares_V"][self._parts[id(table)].own].clone()


def _grouped(
    parameters: Iterable[nn.Parameter], names: Mapping[int, str], factors: Mapping[str, float], rate: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """The parameters in a group for each rate, and these rates."""
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        fitting = [begin for begin in factors if names[id(parameter)].startswith(begin)]
        groups.setdefault(factors[max(fitting, key=len)] if fitting else 1.0, []).append(parameter)
    return [{"params": group} for group in groups.values()], [rate * factor for factor in groups]
