"""Owns how convolutional nets lie in memory: channels last, which is faster, and kept away from what it breaks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

#: oneDNN's vector of fp32 channels with AVX-512, and its widest; with AVX2 it has 8.
_BLOCK = 16


def use_channels_last(module: nn.Module) -> bool:
    """Put a convolutional net's weights channels last, in place. Returns whether its images belong there too.

    Convolutional nets train 1.4 to 1.8 times as fast on the CPU so. Nets with one convolution, such as patch
    embeddings, do not care and stay as they are.

    Strided convolutions that `overruns_channels_last` names become ones of stride 1 on every stride-th pixel:
    the same sums over the same weights by the same names, on any device and under `torch.compile`, which puts
    convolutions on the CPU channels last whether requested or not.
    """
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    if len(convolutions) < 2:
        return False
    for convolution in convolutions:
        if overruns_channels_last(convolution):
            step_h, step_w = convolution.stride
            convolution.register_forward_pre_hook(partial(_every, step_h, step_w))
            convolution.stride = (1, 1)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return True


def overruns_channels_last(convolution: nn.Conv2d) -> bool:
    """Whether training it on the CPU, channels last, writes past oneDNN's work space: ungrouped 1x1, strided, thin.

    For the gradient of such weights oneDNN gathers the pixels that the stride leaves into a space of pixels x
    channels, but steps through it by whole vectors of channels (https://github.com/uxlfoundation/oneDNN/issues/6035,
    open; seen in 3.13.3). With fewer channels than a vector holds, the later part of a large image, or of any
    image shared out among many threads, lands behind the space: a crash, a hang, or wrong gradients. Stride 1,
    larger kernels, groups, padding, and channels first go other ways; 16 channels fill the widest vector, so the
    shortcuts of resnets are safe.
    """
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride != (1, 1)
        and convolution.groups == 1
        and convolution.padding in ((0, 0), "valid")
        and convolution.in_channels < _BLOCK
    )


def _every(step_h: int, step_w: int, _convolution: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0][:, :, ::step_h, ::step_w],)
