"""The two CLIP models: their sizes, and writing their open_clip `local-dir:` folders and measuring them zero-shot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pool import SIZE
from split import Part
from teachonce.stages.demo import captions, tiny_clip

Role = Literal["teacher", "student"]

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONTEXT_LENGTH = 24  # the longest caption takes 16 tokens; four more are learnt

_PATCH = 16  # pixels: 37 tokens an image


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths (channels), depths and heads of the two towers."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed_dim: int


SIZES: dict[Role, Sizes] = {
    "teacher": Sizes(vision_width=192, vision_layers=6, text_width=128, text_layers=3, embed_dim=128),
    "student": Sizes(vision_width=96, vision_layers=4, text_width=96, text_layers=3, embed_dim=64),
}

_HEAD_WIDTH = 32


def model_config(role: Role, vocab_size: int) -> dict[str, Any]:
    """The open_clip `model_cfg` of a model."""
    sizes = SIZES[role]
    return {
        "embed_dim": sizes.embed_dim,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": sizes.vision_layers,
            "width": sizes.vision_width,
            "head_width": _HEAD_WIDTH,
            "patch_size": _PATCH,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": sizes.text_width,
            "heads": sizes.text_width // _HEAD_WIDTH,
            "layers": sizes.text_layers,
        },
    }


def write_folder(folder: Path, model: torch.nn.Module, config: dict[str, Any]) -> None:
    """Write weights (fp16), configuration and template beside the vocabulary that `captions` wrote."""
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    (folder / tiny_clip.WEIGHTS_NAME).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    preprocess = {
        "size": SIZE,
        "mode": "RGB",
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / tiny_clip.CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    (folder / tiny_clip.TEMPLATES_NAME).write_text(captions.PLAIN + "\n", encoding="utf-8")


def normalise(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Pixels from 0 to 1 to model input."""
    return (images_NCHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.inference_mode()
def zero_shot(folder: Path, part: Part, names: tuple[str, ...], num_base: int) -> dict[str, float]:
    """Zero-shot accuracy in percent: "base" among base classes, "novel" among novel ones, "hm" harmonic mean."""
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokenizer = SimpleTokenizer(bpe_path=str(folder / captions.VOCABULARY_NAME), context_length=CONTEXT_LENGTH)
    images_NCHW = torch.stack([preprocess(Image.open(path)) for path in part.paths])
    texts_CD = model.encode_text(tokenizer([captions.PLAIN.replace("{}", n) for n in names]), normalize=True)
    logits_NC = (model.encode_image(images_NCHW, normalize=True) @ texts_CD.T).numpy()
    labels_N = np.array(part.labels)
    accuracy = {}
    for subset, columns in {"base": slice(0, num_base), "novel": slice(num_base, len(names))}.items():
        members = np.arange(len(names))[columns]
        rows = np.isin(labels_N, members)
        accuracy[subset] = 100 * float((members[logits_NC[rows][:, columns].argmax(1)] == labels_N[rows]).mean())
    accuracy["hm"] = 2 / (1 / max(accuracy["base"], 1e-9) + 1 / max(accuracy["novel"], 1e-9))
    return accuracy
