"""Batch normalisation over all ranks, on CPU and with uneven or empty local batches.

`torch.nn.SyncBatchNorm` refuses CPU tensors. `SyncBatchNorm1d` is the same normalisation for any device and backend
(gloo on CPU): one collective forward (count, mean and squared deviations of every rank, combined as Chan et al. do),
one backward. Its outputs, running statistics and gradients equal those of one process's `nn.BatchNorm1d` on the
concatenated batch. Request-sorted data needs it: rows of one rank come from a few users, so local statistics are those
of a few users and not of the population.

What it does not do: double backward. The cost per layer is two small collectives per step, of 2C + 1 and 2C numbers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics are those of the batches of all ranks together.

    Input [N, C] or [N, C, L] with any N per rank, 0 included. Every rank must call it, in the same order, with an input
    that is part of its graph (an empty one too): the backward pass is a collective as well.

    Without an initialised process group, in a group of one, and in eval mode it *is* `nn.BatchNorm1d`. Weight gradients
    stay local, as in torch's own: summed over ranks they are the gradient of the whole batch, and DDP averages them.

    Raises ValueError on every rank when all ranks together hold a single value per channel, as torch does; a step in
    which all ranks are empty leaves the running statistics as they are.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        **factory_options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **factory_options)
        self.process_group = process_group

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or not dist.is_available() or not dist.is_initialized():
            return super().forward(input)
        if dist.get_world_size(self.process_group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, count, mean, squares = _NormalizeOverRanks.apply(
            input, self.weight, self.bias, self.eps, self.process_group
        )
        if self.track_running_stats:
            self._track(float(count), mean, squares)
        return output

    @torch.no_grad()
    def _track(self, count: float, mean_C: torch.Tensor, squares_C: torch.Tensor) -> None:
        """Move the running statistics towards the batch's mean and unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        if count == 0:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), factor)
        self.running_var.lerp_((squares_C / (count - 1)).to(self.running_var.dtype), factor)


class _NormalizeOverRanks(torch.autograd.Function):
    """y = (x - mean) / std * weight + bias with mean and std over all ranks; also count, mean, sum of squares."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_C: torch.Tensor | None,
        bias_C: torch.Tensor | None,
        eps: float,
        group: dist.ProcessGroup | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        axes = [0] if x.ndim == 2 else [0, 2]
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        channels = x.shape[1]
        local_count = x.numel() // channels if channels else 0
        statistics = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        if local_count:
            variance_C, mean_C = torch.var_mean(wide, axes, correction=0)
            statistics[0] = local_count
            statistics[1 : channels + 1] = mean_C
            statistics[channels + 1 :] = variance_C.double() * local_count
        gathered = [torch.empty_like(statistics) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, statistics, group=group)
        count, mean_C, squares_C = _combine(torch.stack(gathered))
        if count == 1:
            raise ValueError(
                "SyncBatchNorm1d: expected more than 1 value per channel over all ranks when training, "
                f"found 1 (local input {tuple(x.shape)}); skip such a step or use a larger batch"
            )
        inverse_std_C = torch.rsqrt(squares_C / count.clamp(min=1) + eps)
        shape = [1, channels] + [1] * (x.ndim - 2)
        normal = (wide - mean_C.to(wide.dtype).view(shape)) * inverse_std_C.to(wide.dtype).view(shape)
        output = normal if weight_C is None else normal * weight_C.view(shape).to(wide.dtype)
        if bias_C is not None:
            output = output + bias_C.view(shape).to(wide.dtype)
        ctx.save_for_backward(normal, weight_C, inverse_std_C.to(wide.dtype))
        ctx.count, ctx.group, ctx.axes, ctx.shape = float(count), group, axes, shape
        ctx.mark_non_differentiable(count, mean_C, squares_C)
        return output.to(x.dtype), count, mean_C, squares_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        normal, weight_C, inverse_std_C = ctx.saved_tensors
        gradient = gradients[0].to(normal.dtype)
        bias_gradient_C = gradient.sum(ctx.axes)
        weight_gradient_C = (gradient * normal).sum(ctx.axes)
        sums = torch.cat([bias_gradient_C, weight_gradient_C])
        dist.all_reduce(sums, group=ctx.group)  # on every rank, whether or not its own input wants a gradient
        x_gradient = None
        if ctx.needs_input_grad[0]:
            mean_gradient_C, mean_product_C = (sums / max(ctx.count, 1.0)).chunk(2)
            scale_C = inverse_std_C if weight_C is None else inverse_std_C * weight_C.to(normal.dtype)
            x_gradient = scale_C.view(ctx.shape) * (
                gradient - mean_gradient_C.view(ctx.shape) - normal * mean_product_C.view(ctx.shape)
            )
            x_gradient = x_gradient.to(gradients[0].dtype)
        return (
            x_gradient,
            weight_gradient_C if ctx.needs_input_grad[1] else None,
            bias_gradient_C if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def _combine(statistics_WS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Count, mean [C] and sum of squared deviations [C] of all ranks' (count, mean, squares), stable and in rank order.

    Source: Chan, Golub, LeVeque 1979, Updating formulae for computing sample variances, eq. 2.1.
    """
    channels = (statistics_WS.shape[1] - 1) // 2
    count_W1 = statistics_WS[:, :1]
    mean_WC, squares_WC = statistics_WS[:, 1 : channels + 1], statistics_WS[:, channels + 1 :]
    count = count_W1.sum()
    mean_C = (mean_WC * count_W1).sum(0) / count.clamp(min=1)
    squares_C = (squares_WC + count_W1 * (mean_WC - mean_C).square()).sum(0)
    return count, mean_C, squares_C


def convert_sync_batchnorm(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """The module with every `BatchNorm1d` replaced by one that is synchronised over `process_group`
    (default: all ranks).

    torch's own `SyncBatchNorm` if the layer lies on a GPU, `SyncBatchNorm1d` elsewhere. Parameters and buffers are the
    same objects (an optimiser stays valid), the training flag and sharing of a layer are kept. The module is changed in
    place; only if it is itself a `BatchNorm1d` the result is another object. Convert before wrapping in DDP.
    """
    return _convert(module, process_group, {})


def _convert(module: nn.Module, group: dist.ProcessGroup | None, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in done:
        return done[module]
    done[module] = module
    if isinstance(module, nn.BatchNorm1d) and not isinstance(module, SyncBatchNorm1d):
        done[module] = _synchronised(module, group)
    for name, child in list(module._modules.items()):  # named_children() would skip a layer's second occurrence
        if child is not None:
            module._modules[name] = _convert(child, group, done)
    return done[module]


def _synchronised(layer: nn.BatchNorm1d, group: dist.ProcessGroup | None) -> nn.Module:
    tensors = [t for t in (layer.weight, layer.running_mean) if t is not None]
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    kind: type[_BatchNorm] = nn.SyncBatchNorm if on_gpu else SyncBatchNorm1d
    synchronised = kind(
        layer.num_features,
        layer.eps,
        layer.momentum,
        layer.affine,
        layer.track_running_stats,
        process_group=group,  # type: ignore[call-arg]
    )
    synchronised.weight, synchronised.bias = layer.weight, layer.bias
    synchronised.running_mean, synchronised.running_var = layer.running_mean, layer.running_var
    synchronised.num_batches_tracked = layer.num_batches_tracked
    return synchronised.train(layer.training)
