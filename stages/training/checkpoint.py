"""Owns the checkpoint of a training run: one safetensors file, replaced as a whole, the last good one stays.

It holds what training changes (trained weights, buffers, the optimizer's state) and, in its metadata, the
step and the fingerprint of the run. The order of samples and the learning rate are functions of the step, so
they need no state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Fingerprint, canonical_json
from ..students.student import Student

_WEIGHT, _STATE = "student/", "optimizer/"


def save_checkpoint(
    location: Location,
    student: Student,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    fingerprint: Fingerprint,
) -> None:
    """Write the state after `step` steps, durably and atomically."""
    tensors = {_WEIGHT + name: value for name, value in _changing(student).items()}
    for name, parameter in student.trained().items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):  # SGD keeps None where it has no momentum yet
                tensors[f"{_STATE}{name}/{key}"] = value
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    about = {"step": step, "fingerprint": dict(fingerprint.fields)}
    location.write_bytes(safetensors.torch.save(plain, {"checkpoint": canonical_json(about).decode()}))


def load_checkpoint(
    location: Location, student: Student, optimizer: torch.optim.Optimizer, *, fingerprint: Fingerprint
) -> int:
    """Put the saved state into `student` and `optimizer`. Returns the steps done, 0 if there is none.

    Raises:
        MismatchError: a checkpoint of another run; names the differing field.
        DamagedError: not a checkpoint, or one that lacks something.
    """
    if not location.exists():
        return 0
    hint = "delete it to train from the start, or restore it"
    try:
        with safetensors.safe_open(location.path, "pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            step, fields = int(about["step"]), about["fingerprint"]
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            "not a checkpoint of distill", where=location, found=str(error), hint=hint
        ) from error
    fingerprint.check(
        fields, what="a checkpoint of another run", where=location,
        hint="use the options of the run that wrote it, or another --out",
    )  # fmt: skip
    changing = _changing(student)
    wrong = {
        n
        for n in changing
        if n not in _part(tensors, _WEIGHT) or changing[n].shape != tensors[_WEIGHT + n].shape
    }
    if wrong or len(_part(tensors, _WEIGHT)) != len(changing):
        raise DamagedError(
            "a checkpoint does not fit the student",
            where=location,
            found=min(wrong, default="more weights"),
            hint=hint,
        )
    with torch.no_grad():
        for name, value in changing.items():
            value.copy_(tensors[_WEIGHT + name])
    state = _part(tensors, _STATE)
    for name, parameter in student.trained().items():
        own = {
            key.rpartition("/")[2]: value for key, value in state.items() if key.rpartition("/")[0] == name
        }
        if own:
            optimizer.state[parameter] = {key: _place(key, value, parameter) for key, value in own.items()}
    return step


def _changing(student: Student) -> dict[str, Tensor]:
    """The tensors of the student that training changes: trained parameters and buffers."""
    fixed = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in student.state_dict().items() if name not in fixed}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _place(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    # AdamW counts steps on the CPU. Everything else lies as the parameter does, memory layout included:
    # another layout may take another kernel, with other low bits.
    return value.clone() if key == "step" else torch.empty_like(parameter).copy_(value)
