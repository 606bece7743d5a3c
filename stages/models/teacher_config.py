"""Owns the settings that name a teacher. Imports no library, since options are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.settings import setting
from ...storage_schemas.errors import InputError
from .settings import PreprocessSettings, rehash_setting


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(PreprocessSettings):
    """Hashable, small, picklable.

    Attributes:
        pretrained: None where the name itself brings weights.
        backbone: None for the model that the folder of prompts names.
        rehash: whether what is remembered of its weights is computed anew; see `known_weights`.
    """

    model: str = setting(
        option="",
        help="open_clip model (ViT-L-14, hf-hub:…, local-dir:…), timm:NAME, transformers:FOLDER|ORG/REPO, python:MODULE:FACTORY, teachonce:FOLDER for "
        "learned prompts, or bundle:FOLDER for a finished student.",
    )
    pretrained: str | None = setting(None, help="Pretrained tag, path to weights, or `random`.")
    backbone: str | None = setting(None, help="For prompts: the model that they were learned for, if it has moved.")
    rehash: bool = rehash_setting()

    @staticmethod
    def of(model: str, pretrained: str | None = None, **overrides: Any) -> TeacherConfig:
        """The configuration that a user typed, with local paths made absolute: workers may run in other folders.

        Raises:
            InputError: a backbone for a teacher that is no folder of prompts.
        """
        from ...pipeline.storage import expand_home
        from .names import PROMPTS_PREFIX

        if pretrained is not None and (file := Path(expand_home(pretrained))).exists():
            pretrained = str(file.absolute())
        backbone = overrides.pop("backbone", None)
        if backbone is not None and not model.startswith(PROMPTS_PREFIX):
            raise InputError(
                "only prompts have a backbone",
                code="option-needs-another",
                where="--teacher-backbone",
                expected="--teacher teachonce:FOLDER",
                found=f"--teacher {model}",
                hint="leave it out",
            )
        return TeacherConfig(
            model=_absolute(model),
            pretrained=pretrained,
            backbone=backbone and _absolute(backbone),
            **overrides,
        )


def _absolute(model: str) -> str:
    from ...pipeline.storage import expand_home
    from .names import BUNDLE_PREFIX, LOCAL_PREFIX, PROMPTS_PREFIX, TRANSFORMERS_PREFIX

    if model.startswith(TRANSFORMERS_PREFIX):  # ORG/REPO, unless there is such a folder
        folder = Path(expand_home(model.removeprefix(TRANSFORMERS_PREFIX)))
        return TRANSFORMERS_PREFIX + str(folder.absolute()) if folder.is_dir() else model
    for prefix in (LOCAL_PREFIX, PROMPTS_PREFIX, BUNDLE_PREFIX):
        if model.startswith(prefix):
            return prefix + str(Path(expand_home(model.removeprefix(prefix))).absolute())
    return model
