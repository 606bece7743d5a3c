"""Owns the student bundle: a folder with config.json, model.safetensors and class_vectors.safetensors.

That folder alone is all that inference needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from . import SCHEMA_VERSION
from .class_vectors import ClassVectors
from .errors import DamagedError, MismatchError
from .fingerprint import Json, canonical_json

CONFIG, WEIGHTS, VECTORS = "config.json", "model.safetensors", "class_vectors.safetensors"


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What `config.json` says.

    Attributes:
        student: family, model name and whatever its family needs to build it again without a download.
        head: the student's shape beyond the backbone (prompts, projector), as its recipe made it.
        preprocess: size, mean, std, interpolation, resize ratio of the student's images.
        class_names: in the order of the logits.
        base_classes: those of them that are base classes, the others being novel; None where nothing says so.
        logit_scale, normalized: how embeddings become logits with the class vectors (see `ClassVectors`).
        origin: how it was made: recipe and its settings, corpus id, teacher in words, store fingerprint. Facts only.
    """

    student: Mapping[str, Json]
    head: Mapping[str, Json]
    preprocess: Mapping[str, Json]
    class_names: tuple[str, ...]
    logit_scale: float
    normalized: bool
    origin: Mapping[str, Json]
    base_classes: tuple[str, ...] | None = None

    def to_bytes(self) -> bytes:
        fields = {"kind": "student bundle", "schema_version": SCHEMA_VERSION, **self.__dict__}
        fields["class_names"] = list(self.class_names)
        if self.base_classes is None:
            del fields["base_classes"]
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @staticmethod
    def from_bytes(data: bytes, where: object) -> BundleConfig:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not a bundle's config.
            MismatchError: another schema version.
        """
        try:
            fields = json.loads(data)
            kind, version = fields.pop("kind"), fields.pop("schema_version")
            for name in ("class_names", "base_classes"):
                if name in fields:
                    fields[name] = tuple(fields[name])
            config = BundleConfig(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError("not a student bundle", where=where, hint="point to the folder that `teachonce distill` wrote") from error  # fmt: skip
        if (kind, version) != ("student bundle", SCHEMA_VERSION):
            raise MismatchError("a bundle of another version", where=where, expected=f"student bundle {SCHEMA_VERSION}", found=f"{kind} {version}")  # fmt: skip
        return config


def encode_vectors(vectors: ClassVectors) -> bytes:
    """safetensors bytes of `vectors_CD` and, if any, `bias_C`; names and scale lie in the config."""
    tensors = {"vectors": np.ascontiguousarray(vectors.vectors_CD, np.float32)}
    if vectors.bias_C is not None:
        tensors["bias"] = np.ascontiguousarray(vectors.bias_C, np.float32)
    return safetensors.numpy.save(tensors, {"digest": canonical_json(vectors.digest).decode()})


def decode_vectors(data: bytes, config: BundleConfig) -> ClassVectors:
    """Class vectors of a bundle, from its two files' content."""
    tensors = safetensors.numpy.load(data)
    return ClassVectors(
        names=config.class_names,
        vectors_CD=tensors["vectors"],
        bias_C=tensors.get("bias"),
        logit_scale=config.logit_scale,
        normalized=config.normalized,
        base_C=None if config.base_classes is None else np.isin(config.class_names, config.base_classes),
    )
