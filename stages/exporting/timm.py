"""Owns the export to timm: a folder for `timm.create_model('local-dir:FOLDER', pretrained=True)`.

timm's classifiers are linear in the backbone's features. So is a student of a teacher whose class vectors are a classifier's weights:
projector and class vectors become one matrix. A student that normalises its embeddings is not, and only its features fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ...storage_schemas.fingerprint import Json
from .form import Export, Run
from .graph import plain_operations

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

#: What is kept of the registry's own configuration: where the parts of the architecture are, nothing about its weights.
_KEPT = ("pool_size", "first_conv", "classifier", "fixed_input_size", "num_reg_tokens")

_OTHERWISE = "export it to onnx or torchscript; or its features alone: --result features"


class Timm:
    """A model of timm's registry."""

    name = "timm"

    def files(self, export: Export) -> Mapping[str, bytes]:
        import timm

        config = export.student.config.student
        if config.get("family") != "timm":
            raise export.refuse(
                "timm",
                expected="a student named timm:…",
                found=f"{config.get('name')}, a tower of open_clip's",
                hint="export it to open_clip, onnx or torchscript",
            )
        if export.result == "embedding":
            raise export.refuse(
                "timm", expected="logits or features", found="--result embedding", hint="leave out --result"
            )
        weights = {name: value.contiguous() for name, value in export.student.student.backbone.state_dict().items()}
        count = 0
        if export.result == "logits":
            count = export.student.vectors.num_classes
            weight_CW, bias_C = _classifier(export)
        with plain_operations(), torch.random.fork_rng(devices=[]):
            model: Any = timm.create_model(config["name"], pretrained=False, num_classes=count, **config["kwargs"])
        if count:
            heads = _classifier_names(model)
            for name in heads:
                part = model.get_submodule(name)
                if not isinstance(part, (nn.Linear, nn.Conv2d)) or part.weight.numel() != weight_CW.numel():
                    raise export.refuse(
                        "timm", expected="a linear classifier", found=type(part).__name__, hint=_OTHERWISE
                    )
                weights[f"{name}.weight"] = weight_CW.reshape(part.weight.shape).clone()
                if part.bias is not None:
                    weights[f"{name}.bias"] = bias_C.clone()
                elif bias_C.any():
                    raise export.refuse(
                        "timm", expected="a classifier with a bias", found="none in this model", hint=_OTHERWISE
                    )
        names = set(model.state_dict())
        if names != set(weights):
            odd = sorted(names ^ set(weights))
            raise export.refuse("timm", expected="the weights of its registry", found=odd[0], hint=_OTHERWISE)
        fields = {
            "architecture": str(config["name"]).partition(".")[0],
            "num_classes": count,
            "num_features": int(model.num_features),
            **({"label_names": list(export.student.vectors.names)} if count else {}),
            "pretrained_cfg": {
                **{name: model.pretrained_cfg[name] for name in _KEPT if model.pretrained_cfg.get(name) is not None},
                **_data_config(export),
                "num_classes": count,
            },
            "model_args": dict(config["kwargs"]),
        }
        return {
            _WEIGHTS: safetensors.torch.save(weights, {"format": "pt"}),
            _CONFIG: json.dumps(fields, indent=1, ensure_ascii=False).encode(),
        }

    def reopen(self, export: Export, folder: Path) -> Run:
        import timm
        from timm.data import create_transform, resolve_data_config

        with plain_operations():
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform: Any = create_transform(**resolve_data_config(model=model), is_training=False)

        def run(images: Any) -> Any:
            with torch.inference_mode():
                return model(torch.stack([transform(image) for image in images])).float().numpy()

        return run

    def how_to_load(self, folder: str) -> str:
        return f"timm.create_model('local-dir:{folder}', pretrained=True)"


def _classifier(export: Export) -> tuple[Tensor, Tensor]:
    """Weight (class, width) and bias (class,) that are projector and class vectors in one, formed in fp64.

    Raises:
        InputError: the student is not linear there.
    """
    student, vectors = export.student.student, export.student.vectors
    if student.head.normalized:
        raise export.refuse(
            "timm",
            expected="logits that are linear in the features",
            found="embeddings that are normalised, as CLIP's are",
            hint=_OTHERWISE,
        )
    vectors_CD = torch.from_numpy(np.asarray(vectors.vectors_CD, np.float64)) * vectors.logit_scale
    bias_C = torch.zeros(len(vectors_CD), dtype=torch.float64)
    if vectors.bias_C is not None:
        bias_C += torch.from_numpy(vectors.bias_C.astype(np.float64))
    projector = student.projector
    if isinstance(projector, nn.Linear):
        bias_C += vectors_CD @ projector.bias.double()
        return (vectors_CD @ projector.weight.double()).float(), bias_C.float()
    if isinstance(projector, nn.Identity):
        return vectors_CD.float(), bias_C.float()
    raise export.refuse(
        "timm", expected="a linear projector or none", found=f"--projector {student.head.projector}", hint=_OTHERWISE
    )


def _classifier_names(model: Any) -> tuple[str, ...]:
    """Names of the modules that classify; two in models with two heads, whose mean the result is."""
    found = model.pretrained_cfg.get("classifier") or "head"
    return (found,) if isinstance(found, str) else tuple(found)


def _data_config(export: Export) -> dict[str, Json]:
    """The student's preprocessing as timm calls it."""
    preprocess = export.student.preprocess
    if preprocess.fill is not None:
        raise export.refuse(
            "timm", expected="padding with the mean colour", found=f"fill {preprocess.fill}", hint=_OTHERWISE
        )
    return {
        "input_size": [3, preprocess.size, preprocess.size],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
    }
