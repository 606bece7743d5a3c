"""The demo's two CLIP models: their sizes, and writing and measuring their open_clip `local-dir:` folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn

from . import captions, images
from .styles import SIZE, Style

Role = Literal["teacher", "student"]

MEAN, STD = (0.25, 0.25, 0.25), (0.25, 0.25, 0.25)
WEIGHTS_NAME, CONFIG_NAME, TEMPLATES_NAME = (
    "open_clip_model.safetensors",
    "open_clip_config.json",
    "templates.txt",
)

_PATCH = 9  # 17 tokens an image; smaller patches cost far more time than they bring accuracy


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Widths (channels) and depths of the two towers."""

    vision_width: int
    vision_layers: int
    head_width: int
    text_width: int
    text_layers: int
    text_heads: int
    embed_dim: int


SIZES: dict[Role, TowerSizes] = {
    "teacher": TowerSizes(
        vision_width=160,
        vision_layers=6,
        head_width=40,
        text_width=96,
        text_layers=3,
        text_heads=3,
        embed_dim=128,
    ),
    "student": TowerSizes(
        vision_width=96,
        vision_layers=4,
        head_width=32,
        text_width=64,
        text_layers=2,
        text_heads=2,
        embed_dim=64,
    ),
}


def model_config(role: Role, vocab_size: int) -> dict[str, Any]:
    """The open_clip `model_cfg` of a model."""
    sizes = SIZES[role]
    return {
        "embed_dim": sizes.embed_dim,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": sizes.vision_layers,
            "width": sizes.vision_width,
            "head_width": sizes.head_width,
            "patch_size": _PATCH,
        },
        "text_cfg": {
            "context_length": captions.CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": sizes.text_width,
            "heads": sizes.text_heads,
            "layers": sizes.text_layers,
        },
    }


def write_folder(directory: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write weights (fp16), configuration and templates beside the vocabulary that `captions` wrote."""
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    # not save_file: it leaves a file that no other user may read
    (directory / WEIGHTS_NAME).write_bytes(save(weights, metadata={"format": "pt"}))
    preprocess = {
        "size": SIZE,
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (directory / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    (directory / TEMPLATES_NAME).write_text(captions.PLAIN + "\n", encoding="utf-8")


def normalise(images_NHWC: npt.NDArray[np.uint8]) -> Tensor:
    """Bytes (N, 36, 36, 3) to model input (N, 3, 36, 36)."""
    pixels = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def zero_shot(directory: Path, split: images.Split, style: Style, count: int, *, seed: int = 0) -> dict[str, float]:
    """Zero-shot accuracy: "base" among base classes, "novel" among novel classes, "all" among all."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    model = open_clip.create_model(f"local-dir:{directory}").eval()
    vocabulary = str(directory / captions.VOCABULARY_NAME)
    tokenizer = SimpleTokenizer(bpe_path=vocabulary, context_length=captions.CONTEXT_LENGTH)
    templates = (directory / TEMPLATES_NAME).read_text(encoding="utf-8").splitlines()
    names = images.class_names()
    rendered = images.render(split, style, count, seed=seed)
    with torch.inference_mode():
        texts_TCD = torch.stack(
            [
                model.encode_text(tokenizer([template.replace("{}", name) for name in names]), normalize=True)
                for template in templates
            ]
        )
        features_ND = model.encode_image(normalise(rendered.images_NHWC), normalize=True)
    logits_NC = (features_ND @ nn.functional.normalize(texts_TCD.mean(dim=0), dim=-1).T).numpy()
    subsets = {"base": images.base_class_names(), "novel": images.novel_class_names(), "all": names}
    accuracy = {}
    for subset, members in subsets.items():
        labels = np.array([names.index(name) for name in members])
        rows = np.isin(rendered.labels_N, labels)
        guesses = labels[logits_NC[rows][:, labels].argmax(axis=1)]
        accuracy[subset] = float((guesses == rendered.labels_N[rows]).mean())
    return accuracy
