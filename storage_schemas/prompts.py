"""Owns a folder of learned prompts: config.json and prompts.safetensors, and perhaps towers.safetensors.

It holds a few hundred kilobytes: the model that the prompts were learned for is named, not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from . import SCHEMA_VERSION
from .errors import DamagedError, MismatchError
from .fingerprint import Json

#: Names in the folder. TOWERS is there only where the prompts go with other weights of the towers.
CONFIG, PROMPTS, TOWERS = "config.json", "prompts.safetensors", "towers.safetensors"

_KIND = "prompts"


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """What `config.json` says.

    Attributes:
        backbone: `model` and `pretrained` as a user names them, `architecture` and `weights` (digests) as the loaded
            model has them, `preprocess` as it was used.
        shape: `vision_length`, `vision_depth`, `text_length`, `text_depth`.
        context: the words that text prompts stand in for; texts are "{context} {class}.".
        class_names: all classes, base and novel, in order.
        base_classes: those of them that the prompts were learned on.
        origin: how they came about: settings, samples, seed; or the file that they were taken from. Facts only.
    """

    backbone: Mapping[str, Json]
    shape: Mapping[str, int]
    context: str
    class_names: tuple[str, ...]
    base_classes: tuple[str, ...]
    origin: Mapping[str, Json]

    def to_bytes(self) -> bytes:
        fields = {"kind": _KIND, "schema_version": SCHEMA_VERSION, **self.__dict__}
        fields["class_names"], fields["base_classes"] = list(self.class_names), list(self.base_classes)
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def from_bytes(data: bytes, where: object) -> PromptsConfig:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not a config of prompts.
            MismatchError: another schema version.
        """
        hint = "point to the folder that `teachonce pretrain` wrote"
        try:
            fields = json.loads(data)
            kind, version = fields.pop("kind"), fields.pop("schema_version")
            for name in ("class_names", "base_classes"):
                fields[name] = tuple(fields[name])
            config = PromptsConfig(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("not a folder of prompts", where=where, hint=hint) from error
        if (kind, version) != (_KIND, SCHEMA_VERSION):
            raise MismatchError(
                "prompts of another version", where=where, expected=f"{_KIND} {SCHEMA_VERSION}",
                found=f"{kind} {version}", hint=hint,
            )  # fmt: skip
        return config
