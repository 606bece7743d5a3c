"""Owns the copy of a model whose weights are in bf16: cast once, and not anew in every pass as autocast does.

The copy runs under autocast too, and gives autocast's numbers: whatever that keeps in fp32, such as softmax, stays there, and a
sum of branches has the type that it would have had. Layer norms of bf16 input are the exception. Autocast turns it to fp32
and back in kernels of their own, a tenth of a ViT-L's pass on a GPU; torch's kernel for bf16 computes in fp32 inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)

#: Modules whose weights autocast casts, as they are, in every pass. Subclasses that do more with them are not meant.
_PRODUCTS: tuple[Any, ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def bf16_copy(module: _Module, device: torch.device) -> _Module:
    """A frozen copy on a device, whose weights of matrix products are in bf16; the module itself stays as and where it is.

    All else keeps its type: norms, buffers, and single parameters, where open_clip does not cast them in every pass.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        dtype = torch.bfloat16 if _is_cast(part) else None
        for parameter in part.parameters(recurse=False):
            memo[id(parameter)] = nn.Parameter(parameter.detach().to(device, dtype), requires_grad=False)
        for buffer in part.buffers(recurse=False):
            memo[id(buffer)] = buffer.to(device)
    twin = copy.deepcopy(module, memo)  # takes from `memo` what is there: no fp32 weight is copied
    norms: list[Any] = [part for part in twin.modules() if isinstance(part, nn.LayerNorm)]
    for norm in norms:
        norm.forward = _in_bf16(norm, device)
    return twin


def with_parts(module: _Module, **parts: nn.Module | nn.Parameter) -> _Module:
    """The same module with other parts in the places of its own; all else is shared with it."""
    twin = copy.copy(module)
    twin._modules, twin._parameters = dict(module._modules), dict(module._parameters)
    for name, part in parts.items():
        setattr(twin, name, part)
    return twin


def _is_cast(part: nn.Module) -> bool:
    from open_clip.modified_resnet import AttentionPool2d
    from open_clip.transformer import VisionTransformer

    plain = any(isinstance(part, kind) and type(part).forward is kind.forward for kind in _PRODUCTS)
    return plain or isinstance(part, (nn.MultiheadAttention, VisionTransformer, AttentionPool2d))


def _in_bf16(norm: nn.LayerNorm, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A layer norm's `forward` without the way to fp32 and back, where its input is in bf16."""
    own = norm.forward
    low = own if _takes_fp32_weights(device) else copy.deepcopy(norm).to(torch.bfloat16).forward

    def forward(x: Tensor) -> Tensor:
        if x.dtype is not torch.bfloat16:
            return own(x)
        with torch.autocast(x.device.type, enabled=False):
            return low(x)

    return forward


def _takes_fp32_weights(device: torch.device) -> bool:
    """Whether the kernel for layer norms of bf16 input takes weights in fp32. CUDA's takes them in the input's type only."""
    return device.type == "cpu"
