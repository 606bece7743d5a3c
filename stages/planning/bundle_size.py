"""Owns what a student's bundle takes: by building the student, with random weights."""

from __future__ import annotations

import safetensors.torch

from ...storage_schemas.bundle import BundleConfig, encode_vectors
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.store_description import StoreSpec
from ..models.names import RANDOM
from ..models.student_config import StudentConfig
from ..recipes.registry import recipe_named
from ..training.build import build_student
from .figures import Basis, Figure


def bundle_bytes(model: str, recipe: str, spec: StoreSpec, vectors: ClassVectors | None) -> Figure:
    """Of all files of the bundle.

    Raises:
        InputError: an unknown model or recipe, or they do not go with the store.
    """
    method = recipe_named(recipe)
    wanted = method.targets(method.defaults, spec.targets)
    stored = {target.name: target for target in spec.targets if target.name in wanted}
    config = StudentConfig(model=model, pretrained=RANDOM)
    built = build_student(config, method, method.defaults, vectors, stored, seed=0)
    weights = {name: value.contiguous().clone() for name, value in built.student.state_dict().items()}
    described = BundleConfig(
        student=built.backbone.config,
        head=built.student.head.to_json(),
        preprocess=built.backbone.preprocess.to_json(),
        class_names=() if vectors is None else vectors.names,
        logit_scale=built.logit_scale,
        normalized=built.student.head.normalized,
        origin={},
    )
    files = [safetensors.torch.save(weights), described.to_bytes()]
    if vectors is not None:
        files.append(encode_vectors(vectors))
    return Figure(value=sum(map(len, files)), basis=Basis.COUNTED)
