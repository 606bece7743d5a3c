"""Owns the export to open_clip: a folder for `open_clip.create_model('local-dir:FOLDER')`, with class vectors beside.

A student has an image tower alone: what the classes are compared with are the class vectors, which its teacher's text tower made. The form
needs a text tower, so there is one of zeros: it gives zeros for any text, and nothing that looks like an answer.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...storage_schemas.bundle import VECTORS, encode_vectors
from ...storage_schemas.fingerprint import Json
from .form import Export, Run
from .graph import plain_operations

_WEIGHTS, _CONFIG = "open_clip_model.safetensors", "open_clip_config.json"

#: The smallest text tower that takes what open_clip's tokenizer gives.
_NO_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}

_OTHERWISE = "export it to onnx or torchscript"

#: Kinds of centre views, as open_clip's `resize_mode`.
_RESIZE_MODES = {"center": "shortest", "squash": "squash", "border": "longest"}


class OpenClip:
    """A CLIP of open_clip's, whose image tower is the student."""

    name = "open_clip"

    def files(self, export: Export) -> Mapping[str, bytes]:
        student, config = export.student.student, export.student.config.student
        if export.result != "embedding":
            raise export.refuse(
                "open_clip",
                expected="--result embedding: logits are formed with the class vectors beside it",
                found=f"--result {export.result}",
                hint="leave out --result",
            )
        if student.head.prompt_depth:
            raise export.refuse(
                "open_clip", expected="a tower without prompts", found="visual prompts", hint=_OTHERWISE
            )
        if not student.head.normalized:
            raise export.refuse(
                "open_clip",
                expected="normalised embeddings, as CLIP's are",
                found="a student of a classifier",
                hint="export it to timm, onnx or torchscript",
            )
        if export.student.class_vectors is not None and export.student.vectors.bias_C is not None:
            raise export.refuse("open_clip", expected="class vectors alone", found="with a bias", hint=_OTHERWISE)
        tower = _timm_tower(export) if config["family"] == "timm" else _own_tower(export)
        model_cfg: dict[str, Json] = {
            "embed_dim": student.head.embed_dim,
            "vision_cfg": tower[0],
            "text_cfg": _NO_TEXT,
            **({"quick_gelu": True} if config.get("quick_gelu") else {}),
        }
        weights = _weights(export, model_cfg, tower[1])
        about = {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_config(export)}
        files = {
            _WEIGHTS: safetensors.torch.save(weights),
            _CONFIG: json.dumps(about, indent=1, ensure_ascii=False).encode(),
        }
        if export.student.class_vectors is not None:
            files[VECTORS] = encode_vectors(export.student.vectors)
        return files

    def reopen(self, export: Export, folder: Path) -> Run:
        import open_clip

        with plain_operations():
            model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        model.eval()

        def run(images: Any) -> Any:
            with torch.inference_mode():
                pixels_NCHW = torch.stack([transform(image) for image in images])
                return model.encode_image(pixels_NCHW, normalize=True).float().numpy()

        return run

    def how_to_load(self, folder: str) -> str:
        return f"open_clip.create_model_and_transforms('local-dir:{folder}')"


def _own_tower(export: Export) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """Configuration and weights of a tower that is open_clip's own, and fits only if nothing comes behind it."""
    student, config = export.student.student, export.student.config.student
    if not isinstance(student.projector, nn.Identity):
        raise export.refuse(
            "open_clip",
            expected="the tower's own projection alone",
            found=f"--projector {student.head.projector} behind it",
            hint=_OTHERWISE,
        )
    if config.get("trunk_size") is not None:
        raise export.refuse(
            "open_clip", expected="the trunk's own image size", found=f"{config['trunk_size']} pixels", hint=_OTHERWISE
        )
    return copy.deepcopy(dict(config["vision_cfg"])), dict(student.backbone.state_dict())


def _timm_tower(export: Export) -> tuple[dict[str, Json], dict[str, Tensor]]:
    """The same of a timm student, which is the trunk of a tower that projects linearly."""
    student, config = export.student.student, export.student.config.student
    if not isinstance(student.projector, (nn.Linear, nn.Identity)):
        raise export.refuse(
            "open_clip",
            expected="a linear projector or none",
            found=f"--projector {student.head.projector}",
            hint=_OTHERWISE,
        )
    if config["kwargs"]:
        raise export.refuse(
            "open_clip", expected="the model's own image size", found=f"{config['kwargs']}", hint=_OTHERWISE
        )
    weights = {f"trunk.{name}": value for name, value in student.backbone.state_dict().items()}
    linear = isinstance(student.projector, nn.Linear)
    weights |= {f"head.proj.{name}": value for name, value in student.projector.state_dict().items()}
    return {
        "timm_model_name": str(config["name"]).partition(".")[0],
        "timm_model_pretrained": False,
        "timm_pool": "" if linear else _pool(export),
        "timm_proj": "linear" if linear else "none",
        "timm_proj_bias": linear,
        "image_size": export.student.preprocess.size,
    }, weights


def _pool(export: Export) -> str:
    """How the student pools, as its library calls it; a tower without a projection must be told."""
    pool: Any = getattr(export.student.student.backbone, "global_pool", None)
    name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    if not name:
        raise export.refuse("open_clip", expected="a pooling that has a name", found=str(pool), hint=_OTHERWISE)
    return str(name)


def _weights(export: Export, model_cfg: Mapping[str, Json], tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of the CLIP: the tower's, the student's scale, and zeros."""
    import open_clip

    with plain_operations(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = open_clip.CLIP(**copy.deepcopy(dict(model_cfg)))
    weights = {}
    for name, value in model.state_dict().items():
        own = tower.get(name.removeprefix("visual.")) if name.startswith("visual.") else None
        if name.startswith("visual.") and (own is None or own.shape != value.shape):
            raise export.refuse(
                "open_clip", expected=f"weights {name[7:]}", found="none of that shape", hint=_OTHERWISE
            )
        weights[name] = torch.zeros(value.shape) if own is None else own.contiguous()
    if len(tower) != sum(name.startswith("visual.") for name in weights):
        odd = sorted(set(tower) - {name.removeprefix("visual.") for name in weights})
        raise export.refuse("open_clip", expected="the weights of its tower", found=odd[0], hint=_OTHERWISE)
    weights["logit_scale"] = torch.tensor(math.log(export.student.config.logit_scale))
    return weights


def _preprocess_config(export: Export) -> dict[str, Json]:
    """The student's preprocessing as open_clip calls it.

    Raises:
        InputError: open_clip has no such transform.
    """
    preprocess = export.student.preprocess
    if preprocess.crop_pct != 1 or preprocess.interpolation not in ("bicubic", "bilinear"):
        raise export.refuse(
            "open_clip",
            expected="a crop of 1, bicubic or bilinear",
            found=f"a crop of {preprocess.crop_pct:g}, {preprocess.interpolation}",
            hint="distill it with --student-crop-pct 1; or export it to onnx or torchscript",
        )
    return {
        "size": preprocess.size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "resize_mode": _RESIZE_MODES[preprocess.crop_mode],
        **(
            {"fill_color": list(export.student.preprocess.center_view().fill)}
            if preprocess.crop_mode == "border"
            else {}
        ),
    }
