"""Owns image models of transformers: loaded from safetensors alone, and what their image processors say of preprocessing.

Nothing of a repository is run (`trust_remote_code=False`), and no pickle is read (`use_safetensors=True`). transformers takes seconds to
import, so it is imported where one of its models is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError, MissingDependency
from ...storage_schemas.fingerprint import Json
from ..views.settings import FILTERS
from .hub import hub_access, one_line
from .known_weights import KnownWeights
from .names import RANDOM, TRANSFORMERS_PREFIX
from .preprocess import Preprocess, square_size

#: What a configuration says of where and by what it was written: no part of the architecture.
_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map", "architectures")

#: Pillow's numbers of its filters.
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

#: ConvNeXt's processor crops images under this size, and squashes larger ones.
_CONVNEXT_CROPS = 384


@dataclass(frozen=True, kw_only=True)
class TransformersModel:
    """A model as its library loads it, in fp32 on the CPU.

    Attributes:
        module: of `AutoModel`.
        name: ORG/REPO, or the last part of a folder's path.
        source: what `from_pretrained` was given.
        architecture: the configuration as its file has it.
        preprocess: of its image processor.
        weights: where its weights come from, as text without local paths.
        known: what is remembered of them.
    """

    module: Any
    name: str
    source: str
    architecture: Mapping[str, Json]
    preprocess: Preprocess
    weights: str
    known: KnownWeights

    def access(self) -> AbstractContextManager[None]:
        """Inside, further files of the model may be read or fetched."""
        return _access(self.source)


def load_transformers(typed: str, pretrained: str | None, *, size: int | None, rehash: bool) -> TransformersModel:
    """The model that `transformers:FOLDER` or `transformers:ORG/REPO` names.

    Args:
        typed: with the prefix.
        pretrained: None for its own weights, or `random` for seeded ones.
        size: pixels of its images; None for those of its processor.

    Raises:
        InputError: no such model, weights that are no safetensors or do not fit, or a processor whose steps are not known here.
        MissingDependency: transformers is not installed.
    """
    source = typed.removeprefix(TRANSFORMERS_PREFIX)
    if pretrained not in (None, RANDOM):
        raise InputError(
            "a model of transformers brings its own weights",
            code="weights-not-chosen",
            where=f"--teacher-pretrained {pretrained}",
            expected=f"none, or {RANDOM}",
            found=pretrained,
            hint="leave it out",
        )
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel
    except ImportError as error:
        raise MissingDependency("models of transformers need it", "pip install 'teachonce[transformers]'") from error
    with _access(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        architecture = dict(type(config).get_config_dict(source)[0])
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    preprocess = of_processor(processor.to_dict(), config, where=typed)
    with _access(source), _no_bars():
        if pretrained == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = AutoModel.from_config(config, trust_remote_code=False)
        else:
            module, report = AutoModel.from_pretrained(
                source,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            _check_report(module, report, typed)
    folder = UserFile.of(source)
    file = folder / "model.safetensors"
    local = folder.is_dir()
    return TransformersModel(
        module=module.float(),
        name=folder.name if local else source,
        source=source,
        architecture={k: value for k, value in architecture.items() if k not in _NOT_ARCHITECTURE},
        preprocess=preprocess,
        weights="random, seed 0" if pretrained == RANDOM else f"those of {folder.name if local else source}",
        known=KnownWeights.of(
            str(file.path) if local and file.is_file() and pretrained is None else None,
            {"family": "transformers", "config": dict(architecture)},
            rehash=rehash,
        ),
    )


def of_processor(found: Mapping[str, Any], config: Any, *, where: str) -> Preprocess:
    """What an image processor of transformers does with an image, as `to_dict` describes it.

    Raises:
        InputError: a step that is not known here.
    """
    factor = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1
    if abs(factor * 255 - 1) > 1e-6:
        raise _unknown("rescale_factor", "1/255", factor, where)
    size, crop = dict(found.get("size") or {}), dict(found.get("crop_size") or {})
    crops = bool(found.get("do_center_crop") and crop) and found.get("crop_pct") is None
    if "max_num_patches" in found:  # SigLIP2's own, of any shape: squares of as many patches
        size = {"height": _naflex_size(found, config), "width": _naflex_size(found, config)}
    share, mode = 1.0, "squash"
    if "shortest_edge" in size:
        mode, side = "center", int(size["shortest_edge"])
        if found.get("crop_pct") is not None:
            share, mode = (found["crop_pct"], "center") if side < _CONVNEXT_CROPS else (1.0, "squash")
    elif {"height", "width"} <= size.keys():
        side = square_size((size["height"], size["width"]), where)
    else:
        raise _unknown("size", "height and width, or shortest_edge", ", ".join(size) or "none", where)
    if crops:
        cropped = square_size((crop["height"], crop["width"]), where)
        share, side = cropped / side, cropped
    normalizes = found.get("do_normalize", True)
    filter_ = int(found.get("resample", 3))
    if not 0 <= filter_ < len(_FILTERS) or _FILTERS[filter_] not in FILTERS:
        raise _unknown("resample", " or ".join(FILTERS), filter_, where)
    return Preprocess(
        size=side,
        mean=_triple(found["image_mean"], where) if normalizes else (0.0, 0.0, 0.0),
        std=_triple(found["image_std"], where) if normalizes else (1.0, 1.0, 1.0),
        interpolation=_FILTERS[filter_],
        crop_pct=share,
        crop_mode=mode,
    )


def _naflex_size(found: Mapping[str, Any], config: Any) -> int:
    patch = int(found.get("patch_size") or config.vision_config.patch_size)
    return patch * int(found["max_num_patches"] ** 0.5)


def _triple(values: Sequence[float], where: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise InputError(
            "only models with three input channels are supported",
            code="channels-not-three",
            where=where,
            found=len(values),
        )
    red, green, blue = map(float, values)
    return red, green, blue


def _unknown(what: str, expected: str, found: object, where: str) -> InputError:
    return InputError(
        f"unknown {what} in the model's configuration",
        code="model-config-value-unknown",
        where=where,
        expected=expected,
        found=found,
        hint="correct it, or use another model",
    )


def _check_report(module: Any, report: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are not there; a pooler that a classifier's weights lack is taken off instead of being drawn."""
    missing = sorted(map(str, report.get("missing_keys", ())))
    wrong = sorted(str(entry[0]) for entry in report.get("mismatched_keys", ()))
    if missing and all(name.startswith("pooler.") for name in missing):
        module.pooler, missing = None, []
    if missing or wrong:
        raise InputError(
            "weights do not fit the model that transformers builds",
            code="weights-do-not-fit",
            where=where,
            expected="all of its weights",
            found=f"{len(missing)} missing, {len(wrong)} of another shape: {', '.join((missing + wrong)[:3])}",
            hint="check that the configuration belongs to the weights",
        )


def _access(source: str) -> AbstractContextManager[None]:
    if UserFile.of(source).is_dir() or source.startswith(("/", "./", "../", "~")):
        hint = "the folder needs config.json, preprocessor_config.json and model.safetensors (no pickle, no code of its own)"
        return one_line("transformers cannot load this model", source, hint, code="transformers-model-unloadable")
    return hub_access(
        f"{TRANSFORMERS_PREFIX}{source}",
        f"check the name and the network, or give --teacher {TRANSFORMERS_PREFIX}FOLDER",
    )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Inside, transformers shows no bars of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
