"""Owns ranks: which of the processes that train one student together this one is, and what they exchange.

They are processes of torch.distributed, however they were started (Ray Train, torchrun). Gradients go through
DistributedDataParallel; everything else that they exchange is small and goes through here, as JSON and never pickled.
"""

from __future__ import annotations

import inspect
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Json, canonical_json
from ..models.weights import weights_digest
from .synced_batch_norm import sync_batch_norm

# torch 2.15 warns of the old name.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: Any = {"forward_sync_buffers" if _NEW_NAME else "broadcast_buffers": False}


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one student. Every method but the properties is called by all ranks alike.

    Attributes:
        rank: this process, from 0.
        world_size: number of processes; 1 where torch.distributed was not started, and then nothing is exchanged.
    """

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def here() -> Ranks:
        """From torch.distributed in this process."""
        if not (dist.is_available() and dist.is_initialized()):
            return Ranks()
        return Ranks(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes: checkpoints, log, bundle, receipt, the bar."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """What to call in training steps instead of `module`, which lies on `device`; alone, `module` itself.

        `backward` leaves the mean of all ranks' gradients in its parameters, and batch norms look at the whole batch:
        so equal parts of a batch give what the whole batch gives. Everything else (weights, state, evaluation) stays
        with `module`. Buffers are not sent around, since every rank computes the same. Weights without a gradient are
        allowed; that also keeps DistributedDataParallel from rearranging its buckets after the first step, by
        which a resumed run would sum in another order than one that went on.

        Raises:
            MismatchError: the ranks start from different weights.
        """
        if self.world_size == 1:
            return module
        digests = self.gather(weights_digest(module))
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise MismatchError(
                    "the ranks start from different weights of the student",
                    code="student-weights-differ-here",
                    where=f"rank {rank}",
                    expected=f"{digests[0]} as on rank 0",
                    found=digest,
                    hint="give every node the same files and the same versions of torch and teachonce",
                )
        return DistributedDataParallel(
            sync_batch_norm(module, device),
            find_unused_parameters=True,
            **_OWN_BUFFERS,
        )

    def gather(self, value: Json) -> list[Json]:
        """Every rank's JSON value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(canonical_json(value)), dtype=torch.uint8)
        lengths = self._all_gather(torch.tensor([len(own)]))
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(own)] = own
        rows = self._all_gather(padded)
        return [json.loads(row.numpy()[: int(n)].tobytes()) for row, n in zip(rows, lengths, strict=True)]

    def agree(self, value: Json) -> Json:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank: to stop together, where one alone would leave the others waiting."""
        return any(self.gather(flag))

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over ranks of a float tensor of the same shape on each; without a gradient."""
        if self.world_size == 1:
            return tensor.detach()
        total = tensor.detach().to(_exchange_device(), copy=True)
        dist.all_reduce(total)
        return (total / self.world_size).to(tensor.device)

    def _all_gather(self, tensor: Tensor) -> Tensor:
        local = tensor.to(_exchange_device())
        rows = [torch.empty_like(local) for _ in range(self.world_size)]
        dist.all_gather(rows, local)
        return torch.stack(rows).cpu()


def accumulating(module: nn.Module) -> AbstractContextManager[None]:
    """For forward and backward of all but the last part of a step: gradients add up here, not yet exchanged."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _exchange_device() -> torch.device:
    """Where tensors must lie to be exchanged: NCCL works on GPUs only."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
