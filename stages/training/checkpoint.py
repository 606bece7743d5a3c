"""Owns a training run's files of weights: the checkpoint to resume from, and the best weights so far.

Each is one safetensors file, replaced as a whole; the last good one stays. A checkpoint holds what training
changes (weights, buffers, their moving average, the optimizer's state) and, in its metadata, where training is
and the fingerprint of the run. The order of samples and the learning rate are functions of the step, so they
need no state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Fingerprint, Json, canonical_json
from ...storage_schemas.json_file import Count, as_schema, read_sealed, seal
from ..models.weights import tensors_digest
from .average import Average

#: Name of the checkpoint in the run's folder.
CHECKPOINT = "checkpoint.safetensors"

_WEIGHT, _AVERAGE, _STATE = "weights/", "average/", "optimizer/"
_START_ANEW = "restore it from a copy, or train from the start with another --out"


#: Where in a file's metadata lies what it is.
_METADATA = "checkpoint"

About = TypeVar("About")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The epoch (from 0) after which the student was best on the validation images, and its figure there."""

    epoch: Count
    step: Count
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Where training is: steps done, and the best weights so far where there is a validation split.

    Attributes:
        average: at the end, what the bundle records of an average that it holds.
    """

    step: int = 0
    best: Best | None = None
    average: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _About:
    step: Count
    best: Best | None
    fingerprint: dict[str, Any]


class Trainee(Protocol):
    """What is trained: a student, or a teacher's prompts."""

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters that train, by name."""

    def changing(self) -> Mapping[str, Tensor]:
        """All that training changes, by name."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a checkpoint is of. All of it is changed in place.

    Attributes:
        trainee, optimizer: on their device.
        average: of the trainee's weights, if there is one.
    """

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    average: Average | None

    def final(self) -> Mapping[str, Tensor]:
        """What the bundle would hold now, of all that changes."""
        return self.average.final() if self.average is not None else self.trainee.changing()


def save_checkpoint(folder: Location, training: Training, state: TrainState, fingerprint: Fingerprint) -> None:
    """Write the state, durably and atomically, then forget best weights that it no longer needs."""
    tensors = {_WEIGHT + name: value for name, value in training.trainee.changing().items()}
    if training.average is not None:
        tensors |= {_AVERAGE + name: value for name, value in training.average.state().items()}
    for name, parameter in training.trainee.trained().items():
        for key, value in training.optimizer.state[parameter].items():
            if isinstance(value, Tensor):  # SGD keeps None where it has no momentum yet
                tensors[f"{_STATE}{name}/{key}"] = value
    about = {
        "step": state.step,
        "best": state.best and asdict(state.best),
        "fingerprint": dict(fingerprint.fields),
    }
    _write(folder / CHECKPOINT, tensors, about)
    for name in folder.names():
        if name.startswith("best-") and (state.best is None or name != _best_name(state.best)):
            (folder / name).remove()


def load_checkpoint(folder: Location, training: Training, fingerprint: Fingerprint) -> TrainState:
    """Put the saved state into `training`. Returns that state; the beginning if there is none.

    Raises:
        MismatchError: a checkpoint of another run; names the differing field.
        DamagedError: not a checkpoint, or one that lacks something.
    """
    location = folder / CHECKPOINT
    if not location.exists():
        return TrainState()
    tensors, about = _read(location, _About)
    state = TrainState(step=about.step, best=about.best)
    fingerprint.check(
        about.fingerprint,
        what="a checkpoint of another run",
        code="checkpoint-other-run",
        where=location,
        hint="use the options of the run that wrote it, or another --out",
        whose=("this run", "the checkpoint"),
    )
    _copy(_part(tensors, _WEIGHT), training.trainee.changing(), location)
    if training.average is not None:
        try:
            training.average.load(_part(tensors, _AVERAGE))
        except (KeyError, ValueError) as error:
            raise _does_not_fit(location, str(error.args[0])) from error
    optimizer_state = _part(tensors, _STATE)
    for name, parameter in training.trainee.trained().items():
        own = {
            key.rpartition("/")[2]: value for key, value in optimizer_state.items() if key.rpartition("/")[0] == name
        }
        if own:
            training.optimizer.state[parameter] = {key: _place(key, value, parameter) for key, value in own.items()}
    return state


def save_best(folder: Location, training: Training, best: Best) -> None:
    """Keep the weights that the bundle would hold now. The next checkpoint makes them count."""
    _write(folder / _best_name(best), dict(training.final()), asdict(best))


def load_best(folder: Location, training: Training, best: Best) -> None:
    """Give the trainee the best weights.

    Raises:
        DamagedError: they are not there, or not all of them.
    """
    location = folder / _best_name(best)
    tensors, _ = _read(location, Best)
    _copy(tensors, training.trainee.changing(), location)


def discard(folder: Location) -> None:
    """Free the disk, once the bundle is there."""
    for name in folder.names():
        if name == CHECKPOINT or name.startswith("best-"):
            (folder / name).remove()


def _best_name(best: Best) -> str:
    return f"best-{best.step:09d}.safetensors"


def _write(location: Location, tensors: Mapping[str, Tensor], about: Mapping[str, Json]) -> None:
    """One file: the tensors; what they are, their digest, and the digest of that. (One key of metadata: safetensors
    keeps several in any order, and equal runs write equal bytes.)"""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    sealed = seal({**about, "tensors": tensors_digest(plain)})
    location.write_bytes(safetensors.torch.save(plain, {_METADATA: canonical_json(sealed).decode()}))


def _read(location: Location, schema: type[About]) -> tuple[dict[str, Tensor], About]:
    what = "not a checkpoint of a training run"
    try:
        data, tensors = _tensors(location)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedError(
            what, code="checkpoint-malformed", where=location, found=str(error), hint=_START_ANEW
        ) from error
    about = read_sealed(data, dict[str, Any], what=what, code="checkpoint-malformed", where=location, hint=_START_ANEW)
    expected = about.get("tensors")  # none in those of early versions
    if expected is not None and (found := tensors_digest(tensors)) != expected:
        raise DamagedError(
            "a checkpoint changed since it was written",
            code="checkpoint-changed",
            where=location,
            expected=expected,
            found=found,
            hint=_START_ANEW,
        )
    return tensors, as_schema(about, schema, what=what, code="checkpoint-malformed", where=location, hint=_START_ANEW)


def _tensors(location: Location) -> tuple[bytes, dict[str, Tensor]]:
    """Metadata and tensors of a file; one on this machine is mapped, so that it is in memory once."""
    path = location.local_path()
    if path is not None:
        with safetensors.safe_open(path, "pt") as file:
            about = (file.metadata() or {})[_METADATA].encode()
            return about, {name: file.get_tensor(name) for name in list(file.keys())}
    content = location.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"][_METADATA].encode(), safetensors.torch.load(content)


@torch.no_grad()
def _copy(saved: Mapping[str, Tensor], into: Mapping[str, Tensor], location: Location) -> None:
    wrong = {name for name in into if name not in saved or into[name].shape != saved[name].shape}
    if wrong or len(saved) != len(into):
        raise _does_not_fit(location, min(wrong, default="more weights"))
    for name, value in into.items():
        value.copy_(saved[name])


def _does_not_fit(location: Location, found: str) -> DamagedError:
    return DamagedError(
        "a checkpoint does not fit the model",
        code="checkpoint-does-not-fit",
        where=location,
        found=found,
        hint=_START_ANEW,
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _place(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    # AdamW counts steps on the CPU. Everything else lies as the parameter does, memory layout included:
    # another layout may take another kernel, with other low bits.
    return value.clone() if key == "step" else torch.empty_like(parameter).copy_(value)
