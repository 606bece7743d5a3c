"""Owns batch norm over all ranks: in training, mean and variance are those of the whole batch, not of a rank's slice.

On a GPU this is torch's own SyncBatchNorm, which does not run on CPUs. There, calls of `batch_norm` are answered here, whatever
module makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def sync_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` whose batch norms, in training mode, look at all ranks; the same parameters and buffers.

    What comes back is for training steps that all ranks take alike. Where there is no batch norm it is `module`. On a GPU
    its batch norms are exchanged in place; on the CPU it is wrapped, so keep the original for its `state_dict`.
    """
    if not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return module
    if device.type == "cuda":
        from timm.layers.norm_act import convert_sync_batchnorm  # torch's, and timm's norms with activation

        synced: nn.Module = convert_sync_batchnorm(module)
        return synced
    return _Synced(module)


class _Synced(nn.Module):
    """Runs a module with its batch norms over all ranks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        with _Mode():
            return self.module(*inputs)


class _Mode(TorchFunctionMode):
    """Answers `F.batch_norm` in training mode, which torch's and timm's modules call; lets all else pass."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.batch_norm:
            return batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over the batches of all ranks, which may differ in size.

    Args:
        input: (N, C, …) on the CPU; fp32, fp64 or bf16.
        running_mean, running_var: (C,), fp32 at least, updated: the variance that is kept is the unbiased one.
        weight, bias: (C,), fp32 at least.
        training, momentum, eps: as there. All but training calls go there.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    out_NC: Tensor = _OverRanks.apply(input, running_mean, running_var, weight, bias, momentum, eps)  # type: ignore[no-untyped-call]
    return out_NC


class _OverRanks(torch.autograd.Function):
    """torch's kernels for one process, and two exchanges of a few numbers a channel."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        own_mean_C, own_var_C = (value.double() for value in torch.batch_norm_update_stats(input, None, None, 0))
        own_n = torch.full_like(own_mean_C, input.numel() // input.shape[1])
        # In fp64, so that mean(x²) - mean(x)² loses nothing.
        sums_3C = torch.stack([own_n, own_n * own_mean_C, own_n * (own_var_C + own_mean_C.square())])
        dist.all_reduce(sums_3C)
        n_C, mean_C = sums_3C[0], sums_3C[1] / sums_3C[0]
        var_C = (sums_3C[2] / n_C - mean_C.square()).clamp_min(0)
        if running_mean is not None:
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var_C * n_C / (n_C - 1)).to(running_var.dtype), momentum)
        fine = torch.promote_types(input.dtype, torch.float32)
        mean_C, var_C = mean_C.to(fine), var_C.to(fine)
        ctx.save_for_backward(input, weight, mean_C, var_C, n_C)
        ctx.eps = eps
        return F.batch_norm(input, mean_C, var_C, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The kernel takes mean and variance for constants; what flows through them is linear in `input`."""
        input, weight, mean_C, var_C, n_C = ctx.saved_tensors
        by_input, by_weight_C, by_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient, input, weight, mean_C, var_C, None, None, False, ctx.eps, [True, True, True]
        )
        sums_2C = torch.stack([by_weight_C, by_bias_C]).double()
        dist.all_reduce(sums_2C)
        mean_by_weight_C, mean_by_bias_C = (sums_2C / n_C).to(mean_C.dtype)
        inverse_std_C = (var_C + ctx.eps).rsqrt()
        factor_C = inverse_std_C if weight is None else inverse_std_C * weight
        slope_C = -factor_C * inverse_std_C * mean_by_weight_C
        offset_C = -factor_C * mean_by_bias_C - slope_C * mean_C
        shape = [1, -1] + [1] * (input.ndim - 2)
        through_statistics = torch.addcmul(offset_C.view(shape), input, slope_C.view(shape))
        by_input = (by_input + through_statistics).to(input.dtype)
        wanted = ctx.needs_input_grad
        return (
            by_input,
            None,
            None,
            by_weight_C if wanted[3] else None,
            by_bias_C if wanted[4] else None,
            None,
            None,
        )
