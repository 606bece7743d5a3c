"""Owns how a teacher gets onto its device, and in which precision it works there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from ...storage_schemas.fingerprint import Json
from ..models.compute import Compute
from ..models.settings import AUTOCAST, WEIGHTS
from .base import Teacher


@runtime_checkable
class HasBf16Copy(Protocol):
    """A teacher whose image tower can have its weights in bf16. Others compute under autocast."""

    def bf16_copy(self, device: torch.device) -> Teacher:
        """A copy for images alone, on a device; the teacher itself keeps its fp32 weights."""


def settle_precision(
    teacher: Teacher, compute: Compute, begun: Mapping[str, Json] | None
) -> tuple[Compute, tuple[str, ...]]:
    """What `compute` becomes for this teacher and an output that may have been begun, and a note for people if it changes.

    Args:
        teacher: loaded.
        compute: as the settings say.
        begun: the fingerprint that a begun output records; None for a new one. Earlier versions knew autocast alone, by the
            name of `bf16`: what they began is finished so, by the same command.
    """
    if compute.precision != WEIGHTS:
        return compute, ()
    if begun is not None and begun.get("compute", {}).get("precision") == AUTOCAST:
        note = "the store was begun under autocast, and is continued so (--precision amp_bf16)"
    elif not isinstance(teacher, HasBf16Copy):
        note = "this teacher has no copy with weights in bf16: it computes under autocast (--precision amp_bf16)"
    else:
        return compute, ()
    return replace(compute, precision=AUTOCAST), (note,)


def place(teacher: Teacher, compute: Compute) -> Teacher:
    """The teacher on its device, ready for images: itself, or a copy with weights in bf16."""
    device = torch.device(compute.device)
    if compute.precision == WEIGHTS and isinstance(teacher, HasBf16Copy):
        return teacher.bf16_copy(device)
    return teacher.to(device)
