"""The family of finished students: a bundle as the teacher of others, or of itself in a next generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from ..models.names import BUNDLE_PREFIX
from ..models.teacher_config import TeacherConfig
from ..models.weights import weights_digest
from ..students.bundle import LoadedStudent, load_student
from .base import BaseTeacher, Offer, TeacherSpec


class BundleTeacher(BaseTeacher):
    """A student of `distill`, as `bundle:FOLDER`. It offers its embedding; its class vectors are those that it was trained with."""

    def __init__(self, student: LoadedStudent, spec: TeacherSpec) -> None:
        self._student, self.spec = student, spec
        self.loaded = spec.to_text(f"of a student by recipe {student.config.origin.get('recipe')}", "")

    @staticmethod
    def load(config: TeacherConfig) -> BundleTeacher:
        """
        Raises:
            InputError: no bundle of a student of images; weights or a preprocessing beside it.
            IncompleteError, MismatchError, DamagedError: as `load_student`.
        """
        folder = config.model.removeprefix(BUNDLE_PREFIX)
        student = load_student(folder)
        if config.pretrained is not None or config.preprocess(student.preprocess) != student.preprocess:
            raise InputError(
                "a finished student has its own weights and preprocessing",
                code="bundle-teacher-fixed",
                where=f"--teacher {config.model}",
                expected="neither --teacher-pretrained nor another size or preprocessing",
                found=config.pretrained or "another preprocessing",
                hint="leave them out",
            )
        head = student.student.head
        spec = TeacherSpec(
            family="bundle",
            model=f"{BUNDLE_PREFIX}{folder.rstrip('/').rpartition('/')[2]}",
            architecture=digest_json({"student": dict(student.config.student), "head": head.to_json()}),
            weights_digest=weights_digest(student.student),
            embed_dim=head.embed_dim,
            normalized=head.normalized,
            preprocess=student.preprocess,
            takes_templates=False,
        )
        return BundleTeacher(student, spec)

    def to(self, device: torch.device) -> BundleTeacher:
        self._student.student.to(device)
        return self

    def offers(self) -> tuple[Offer, ...]:
        return (Offer(name="embedding", axes=("channel",), shape=(self.spec.embed_dim,)),)

    def outputs(self, images_NCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return {"embedding": self._student.student(images_NCHW).float()} if "embedding" in names else {}

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        own = self._student.vectors.names
        if names is not None and tuple(names) != own:
            raise InputError(
                "a finished student has the classes that it was trained with",
                code="bundle-teacher-fixed",
                where=self.spec.model,
                expected=f"its {len(own)} classes",
                found=f"a list of {len(names)}",
                hint="leave out --classes",
            )
        return own

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        return self._student.vectors
