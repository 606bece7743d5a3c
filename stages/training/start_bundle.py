"""Owns starting from a finished student: its backbone, and those of its other parts that have the same shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...pipeline.contents import Kind, kind_of
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..models.known_weights import KnownWeights
from ..models.names import RANDOM
from ..models.student_config import StudentConfig
from ..prompts.vision import PromptedVisionTransformer
from ..students.bundle import LoadedStudent, load_student
from ..students.family import Backbone, Family
from ..students.student import Student


@dataclass(frozen=True, kw_only=True)
class StartBundle:
    """A student to start from.

    Attributes:
        backbone: its own, without prompts.
        loaded: the whole of it.
    """

    backbone: Backbone
    loaded: LoadedStudent

    def fill(self, student: Student) -> tuple[str, ...]:
        """Copy its other parts into a new student, whose backbone is this one. Returns the parts that were copied.

        A part whose names or shapes differ stays as it was drawn.

        Raises:
            InputError: it has prompts, and the new student has none, or others.
        """
        saved = dict(self.loaded.student.state_dict())
        own = student.state_dict()
        if isinstance(self.loaded.student.backbone, PromptedVisionTransformer):
            part = "backbone.prompts_LPD"
            if part not in own or own[part].shape != saved[part].shape:
                raise InputError(
                    "the student to start from has prompts",
                    code="start-has-prompts",
                    where="--student-pretrained",
                    expected=f"a recipe with prompts of the same shape, {tuple(saved[part].shape[:2])} (depth, length)",
                    found=f"{tuple(own[part].shape[:2])}" if part in own else "none",
                    hint="--recipe promptkd, with its --prompt-depth and --prompt-length",
                )
        if student.classes is not None:
            saved |= self._rows()
        parts = ("backbone.prompts_LPD", "projector", "levels", "classes")
        return tuple(part for part in parts if _copy(part, saved, own))

    def _rows(self) -> Mapping[str, Tensor]:
        """The class vectors of a student with a layer of its own for the classes, as the weights of such a layer."""
        vectors = self.loaded.class_vectors
        if vectors is None or vectors.normalized or vectors.logit_scale != 1 or vectors.bias_C is None:
            return {}
        rows = {"weight": vectors.vectors_CD, "bias": vectors.bias_C}
        return {f"classes.layer.{name}": torch.from_numpy(values) for name, values in rows.items()}


def start_bundle(config: StudentConfig, family: Family, *, seed: int) -> StartBundle | None:
    """The finished student that `--student-pretrained` names; None where it names something else.

    Raises:
        InputError: another model than `--student` says, or of another input size.
        IncompleteError, DamagedError, MismatchError: as `load_student`.
    """
    if config.pretrained is None or kind_of(folder := Location.of(config.pretrained)) != Kind.BUNDLE:
        return None
    loaded = load_student(folder)
    size = loaded.preprocess.size
    where = f"--student-pretrained {config.pretrained}"
    if config.size not in (None, size):
        raise InputError(
            "a finished student keeps the size of its images",
            code="start-other-size",
            where=where,
            expected=f"--student-size {size}",
            found=config.size,
            hint="leave out --student-size",
        )
    found = dict(loaded.config.student)
    expected = _architecture(family, config.model, seed, None)
    if _named(found) != expected:
        expected = _architecture(family, config.model, seed, size)
    if _named(found) != expected:
        field = next(name for name in {**expected, **found} if expected.get(name) != _named(found).get(name))
        raise InputError(
            "the student to start from is another model",
            code="start-other-model",
            where=where,
            expected=f"{config.model}: {field} {expected.get(field)}",
            found=f"{found.get('name')}: {field} {_named(found).get(field)}",
            hint="name its own model with --student",
        )
    loaded.student.requires_grad_(True)
    module = loaded.student.backbone
    backbone = Backbone(
        module=module.tower if isinstance(module, PromptedVisionTransformer) else module,
        config=found,
        preprocess=loaded.preprocess,
        width=loaded.student.head.width,
        logit_scale=loaded.config.logit_scale if loaded.config.normalized else None,
        weights=f"bundle {folder.name}",
        known=KnownWeights(None, None),
    )
    return StartBundle(backbone=backbone, loaded=loaded)


def _architecture(family: Family, model: str, seed: int, size: int | None) -> Mapping[str, Json]:
    return _named(family.create(model, RANDOM, seed=seed, size=size).config)


def _named(config: Mapping[str, Json]) -> dict[str, Json]:
    """What of a backbone's description says which model it is: open_clip's names are for people, timm's may have a tag."""
    if config.get("family") == "timm":
        return {**config, "name": str(config["name"]).partition(".")[0]}
    return {key: value for key, value in config.items() if key != "name"}


@torch.no_grad()
def _copy(part: str, saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Copy a part, whole or not at all."""

    def names(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {n: value.shape for n, value in weights.items() if n == part or n.startswith(f"{part}.")}

    if not names(own) or names(own) != names(saved):
        return False
    for name in names(own):
        own[name].copy_(saved[name])
    return True


def with_parts(backbone: Backbone, parts: tuple[str, ...]) -> Backbone:
    """The backbone, whose weights' text says which other parts came with it."""
    words = {"backbone.prompts_LPD": "prompts", "classes": "layer for the classes"}
    return replace(backbone, loaded=", ".join(["backbone", *(words.get(part, part) for part in parts)]))
