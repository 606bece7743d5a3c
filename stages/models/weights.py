"""Owns weights: files, read without pickle; how they fit a module; the digest of a module's weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError

Tensors = dict[str, Tensor]

#: Keys under which training scripts keep the weights in a checkpoint; the first that is there is taken.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


#: What training scripts pickle beside the weights: optimisers, and schedules that hold one. CoOp's (Dassl's) trainer
#: does so in every file. Nothing of it is built; an empty object or dict takes its place.
_LEFT_UNBUILT = (
    "torch.optim.adam.Adam", "torch.optim.adamw.AdamW", "torch.optim.rmsprop.RMSprop", "torch.optim.sgd.SGD",
    "torch.optim.lr_scheduler.CosineAnnealingLR", "torch.optim.lr_scheduler.MultiStepLR",
    "torch.optim.lr_scheduler.StepLR", "builtins.dict",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        weights: tensors on the CPU, by name.
        beside: what a training script kept with them, such as `epoch`; never the objects that it pickled.
    """

    weights: Tensors
    beside: Mapping[str, Any]
    entry: str = ""
    openai: bool = False


def read_weights(path: str) -> Tensors:
    """The tensors of a `.safetensors` or torch file, on the CPU, by name.

    Raises:
        InputError: as `read_weights_file`.
    """
    return read_weights_file(path).weights


def read_weights_file(path: str) -> WeightsFile:
    """A `.safetensors` or torch file. Torch files are read with `weights_only=True`: nothing in them is run.

    Raises:
        InputError: no such file, or not a file of weights.
    """
    location = Location.of(path)
    if not location.exists() or location.is_dir():
        raise InputError("no such file of weights", where=location)
    found: Any
    try:
        if path.endswith(".safetensors"):
            found = safetensors.torch.load_file(location.path)
        else:
            unbuilt = [(_Unbuilt, name) for name in _LEFT_UNBUILT]
            with torch.serialization.safe_globals([*unbuilt, (_empty_dict, "collections.defaultdict")]):
                found = torch.load(location.path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for bad bytes, without a common base
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        if pickled is not None:
            raise InputError(
                "cannot read weights", where=location, found=f"a pickled object ({pickled[1]}), and nothing in a file is run",
                hint="where you trust the file, save its weights alone: "
                "torch.save({'state_dict': checkpoint['state_dict']}, NEW_FILE)",
            ) from error  # fmt: skip
        raise InputError(
            "cannot read weights",
            where=location,
            found=brief(error),
            hint="give a .safetensors file, or a torch file of tensors (no TorchScript, no pickled objects)",
        ) from error
    beside: dict[str, Any] = {}
    for wrapper in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            beside = {name: value for name, value in found.items() if name != wrapper}
            found = found[wrapper]
            break
    if (
        not isinstance(found, dict)
        or not all(isinstance(value, Tensor) for value in found.values())
        or not found
    ):
        raise InputError(
            "not a file of weights", where=location, expected="tensors by name", found=type(found).__name__
        )
    weights = {name.removeprefix("module."): value for name, value in found.items()}
    return WeightsFile(weights=weights, beside=beside)


class _Unbuilt:
    """Stands in for a pickled object, and keeps nothing of it."""

    def __new__(cls, *arguments: Any) -> _Unbuilt:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None


def _empty_dict(*arguments: Any) -> dict[Any, Any]:
    return {}


def names_in_order(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str, where: object
) -> Tensors:
    """`weights` under the names of `own`, for a port that has the same layers in the same order under other names.

    Order is trusted only where every tensor agrees in shape and in the last part of its name.

    Raises:
        InputError: naming the first tensor that does not agree, or both numbers.
    """
    if len(own) != len(weights):
        raise InputError(
            f"weights do not fit {what}", where=where, expected=f"{len(own)} tensors", found=len(weights)
        )
    for (name, tensor), (other, found) in zip(own.items(), weights.items(), strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2] or tensor.shape != found.shape:
            raise InputError(
                f"weights do not fit {what}",
                where=where,
                expected=f"{name} {tuple(tensor.shape)}",
                found=f"{other} {tuple(found.shape)}",
            )
    return dict(zip(own, weights.values(), strict=True))


def fit_weights(
    module: nn.Module, weights: Mapping[str, Tensor], *, what: str, where: object, partly: bool = False, consume: bool = False
) -> None:
    """Load `weights` into `module`; every name and shape must fit. `partly`: the others stay as they are.

    Raises:
        InputError: naming the first weight that is missing, left over or of another shape.
    """
    own = module.state_dict()
    missing = [] if partly else sorted(own.keys() - weights.keys())
    extra = sorted(weights.keys() - own.keys())
    wrong = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or extra or wrong:
        if wrong:
            name = wrong[0]
            expected, found = f"{name} {tuple(own[name].shape)}", str(tuple(weights[name].shape))
        elif missing:
            expected, found = f"a weight {missing[0]}", f"none ({len(missing)} missing, {len(extra)} unknown)"
        else:
            expected, found = "no other weights", f"{extra[0]} ({len(extra)} unknown)"
        raise InputError(f"weights do not fit {what}", where=where, expected=expected, found=found)
    module.load_state_dict(weights, strict=not partly)


def weights_digest(module: nn.Module) -> str:
    """blake2b-128 over names, types, shapes and bytes of all weights and buffers, in hexadecimal."""
    state = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


def brief(error: Exception) -> str:
    """What another library's error says, on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def looks_like_path(text: str) -> bool:
    """Whether `--student-pretrained TEXT` means a file rather than a tag."""
    endings = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
    return text.endswith(endings) or "/" in text or Location.of(text).exists()
