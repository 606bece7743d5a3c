"""Owns weights: files, read without pickle; how they fit a module; the digest of a module's weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy
import numpy.dtypes
import safetensors
import torch
from torch import Tensor, nn

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import brief as brief  # for all that read weights
from .building import take_weights
from .torchscript import TorchScript, is_torchscript, read_torchscript

Tensors = dict[str, Tensor]

#: Keys under which training scripts keep the weights in a checkpoint, one inside the other; the first that is there is
#: taken. Moving averages come first: timm, DeiT and ConvNeXt evaluate those.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "checkpoint",
    "module",
)

#: How many wrappers lie one inside the other, at most.
_MOST_WRAPPERS = 4

#: What DistributedDataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")

#: Numbers that OpenAI's files keep among the weights.
_OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")

#: What training scripts pickle beside the weights: optimisers, schedules that hold one (CoOp's trainer, Dassl, in every
#: file), numbers of numpy, and settings. Nothing of it is built; an empty object takes its place.
_LEFT_UNBUILT = (
    *(
        f"torch.optim.{name}"
        for name in (
            "adam.Adam",
            "adamw.AdamW",
            "rmsprop.RMSprop",
            "sgd.SGD",
            "lr_scheduler.CosineAnnealingLR",
            "lr_scheduler.CosineAnnealingWarmRestarts",
            "lr_scheduler.ExponentialLR",
            "lr_scheduler.LambdaLR",
            "lr_scheduler.LinearLR",
            "lr_scheduler.MultiStepLR",
            "lr_scheduler.OneCycleLR",
            "lr_scheduler.SequentialLR",
            "lr_scheduler.StepLR",
        )
    ),
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{name}" for name in numpy.dtypes.__all__),
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in (
            "Path",
            "PosixPath",
            "PurePath",
            "PurePosixPath",
            "PureWindowsPath",
            "WindowsPath",
        )
    ),
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Enum", "Float", "Integer", "Path", "String")),
    "typing.Any",
    "torch.torch_version.TorchVersion",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")),
)

#: Dicts with another name, most of them settings: read as plain dicts.
_DICTS = (
    "collections.defaultdict",
    "addict.addict.Dict",
    "detectron2.config.config.CfgNode",
    "easydict.EasyDict",
    "fvcore.common.config.CfgNode",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)

#: Arrays of numpy, by the function that builds them.
_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        weights: tensors on the CPU, by name, in memory of their own: the file may change afterwards.
        beside: what a training script kept with them, such as `epoch`; never the objects that it pickled.
        entry: the entry of the file that the weights are, such as `state_dict_ema` or `checkpoint.model_ema.module`;
            empty where the file is nothing else.
        openai: OpenAI's own CLIP, or one stored as theirs are. Its activation, which no weight shows, is QuickGELU.
    """

    weights: Tensors
    beside: Mapping[str, Any]
    entry: str = ""
    openai: bool = False


def read_weights_file(path: str) -> WeightsFile:
    """A `.safetensors` or torch file, TorchScript archives included. Nothing in a file is run.

    Torch files are read with `weights_only=True`. Names lose the `module.` and `_orig_mod.` that all of them have.

    Raises:
        InputError: no such file, or not a file of weights.
    """
    location = UserFile.of(path)
    if not location.is_file():  # a pipe or a device would never end
        raise InputError("no such file of weights", code="weights-missing", where=location)
    archive: TorchScript | None = None
    found: Any
    try:
        if path.endswith(".safetensors"):
            found = _read_safetensors(location)
        elif is_torchscript(location):
            archive = read_torchscript(location)
            found = archive.tensors
        else:
            stand_ins: list[Any] = [(_Unbuilt, name) for name in _LEFT_UNBUILT]
            stand_ins += [(_Dict, name) for name in _DICTS] + [(_Array, name) for name in _ARRAYS]
            with torch.serialization.safe_globals(stand_ins):
                found = torch.load(location.path, map_location="cpu", weights_only=True, mmap=False)
    except InputError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for bad bytes, without a common base
        pickled = re.search(r"GLOBAL ([\w.]+)", str(error))
        if pickled is not None:
            raise InputError(
                "cannot read weights",
                code="weights-unreadable",
                where=location,
                found=f"a pickled object ({pickled[1]}), and nothing in a file is run",
                hint="where you trust the file, save its weights alone: "
                "torch.save({'state_dict': checkpoint['state_dict']}, NEW_FILE)",
            ) from error
        raise InputError(
            "cannot read weights",
            code="weights-unreadable",
            where=location,
            found=brief(error),
            hint="give a .safetensors file, a torch file of tensors (no pickled objects), or a TorchScript archive",
        ) from error
    taken = _unwrap(found) if isinstance(found, dict) else None
    if taken is None:
        entries = f"entries {_some(map(str, found), len(found))}" if isinstance(found, dict) and found else None
        raise InputError(
            "not a file of weights",
            code="weights-malformed",
            where=location,
            expected="tensors by name",
            found=entries or type(found).__name__,
        )
    held, beside, entry = taken
    arrays = [str(name) for name, value in held.items() if isinstance(value, _Array)]
    if arrays:
        raise InputError(
            "cannot read weights",
            code="weights-unreadable",
            where=location,
            expected="tensors",
            found=f"numpy arrays ({_some(arrays, len(arrays))})",
            hint="save them as tensors: torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, "
            "NEW_FILE)",
        )
    weights = {str(name): value.detach() for name, value in held.items() if isinstance(value, Tensor)}
    beside |= {str(name): value for name, value in held.items() if not isinstance(value, Tensor)}
    # torch's AveragedModel counts beside the module that it wraps.
    if "n_averaged" in weights and all(n.startswith("module.") for n in weights if n != "n_averaged"):
        beside["n_averaged"] = weights.pop("n_averaged")
    weights = _strip(weights)
    if archive is not None:
        beside |= archive.values
    openai = _is_openai(weights, beside, archive)
    for name in _OPENAI_NUMBERS:
        number = weights.get(name, beside.get(name))
        if isinstance(number, Tensor) and number.numel() == 1:
            weights.pop(name, None)
            beside[name] = int(number)
    return WeightsFile(weights=weights, beside=beside, entry=entry, openai=openai)


def _read_safetensors(location: UserFile) -> Tensors:
    """The tensors of a file, in memory of their own.

    safetensors checks the file and describes the tensors; their bytes are read, not mapped, because a file that
    shrinks or is overwritten while it is mapped takes the process with it. Layout: 8 bytes of length, JSON, data
    (https://github.com/huggingface/safetensors#format).
    """
    weights: Tensors = {}
    with safetensors.safe_open(location.path, framework="pt") as described, location.open() as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
            like = described.get_tensor(name)
            tensor = torch.empty(like.shape, dtype=like.dtype)
            file.seek(8 + size + entry["data_offsets"][0])
            if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy()) != tensor.nbytes:  # type: ignore[attr-defined]
                raise ValueError(f"the file ends within {name}")
            weights[name] = tensor
    return weights


def _unwrap(found: Mapping[Any, Any], level: int = 0) -> tuple[Mapping[Any, Any], dict[str, Any], str] | None:
    """What holds tensors by name, what lies beside it and around it, and the entries that lead there."""
    found = dict(dict.items(found))  # type: ignore[arg-type]  # a pickled OrderedDict may bring an `items` of its own
    for wrapper in _WRAPPERS if level < _MOST_WRAPPERS else ():
        inside = found.get(wrapper)
        taken = _unwrap(inside, level + 1) if isinstance(inside, dict) else None
        if taken is not None:
            held, beside, entry = taken
            around = {str(name): value for name, value in found.items() if name != wrapper}
            return held, around | beside, f"{wrapper}.{entry}" if entry else wrapper
    return (found, {}, "") if any(isinstance(v, (Tensor, _Array)) for v in found.values()) else None


def _strip(weights: Tensors) -> Tensors:
    for prefix in _PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return _strip({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights


def _is_openai(weights: Tensors, beside: Mapping[str, Any], archive: TorchScript | None) -> bool:
    """By OpenAI's three numbers; a CLIP in TorchScript that does not name torch's GELU; or their mixed storage.

    `convert_weights` (https://github.com/openai/CLIP, clip/model.py) stores matrices in fp16 and layer norms in fp32.
    """
    if all(name in weights or (archive is not None and name in beside) for name in _OPENAI_NUMBERS):
        return True
    blocks = [name for name in weights if name.startswith("transformer.resblocks.")]
    if not blocks or not any(name.startswith("visual.") for name in weights):
        return False
    if archive is not None and "GELU" not in archive.classes:
        return True
    matrices = [weights[name].dtype for name in blocks if weights[name].ndim == 2]
    norm = weights.get("ln_final.weight")
    return (
        norm is not None
        and norm.dtype == torch.float32
        and bool(matrices)
        and all(dtype == torch.float16 for dtype in matrices)
    )


class _Unbuilt:
    """Stands in for a pickled object, and keeps nothing of it."""

    def __new__(cls, *arguments: Any) -> _Unbuilt:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        return None


class _Array(_Unbuilt):
    """Stands in for an array of numpy."""


class _Dict:
    """Stands in for a dict of another name; torch's reader fills no other kinds than these."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def names_in_order(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str, where: object) -> Tensors:
    """`weights` under the names of `own`, for a port that has the same layers in the same order under other names.

    Order is trusted only where every tensor agrees in shape and in the last part of its name.

    Raises:
        InputError: naming the first tensor that does not agree, or both numbers.
    """
    if len(own) != len(weights):
        raise InputError(
            f"weights do not fit {what}",
            code="weights-do-not-fit",
            where=where,
            expected=f"{len(own)} tensors",
            found=len(weights),
        )
    for (name, tensor), (other, found) in zip(own.items(), weights.items(), strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2] or tensor.shape != found.shape:
            raise InputError(
                f"weights do not fit {what}",
                code="weights-do-not-fit",
                where=where,
                expected=f"{name} {tuple(tensor.shape)}",
                found=f"{other} {tuple(found.shape)}",
            )
    return dict(zip(own, weights.values(), strict=True))


def fit_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    what: str,
    where: object,
    partly: bool = False,
    consume: bool = False,
) -> None:
    """Load `weights` into `module`; every name and shape must fit.

    Args:
        partly: weights that are not given stay as they are.
        consume: `weights` is a dict that is emptied as it goes, so that no second copy of it stays in memory; its
            tensors become the module's where they can (see `take_weights`).

    Raises:
        InputError: naming the first three weights of another shape, missing and unknown. Nothing is loaded then.
    """
    check_fit(module, weights, what=what, where=where, partly=partly)
    if consume:
        assert isinstance(weights, dict)
        take_weights(module, weights)
    else:
        module.load_state_dict(weights, strict=not partly)


def check_fit(
    module: nn.Module, weights: Mapping[str, Tensor], *, what: str, where: object, partly: bool = False
) -> None:
    """Compare names and shapes; nothing is loaded.

    Raises:
        InputError: as `fit_weights`.
    """
    own = module.state_dict()
    wrong = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    missing = [] if partly else [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    if wrong or missing or unknown:
        expected = [_shapes(own, names) for names in (wrong, missing) if names]
        found = [f"{_shapes(weights, wrong)} ({len(wrong)} of another shape)"] if wrong else []
        found += [f"none ({len(missing)} missing)"] if missing else []
        found += [f"{_shapes(weights, unknown)} ({len(unknown)} unknown)"] if unknown else []
        raise InputError(
            f"weights do not fit {what}",
            code="weights-do-not-fit",
            where=where,
            expected="; ".join(expected) or "no other weights",
            found="; ".join(found),
        )


def _shapes(weights: Mapping[str, Tensor], names: list[str]) -> str:
    return _some((f"{name} {tuple(weights[name].shape)}" for name in names), len(names))


def _some(texts: Iterable[str], count: int) -> str:
    """The first three of `count` texts, on one line."""
    return ", ".join([*islice(texts, 3), *(["…"] if count > 3 else [])])


def weights_digest(module: nn.Module) -> str:
    """blake2b-128 over names, types, shapes and bytes of all weights and buffers, in hexadecimal."""
    return tensors_digest(module.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """The same over any named tensors."""
    state = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        state.update(data)
    return state.hexdigest()


def looks_like_path(text: str) -> bool:
    """Whether `--student-pretrained TEXT` means a file rather than a tag."""
    endings = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
    return text.endswith(endings) or "/" in text or UserFile.of(text).exists()
