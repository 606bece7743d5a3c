"""Owns a folder of learned prompts: config.json and prompts.safetensors, and perhaps towers.safetensors.

It holds a few hundred kilobytes: the model that the prompts were learned for is named, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from .fingerprint import Json
from .folder_config import read_config, sealed_config
from .formats import PROMPTS_FOLDER

#: Names in the folder. TOWERS is there only where the prompts go with other weights of the towers.
CONFIG, PROMPTS, TOWERS = "config.json", "prompts.safetensors", "towers.safetensors"


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """The content of `config.json`.

    Attributes:
        backbone: `model` and `pretrained` as a user names them, `architecture` and `weights` (digests) as the loaded
            model has them, `preprocess` as it was used.
        shape: `vision_length`, `vision_depth`, `text_length`, `text_depth`.
        context: the words that text prompts stand in for; texts are "{context} {class}.".
        class_names: all classes, base and novel, in order.
        base_classes: those of them that the prompts were learned on.
        origin: how they were made: settings, samples, seed; or the file that they were taken from. Facts only.
        files: sha256 (hexadecimal) of the other files, by name; None in folders of early versions.
    """

    backbone: Mapping[str, Json]
    shape: Mapping[str, int]
    context: str
    class_names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    base_classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    origin: Mapping[str, Json]
    files: Mapping[str, str] | None = None

    def to_bytes(self) -> bytes:
        """Indented JSON for people, sealed with its digest."""
        return sealed_config(PROMPTS_FOLDER, {k: v for k, v in self.__dict__.items() if v is not None})

    @staticmethod
    def from_bytes(data: bytes, where: object) -> PromptsConfig:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not a config of prompts, or one that changed since it was written.
            MismatchError: another schema version.
        """
        return read_config(
            data,
            PROMPTS_FOLDER,
            PromptsConfig,
            where=where,
            hint="point to the folder that `teachonce pretrain` wrote",
        )
