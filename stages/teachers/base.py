"""Owns what every teacher family has in common: its configuration, its identity, its contract, and how it is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.fingerprint import Json
from ..preprocess import Preprocess

#: Prefix of `--teacher` that names a timm model; everything else is open_clip's spelling.
TIMM_PREFIX = "timm:"

#: Prefix of open_clip's spelling for a model in a local folder.
LOCAL_PREFIX = "local-dir:"

#: `--teacher-pretrained` for seeded random weights: for tests and benchmarks, never by accident.
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What a user says of a teacher. Hashable, small, picklable.

    Attributes:
        model: open_clip's name (`ViT-L-14`, `hf-hub:…`, `local-dir:…`) or `timm:NAME`.
        pretrained: tag, path to a weights file, `random`, or None where the name itself brings weights.
        size, mean, std, interpolation, crop_pct: override the model's own preprocessing; None keeps it.
    """

    model: str
    pretrained: str | None = None
    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None

    @staticmethod
    def of(model: str, pretrained: str | None = None, **overrides: Any) -> TeacherConfig:
        """The configuration that a user typed, with local paths made absolute: workers may run in other folders."""
        if model.startswith(LOCAL_PREFIX):
            model = LOCAL_PREFIX + str(Path(model.removeprefix(LOCAL_PREFIX)).absolute())
        if pretrained is not None and Path(pretrained).exists():
            pretrained = str(Path(pretrained).absolute())
        return TeacherConfig(model=model, pretrained=pretrained, **overrides)

    def preprocess(self, own: Preprocess) -> Preprocess:
        """The model's own preprocessing with this configuration's overrides."""
        return own.override(
            size=self.size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A loaded teacher's identity.

    Attributes:
        family: `open_clip` or `timm`.
        model: its name; for `local-dir:` the last part of the path, since folders move.
        architecture: digest of the configuration that the weights are put into.
        weights_digest: blake2b-128 over names, types, shapes and bytes of all its tensors.
        embed_dim: channels of its embeddings.
        normalized: whether embeddings are L2-normalised.
        preprocess: as used.
    """

    family: str
    model: str
    architecture: str
    weights_digest: str
    embed_dim: int
    normalized: bool
    preprocess: Preprocess

    def to_json(self) -> Json:
        return {**self.__dict__, "preprocess": self.preprocess.to_json()}


class Teacher(Protocol):
    """A frozen model that says something of an image."""

    @property
    def spec(self) -> TeacherSpec:
        """Who it is."""

    def to(self, device: torch.device) -> Teacher:
        """Move it to a device; returns itself."""

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (N, D) in fp32 of uint8 images (N, 3, size, size) on the teacher's device."""

    def class_vectors(self, names: Sequence[str] | None, templates: Sequence[str]) -> ClassVectors:
        """Class vectors for `names`; None asks for the model's own classes, where it has them."""


@functools.lru_cache(maxsize=1)
def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher on the CPU, frozen, in eval mode and fp32. The last one stays loaded in this process.

    Raises:
        InputError: unknown model, missing or unfitting weights.
    """
    if config.model.startswith(TIMM_PREFIX):
        from .timm import TimmTeacher

        return TimmTeacher.load(config)
    from .open_clip import OpenClipTeacher

    return OpenClipTeacher.load(config)


def freeze(module: Any) -> Any:
    """Eval mode, no gradients."""
    return module.eval().requires_grad_(False)
