"""Owns finding a store's teacher again: what the store says of it, and what options add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import StoreDescription
from ..models.names import BUNDLE_PREFIX, LOCAL_PREFIX, PROMPTS_PREFIX, PYTHON_PREFIX, TIMM_PREFIX, TRANSFORMERS_PREFIX
from ..models.preprocess import Preprocess
from ..models.teacher_config import TeacherConfig


def teacher_config(
    description: StoreDescription,
    store: Location,
    *,
    model: str | None,
    pretrained: str | None,
    backbone: str | None,
    rehash: bool,
) -> TeacherConfig:
    """The teacher as `cache` would be given it, prepared as the store records.

    Args:
        model, pretrained, backbone: as a user names them; None for what the store says.

    Raises:
        InputError: the store names a folder without its place, and no option does.
        DamagedError: the store's record of the preprocessing is malformed.
    """
    recorded = Preprocess.from_json(description.teacher.get("preprocess"), where=store)
    config = TeacherConfig.of(
        model or recorded_model(description.teacher, store, "cache"), pretrained, backbone=backbone, rehash=rehash
    )
    declares = config.model.startswith(PYTHON_PREFIX)  # a function is given pixels as they are, and takes no others
    return replace(
        config,
        mean=None if declares else recorded.mean,
        std=None if declares else recorded.std,
        interpolation=recorded.interpolation,
        crop_pct=recorded.crop_pct,
        crop_mode=recorded.crop_mode,
    )


def recorded_model(teacher: Mapping[str, Any], store: Location, command: str) -> str:
    """The name of a store's teacher, as a user types it.

    Args:
        teacher: what the store says of it.
        command: that made the store.

    Raises:
        InputError: it names a folder without its place, or a function.
    """
    family, model = str(teacher.get("family", "")), str(teacher.get("model", ""))
    if family == "transformers":
        model = f"{TRANSFORMERS_PREFIX}{model}"
    named = model and not model.startswith((LOCAL_PREFIX, PROMPTS_PREFIX, BUNDLE_PREFIX))
    # A store names no code that is run: a function's module is for the user to type.
    if not named or family == "python" or (family == "transformers" and "/" not in model):
        raise InputError(
            "the store does not say where its teacher is",
            code="teacher-place-unknown",
            where=store,
            expected="--teacher-model",
            found=model or "no model's name",
            hint=f"add --teacher-model {model.partition(':')[0] + ':FOLDER' if model else 'MODEL'}, as `{command}` was given it",
        )
    return f"{TIMM_PREFIX}{model}" if family == "timm" else model
