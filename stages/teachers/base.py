"""Owns what every teacher family has in common: its identity and its contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..models.names import BUNDLE_PREFIX, PROMPTS_PREFIX, PYTHON_PREFIX, TIMM_PREFIX, TRANSFORMERS_PREFIX, loaded_text
from ..models.preprocess import Preprocess
from ..models.teacher_config import TeacherConfig
from .text_tower import TextTower


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A loaded teacher's identity.

    Attributes:
        family: `open_clip`, `timm`, `transformers`, `python` or `prompted`.
        model: its name; for `local-dir:` and `teachonce:` the last part of the path, since folders move.
        architecture: digest of the configuration that the weights are put into.
        weights_digest: blake2b-128 over names, types, shapes and bytes of all its tensors.
        embed_dim: channels of its embeddings.
        normalized: whether embeddings are L2-normalised.
        preprocess: as used.
        takes_templates: whether class vectors depend on templates around class names.
    """

    family: str
    model: str
    architecture: str
    weights_digest: str
    embed_dim: int
    normalized: bool
    preprocess: Preprocess
    takes_templates: bool

    def to_json(self) -> Json:
        return {**self.__dict__, "preprocess": self.preprocess.to_json()}

    def to_text(self, weights: str, entry: str, activation: str = "") -> str:
        """The line on what was loaded: from where, and which entry of the file ('' where there is but one)."""
        of_file = f"{weights} ({entry})" if entry else weights
        return loaded_text(self.model, of_file, self.weights_digest, activation, self.preprocess.to_text())


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A target that a teacher computes.

    Attributes:
        axes, shape: of one image's: `embedding` has ("channel",), `tokens` ("token", "channel"), maps ("channel", "y", "x").
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]


class Teacher(Protocol):
    """A frozen model that gives targets for images. `BaseTeacher` has defaults for most methods."""

    @property
    def spec(self) -> TeacherSpec:
        """Its identity."""

    @property
    def loaded(self) -> str:
        """One line for people: model, weights, digest, activation, input size, preprocessing."""

    def to(self, device: torch.device) -> Teacher:
        """Move it to a device; returns itself."""

    def offers(self) -> tuple[Offer, ...]:
        """The targets that it computes for images of its input size, `embedding` among them."""

    def outputs(self, images_NCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Some of its targets, by name: fp32 (N, …) of uint8 images (N, 3, size, size) on the teacher's device."""

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """The target `embedding` alone: (N, D)."""

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """`names`, or the model's own classes for None.

        Raises:
            InputError: it has none, or cannot take these.
        """

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """Class vectors for what `class_names` gave."""

    def name_notes(self, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        """Notes for people on these class names: those that its tokenizer cuts, or cannot distinguish."""

    def text_tower(self) -> TextTower:
        """What embeds any text into the space of its image embeddings.

        Raises:
            InputError: it reads no text but class names, or none.
        """

    def plain(self, names: Sequence[str]) -> list[tuple[Teacher, ClassVectors]]:
        """The same model without what it has learned, and its class vectors; empty where it has learned nothing more."""


class BaseTeacher:
    """A teacher without classes of its own and without notes. A family overrides what it has."""

    spec: TeacherSpec

    def outputs(self, images_NCHW: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def embed(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        return self.outputs(images_NCHW, ("embedding",))["embedding"]

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        raise self._no_classes()

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        raise self._no_classes()

    def name_notes(self, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
        return ()

    def text_tower(self) -> TextTower:
        raise InputError(
            "this teacher embeds no captions",
            code="teacher-without-text",
            where=self.spec.model,
            expected="a model of images and text, without learned prompts",
            found=f"a teacher of the family {self.spec.family}",
            hint="name an open_clip model, or transformers:… with a text tower",
        )

    def plain(self, names: Sequence[str]) -> list[tuple[Teacher, ClassVectors]]:
        return []

    def _no_classes(self) -> InputError:
        return InputError(
            "this teacher has no class vectors",
            code="teacher-without-vectors",
            where=self.spec.model,
            hint="leave out `teachonce vectors`",
        )


def freeze(module: Any) -> Any:
    """Eval mode, no gradients."""
    return module.eval().requires_grad_(False)


def refuse_templates(config: TeacherConfig, templates: str | None) -> None:
    """Refuse `--templates` where prompts were learned instead.

    Raises:
        InputError: both are there.
    """
    if templates is not None and config.model.startswith(PROMPTS_PREFIX):
        raise InputError(
            "this teacher has learned its prompts",
            code="templates-fixed",
            where="--templates",
            found=templates,
            hint="leave out --templates",
        )


def require_open_clip(model: str, hint: str = "name the model without prompts") -> None:
    """Refuse to give prompts to a model that is not open_clip's, or has some.

    Raises:
        InputError: naming it.
    """
    if model.startswith((TIMM_PREFIX, PROMPTS_PREFIX, BUNDLE_PREFIX, TRANSFORMERS_PREFIX, PYTHON_PREFIX)):
        raise InputError(
            "only an open_clip model can be given prompts",
            code="prompts-need-open-clip",
            where=f"--teacher {model}",
            expected="ViT-L-14, hf-hub:… or local-dir:…",
            found=model,
            hint=hint,
        )
