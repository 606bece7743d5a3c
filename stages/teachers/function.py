"""The family of functions: `python:MODULE:FACTORY`, a teacher of the user's own, for black boxes and services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import digest_json
from ..models.black_box import BlackBox, check_identity, load_black_box
from ..models.preprocess import Preprocess
from ..models.teacher_config import TeacherConfig
from .base import BaseTeacher, Offer, TeacherSpec
from .calling import Caller

_AXES = {1: ("channel",), 2: ("token", "channel"), 3: ("channel", "y", "x")}


class FunctionTeacher(BaseTeacher):
    """A black box. One of embeddings has no classes; one of logits has them as its embedding, and the unit matrix for class vectors."""

    def __init__(self, box: BlackBox, spec: TeacherSpec, where: str) -> None:
        self._box, self.spec = box, spec
        offers = {"embedding": (spec.embed_dim,), **box.maps}
        self._offers = tuple(Offer(name=n, axes=_AXES[len(shape)], shape=tuple(shape)) for n, shape in offers.items())
        self._own_name = "logits" if box.class_names else "embedding"
        shapes = {self._own_name if offer.name == "embedding" else offer.name: offer.shape for offer in self._offers}
        self._call = Caller(box, shapes, where)
        self.loaded = spec.to_text(f"version {box.version}", "")

    @staticmethod
    def load(config: TeacherConfig) -> FunctionTeacher:
        """Make it, and look whether another process makes the same. No image is sent.

        Raises:
            InputError, MismatchError: as `load_black_box` and `check_identity`; options that are not for it.
        """
        if (
            config.pretrained is not None
            or config.size not in (None, 0)
            or config.mean is not None
            or config.std is not None
        ):
            raise InputError(
                "a function teacher declares its images and weights itself",
                code="function-teacher-options",
                where=f"--teacher {config.model}",
                expected="no --teacher-pretrained, -size, -mean or -std",
                found="one of them",
                hint="leave it out",
            )
        box = load_black_box(config.model)
        check_identity(config.model, box)
        plain = Preprocess(
            size=box.size,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation=box.interpolation,
            crop_pct=box.crop_pct,
        )
        spec = TeacherSpec(
            family="python",
            model=box.name,
            architecture=digest_json(
                {"python": {k: v for k, v in box.identity().items() if k not in ("name", "version")}}
            ),
            weights_digest=digest_json({"name": box.name, "version": box.version}),
            embed_dim=box.embedding or len(box.class_names),
            normalized=False,
            preprocess=config.preprocess(plain),
            takes_templates=False,
        )
        return FunctionTeacher(box, spec, config.model)

    def to(self, device: torch.device) -> FunctionTeacher:
        return self

    def offers(self) -> tuple[Offer, ...]:
        return self._offers

    def outputs(self, images_NCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        images_NHWC = np.ascontiguousarray(images_NCHW.permute(0, 2, 3, 1).cpu().numpy())
        own = {name: self._own_name if name == "embedding" else name for name in names}
        found = self._call(images_NHWC, tuple(own.values()))
        return {name: torch.from_numpy(found[own[name]]).to(images_NCHW.device) for name in names}

    def take_calls(self) -> Mapping[str, float]:
        """What its calls were since this was asked last, see `CountsCalls`."""
        return self._call.take()

    def class_names(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if not self._box.class_names:
            raise self._no_classes()
        if names is not None and tuple(names) != self._box.class_names:
            raise InputError(
                "the class list is not the one that the function declares",
                code="classes-do-not-fit-head",
                where=self.spec.model,
                expected=f"its own {len(self._box.class_names)} names in their order",
                found=f"{len(names)} names",
                hint="leave out --classes",
            )
        return self._box.class_names

    def class_vectors(self, names: Sequence[str], templates: Sequence[str]) -> ClassVectors:
        """The unit matrix; templates do not apply."""
        unit = np.eye(len(names), dtype=np.float32)
        return ClassVectors(names=tuple(names), vectors_CD=unit, bias_C=None, logit_scale=1.0, normalized=False)
