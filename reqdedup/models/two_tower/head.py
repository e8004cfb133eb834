"""The user head of a trained two-tower model as a few products of a matrix and a vector: what a server computes per
request when it has the state.

BatchNorm in evaluation is a scale and a shift, and the first Linear is a sum over state, tables, vectors and numbers;
both are folded into the weights once, in float64. A call then costs a tenth of the modules', whose time is that of
calling them. `TwoTower.user_head` is the definition, equal up to rounding; one request at a time, so its bits depend on
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import torch
from torch import nn

from reqdedup.models.derived import with_derived
from reqdedup.models.inputs import HashedEmbedding, hashed_row_of
from reqdedup.models.two_tower.model import TwoTower


class ModuleHead:
    """A user head as the modules are: of models with cross layers or a context, which nothing is folded of."""

    def __init__(self, model: TwoTower) -> None:
        model.check_evaluates()
        self._model = model

    def __call__(self, state_D: np.ndarray, request: Mapping[str, torch.Tensor]) -> np.ndarray:
        """As `UserHead`."""
        user_1D = self._model.user_head(torch.from_numpy(np.ascontiguousarray(state_D))[None], request)
        return user_1D[0].float().numpy()


def user_head(model: TwoTower) -> UserHead | ModuleHead:
    """The fastest head that the model has. Raises ValueError for a model in training mode."""
    is_plain = model.config.tower == "mlp" and not model.config.has_context
    return UserHead(model) if is_plain else ModuleHead(model)


class UserHead:
    """States and request features to user vectors, for one request at a time. Threads may share it."""

    def __init__(self, model: TwoTower) -> None:
        """Raises ValueError for a model in training mode."""
        model.check_evaluates()
        features, width = model.features, model.config.state_width
        scales = [_scale_shift(norm) for norm in cast(Iterable[nn.BatchNorm1d], model.user_mlp.norms)]
        weight, bias = _array(model.user_in.weight), _array(model.user_in.bias)
        (scale, shift), later = scales[0], scales[1:]
        weight, bias = weight * scale[:, None], bias * scale + shift
        self._of_state, at = _frozen(weight[:, :width]), width
        self._categories: list[tuple[str, np.ndarray]] = []
        for name, table in zip(features.categories, cast(Iterable[HashedEmbedding], features.of_category), strict=True):
            share = weight[:, at : at + table.embedding_dim]
            self._categories.append((name, _frozen(_array(table.weight) @ share.T)))
            at += table.embedding_dim
        self._vectors: list[tuple[str, np.ndarray]] = []
        for (name, _), project in zip(features.vectors, cast(Iterable[nn.Linear], features.of_vector), strict=True):
            share = weight[:, at : at + project.out_features]
            self._vectors.append((name, _frozen(share @ _array(project.weight))))
            bias = bias + share @ _array(project.bias)
            at += project.out_features
        self._derived = features.derived
        self._numbers = [(name, _frozen(weight[:, at + n])) for n, name in enumerate(features.numbers)]
        at += len(features.numbers)
        self._derived_numbers: list[tuple[str, np.ndarray]] = []
        for name, numbers in features.derived_numbers:
            self._derived_numbers.append((name, _frozen(weight[:, at : at + numbers])))
            at += numbers
        self._bias, self._layers = _frozen(bias), []
        for linear, scale_shift in zip(cast(Iterable[nn.Linear], model.user_mlp.linears), [*later, None], strict=True):
            weight, bias = _array(linear.weight), _array(linear.bias)
            if scale_shift is not None:
                weight, bias = weight * scale_shift[0][:, None], bias * scale_shift[0] + scale_shift[1]
            self._layers.append((_frozen(weight), _frozen(bias)))

    def __call__(self, state_D: np.ndarray, request: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The user's vector [output_width] float32 of length 1; NaN if features are so large that it has none.

        request: values of the request, as in `RequestBatch.request`, R = 1.
        """
        if self._derived:
            request = with_derived(self._derived, request)
        x = self._of_state @ state_D
        x += self._bias
        for name, table in self._categories:
            x += table[hashed_row_of(int(request[name]), len(table))]
        for name, weight in self._vectors:
            x += weight @ request[name][0].float().numpy()
        for name, weight in self._numbers:
            value = float(request[name])
            if math.isfinite(value):
                x += weight * np.float32(math.copysign(math.log1p(abs(value)), value))
        for name, weight in self._derived_numbers:
            x += weight @ request[name][0].float().numpy()
        for weight, bias in self._layers:
            np.maximum(x, 0, out=x)
            x = weight @ x
            x += bias
        wide = x.astype(np.float64)
        return (wide / max(math.sqrt(float(wide @ wide)), 1e-12)).astype(np.float32)


def _scale_shift(norm: nn.BatchNorm1d) -> tuple[np.ndarray, np.ndarray]:
    """BatchNorm in evaluation: y = scale * x + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
    return scale, _array(norm.bias) - scale * _array(norm.running_mean)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _frozen(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)
