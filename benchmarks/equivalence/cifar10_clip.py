"""Owns the frozen backbone of `promptkd` on CIFAR-10: a tiny CLIP trained here, since no real one can be had.

The towers have the sizes of the demo's student; images are 32 pixels, captions name one of the ten classes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from cifar10_images import CLASSES, Labelled
from teachonce.stages.demo import captions, tiny_clip
from torch.nn import functional as F

SEED, EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 1, 15, 64, 1e-3, 0.05

#: Room for the longest caption; the demo's vocabulary spells the classes in several pieces.
_CONTEXT_LENGTH = 32

_SIZE, _PATCH, _MEAN, _STD = 32, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def train_clip(part: Labelled, folder: Path) -> None:
    """Train image and text tower together and write an open_clip `local-dir:` folder."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    captions.write_vocabulary(folder)
    tokenizer = SimpleTokenizer(bpe_path=str(folder / captions.VOCABULARY_NAME), context_length=_CONTEXT_LENGTH)
    config = _config(tokenizer.vocab_size)
    torch.manual_seed(SEED)
    generator = np.random.default_rng(SEED)
    model: Any = CLIP(**config)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    steps = len(part.labels_N) // BATCH_SIZE
    for step in range(EPOCHS * steps):
        if step % steps == 0:
            order = generator.permutation(len(part.labels_N))
        rows = order[step % steps * BATCH_SIZE :][:BATCH_SIZE]
        done = step / (EPOCHS * steps)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, 20 * (done + 1e-3)) * 0.5 * (1 + math.cos(math.pi * done))
        pixels_NCHW = _augmented(part.images_NHWC[rows], generator)
        templates = captions.templates()
        texts = [templates[generator.integers(len(templates))].replace("{}", name) for name in CLASSES]
        logits_NC = model.logit_scale.exp() * (
            model.encode_image(pixels_NCHW, normalize=True) @ model.encode_text(tokenizer(texts), normalize=True).T
        )
        loss = F.cross_entropy(logits_NC, torch.from_numpy(part.labels_N[rows]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    _write(folder, model, config)


def _config(vocab_size: int) -> dict[str, Any]:
    config = tiny_clip.model_config("student", vocab_size)
    config["vision_cfg"] |= {"image_size": _SIZE, "patch_size": _PATCH}
    config["text_cfg"]["context_length"] = _CONTEXT_LENGTH
    return config


def _augmented(images_NHWC: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Moved by up to 4 pixels and mirrored at random; normalised, (N, 3, 32, 32)."""
    padded = np.pad(images_NHWC, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    moved = np.empty_like(images_NHWC)
    for i, (y, x, flip) in enumerate(generator.integers((9, 9, 2), size=(len(padded), 3))):
        crop = padded[i, y : y + _SIZE, x : x + _SIZE]
        moved[i] = crop[:, ::-1] if flip else crop
    pixels = torch.from_numpy(moved).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def _write(folder: Path, model: Any, config: dict[str, Any]) -> None:
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    (folder / tiny_clip.WEIGHTS_NAME).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    preprocess = {
        "size": _SIZE,
        "mode": "RGB",
        "mean": _MEAN,
        "std": _STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
    (folder / tiny_clip.CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
