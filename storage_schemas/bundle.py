"""Owns the student bundle: a folder with config.json, model.safetensors and class_vectors.safetensors.

That folder alone is all that inference needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import safetensors.numpy

from .class_vectors import ClassVectors
from .errors import DamagedError
from .fingerprint import Json, canonical_json
from .folder_config import read_config, sealed_config
from .formats import BUNDLE

#: Folder under a bundle, or under prompts, for what only the training needs: checkpoint, log, curves.
RUN = "run"

CONFIG, WEIGHTS, VECTORS = "config.json", "model.safetensors", "class_vectors.safetensors"


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """The content of `config.json`.

    Attributes:
        student: family, model name and whatever its family needs to build it again without a download.
        head: the student's shape beyond the backbone (prompts, projector), as its recipe made it.
        preprocess: size, mean, std, interpolation, resize ratio of the student's images.
        class_names: in the order of the logits; none where the student has no class vectors, whose file is then not there.
        base_classes: those of them that are base classes, the others being novel; None where they are not marked.
        files: sha256 (hexadecimal) of the two other files, by name; None in bundles of early versions.
        logit_scale, normalized: how embeddings become logits with the class vectors (see `ClassVectors`).
        origin: how it was made: recipe and its settings, corpus id, teacher as text, store fingerprint. Facts only.
    """

    student: Mapping[str, Json]
    head: Mapping[str, Json]
    preprocess: Mapping[str, Json]
    class_names: tuple[str, ...]
    logit_scale: float
    normalized: bool
    origin: Mapping[str, Json]
    base_classes: tuple[str, ...] | None = None
    files: Mapping[str, str] | None = None

    def to_bytes(self) -> bytes:
        """Indented JSON for people, sealed with its digest."""
        version = bundle_version(bool(self.class_names), self.head.get("levels"))
        return sealed_config(
            replace(BUNDLE, version=version),
            {k: v for k, v in self.__dict__.items() if v is not None},
        )

    @staticmethod
    def from_bytes(data: bytes, where: object) -> BundleConfig:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: not a bundle's config, or one that changed since it was written.
            MismatchError: another schema version.
        """
        return read_config(
            data,
            BUNDLE,
            BundleConfig,
            where=where,
            hint="point to the folder that `teachonce distill` wrote",
        )


def bundle_version(has_vectors: bool, levels: object) -> int:
    """The version of the format that a bundle needs: 1 unless it lacks class vectors or has levels."""
    return 1 if has_vectors and not levels else BUNDLE.version


def encode_vectors(vectors: ClassVectors) -> bytes:
    """safetensors bytes of `vectors_CD` and, if any, `bias_C`; names and scale lie in the config."""
    tensors = {"vectors": np.ascontiguousarray(vectors.vectors_CD, np.float32)}
    if vectors.bias_C is not None:
        tensors["bias"] = np.ascontiguousarray(vectors.bias_C, np.float32)
    return safetensors.numpy.save(tensors, {"digest": canonical_json(vectors.digest).decode()})


def decode_vectors(data: bytes, config: BundleConfig, where: object) -> ClassVectors:
    """Class vectors of a bundle, from its two files' content.

    Raises:
        safetensors.SafetensorError: not such a file.
        DamagedError: it does not belong to this config.
    """
    tensors = safetensors.numpy.load(data)
    if "vectors" not in tensors or {value.dtype for value in tensors.values()} != {np.dtype(np.float32)}:
        raise DamagedError(
            "not the class vectors of a bundle",
            code="bundle-vectors-malformed",
            where=where,
            expected="'vectors' in fp32",
            found=", ".join(f"'{name}' in {value.dtype}" for name, value in tensors.items()) or "nothing",
            hint="copy the bundle again",
        )
    vectors = ClassVectors(
        names=config.class_names,
        vectors_CD=tensors["vectors"],
        bias_C=tensors.get("bias"),
        logit_scale=config.logit_scale,
        normalized=config.normalized,
        base_C=None if config.base_classes is None else np.isin(config.class_names, config.base_classes),
    )
    vectors.check(where)
    return vectors
