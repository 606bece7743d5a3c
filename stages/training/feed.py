"""Owns the way of batches to the device: the next one is copied while the present one is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor


class Pairs(Protocol):
    """What training needs of a batch (see `stream.Batch`)."""

    @property
    def images_NCHW(self) -> Tensor: ...
    @property
    def targets(self) -> Mapping[str, Tensor]: ...


#: uint8 images (N, 3, H, W) and targets by name, on the device.
OnDevice = tuple[Tensor, dict[str, Tensor]]


def feed(pairs: Iterator[Pairs], device: torch.device) -> Iterator[OnDevice]:
    """The batches on the device, in order.

    On CUDA a batch is requested while the kernels of the one before still run, and copied in a stream of its own
    (from page-locked memory, see `TargetStream`), so neither loading nor copying holds up the model.
    """
    if device.type != "cuda":
        for batch in pairs:
            yield batch.images_NCHW, dict(batch.targets)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in pairs:
        with torch.cuda.stream(copying):
            images_NCHW = batch.images_NCHW.to(device, non_blocking=True)
            targets = {name: values.to(device, non_blocking=True) for name, values in batch.targets.items()}
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in (images_NCHW, *targets.values()):
            tensor.record_stream(computing)  # its memory is the other stream's: not before this one is done
        yield images_NCHW, targets
