"""Owns the student at the start of training: built as its recipe describes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...pipeline.settings import option_name
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import TargetSpec
from ..models.names import DECODER_PREFIX, RANDOM
from ..models.preprocess import Preprocess
from ..models.student_config import StudentConfig
from ..recipes.recipe import Recipe
from ..recipes.settings import TrainSettings
from ..students.base import BaseStudent
from ..students.decoder import DECODERS
from ..students.family import Backbone, Family
from ..students.map_student import new_map_student
from ..students.registry import family_of
from ..students.student import Student
from .freezing import freeze_by_name, patterns_of
from .layer_decay import with_layer_decay
from .lora import Additions, add_low_rank, check_additions_train
from .start_bundle import start_bundle, with_parts


@dataclass(frozen=True, kw_only=True)
class BuiltStudent:
    """A student with its starting weights, on the CPU.

    Attributes:
        backbone: what it was built from, preprocessing with the user's overrides.
        logit_scale: factor from its embeddings to its logits; 1 where it has none.
        digest: of all weights at the start.
        additions: low-rank ones to its backbone, where these train.
        start: what the bundle of a finished student records that it starts from; None where it starts from none.
    """

    student: BaseStudent
    backbone: Backbone
    logit_scale: float
    digest: str
    additions: Additions | None = None
    start: Mapping[str, Any] | None = None

    def vectors(self, teacher: ClassVectors | None) -> ClassVectors | None:
        """Its class vectors: the teacher's with its own logit scale, or the rows of its own layer for the classes."""
        if teacher is None or self.student.classes is None:
            return None if teacher is None else replace(teacher, logit_scale=self.logit_scale)
        return self.student.classes.vectors(teacher)

    def finish(self) -> None:
        """Take from the student what only training needs, once its weights are final and `vectors` are taken."""
        if self.additions is not None:
            self.additions.merge()
        self.student.classes = None
        self.student.still = ()

    @property
    def image_size(self) -> int | None:
        """Pixels of its square images; None where it reads targets, and no image is to be opened for it."""
        return self.backbone.preprocess.size if isinstance(self.student, Student) else None


class StudentToTrain:
    """A student that planning has built, for training in the same process. It is given once, since training changes it.

    It never travels to another process, which builds its own.
    """

    def __init__(self, built: BuiltStudent | None = None) -> None:
        self._built = built

    def take(self) -> BuiltStudent | None:
        """The student; None where it is taken already, or in another process. To let it go, take it."""
        built, self._built = self._built, None
        return built

    def __reduce__(self) -> tuple[Any, ...]:
        return StudentToTrain, ()


def build_student(
    config: StudentConfig,
    recipe: Recipe,
    settings: TrainSettings,
    vectors: ClassVectors | None,
    targets: Mapping[str, TargetSpec] | None = None,
    *,
    seed: int,
    teacher: Preprocess | None = None,
) -> BuiltStudent:
    """Build the student as its recipe describes it; new parts are drawn from `seed`.

    Args:
        vectors: class vectors; None where there are none.
        targets: those that the recipe needs, by name.
        teacher: how the images were prepared that the targets are of: what a student that reads them keeps as its own.

    Raises:
        InputError: unknown model, unfitting weights, or a model that the recipe cannot use.
    """
    if recipe.keeps_backbone(settings):
        _refuse_parts(recipe.name, settings)
    family = family_of(config.model)
    if recipe.frozen_backbone and config.pretrained is None and not family.implies_weights(config.model):
        raise InputError(
            f"recipe {recipe.name} keeps the student's weights as they are, so it needs good ones",
            code="student-weights-needed",
            where=config.model,
            hint=f"add --student-pretrained TAG or PATH; `--student-pretrained {RANDOM}` to try things out",
        )
    _check_reads(recipe, family, config.model)
    start = start_bundle(config, family, seed=seed) if family.reads_images else None
    backbone = (
        family.create(config.model, config.pretrained, seed=seed, size=config.size) if start is None else start.backbone
    )
    preprocess = config.preprocess(backbone.preprocess) if family.reads_images else teacher or backbone.preprocess
    backbone = replace(backbone, preprocess=preprocess)
    head = recipe.head(settings, backbone, vectors, targets or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student: BaseStudent
        parts: tuple[str, ...] = ()
        if family.reads_images:
            student = Student(backbone.module, preprocess, head)
            if start is not None:
                parts = start.fill(student)
                backbone = with_parts(backbone, parts)
        else:
            student = new_map_student(str(backbone.config["name"]), head)
        drawn = {"preprocess": preprocess.to_json(), "head": head.to_json(), "seed": seed}
        digest = backbone.known.beside(drawn, rehash=config.rehash).digest(student)
        additions = add_low_rank(student, settings) if settings.lora_rank else None
    origin = None if start is None else start.loaded.config.origin
    recipe.check_start(settings, origin, parts)
    student.fixed_averages = settings.batch_norm == "frozen"
    if settings.freeze:
        freeze_by_name(student, patterns_of(settings.freeze))
        if additions is not None:
            check_additions_train(student, settings.freeze)
    with_layer_decay(recipe.parameter_groups(student, settings), student, settings.layer_decay)
    if settings.batch_size == settings.accumulate and any(_is_batch_norm(module) for module in _training(student)):
        raise InputError(
            "batch norm cannot train on batches of one",
            code="batch-too-small",
            where="--batch-size",
            expected=f"at least {2 * settings.accumulate}",
            found=settings.batch_size,
        )
    return BuiltStudent(
        student=student,
        backbone=backbone,
        logit_scale=1.0 if vectors is None else recipe.logit_scale(backbone, vectors),
        digest=digest,
        additions=additions,
        start=origin,
    )


def _check_reads(recipe: Recipe, family: Family, model: str) -> None:
    """A recipe trains students that read images, or those that read what the store holds."""
    if recipe.reads_images == family.reads_images:
        return
    if family.reads_images:
        raise InputError(
            f"recipe {recipe.name} trains a decoder, which reads the teacher's maps",
            code="student-reads-images",
            where=f"--student {model}",
            expected=" or ".join(f"{DECODER_PREFIX}{name}" for name in DECODERS),
            found="a student that reads images",
            hint=f"--student {DECODER_PREFIX}wide_resnet50_2",
        )
    raise InputError(
        f"recipe {recipe.name} trains a student that reads images, and a decoder reads maps",
        code="student-reads-maps",
        where=f"--student {model}",
        hint="give another student, or --recipe reverse-distillation",
    )


def _refuse_parts(recipe: str, settings: TrainSettings) -> None:
    """Refuse to choose among the parts of a backbone that does not train."""
    for name in ("layer_decay", "freeze", "lora_rank"):
        value = getattr(settings, name)
        if value != getattr(TrainSettings, name):
            raise InputError(
                f"recipe {recipe} keeps the student's backbone as it is",
                code="backbone-frozen",
                where=option_name(name),
                found=value,
                hint="leave it out, or use a recipe that trains the backbone",
            )


def _is_batch_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


def _training(student: BaseStudent) -> Iterator[torch.nn.Module]:
    student.train()
    return (module for module in student.modules() if module.training)
