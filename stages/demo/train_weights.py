"""The script that trained the demo's two CLIP models on the source style; run it to make their folders again.

    python -m teachonce.stages.demo.train_weights --out DIRECTORY

It takes about 15 CPU-minutes. Only source drawings are trained on; validation drawings measure it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import captions, images, tiny_clip
from .tiny_clip import Role


@dataclass(frozen=True, kw_only=True)
class ModelTraining:
    """How long and how fast a model is trained with AdamW."""

    learning_rate: float
    num_steps: int
    seed: int
    batch_size: int = 64
    weight_decay: float = 0.05


MODEL_TRAININGS: dict[Role, ModelTraining] = {
    "teacher": ModelTraining(learning_rate=8e-4, num_steps=2400, seed=1),
    "student": ModelTraining(learning_rate=1.2e-3, num_steps=1000, seed=2),
}

# In a prototype, a plain contrastive loss learnt colours and left digits at chance: so there is a task for
# every attribute, once with the text tower as classifier, once with a linear head that is thrown away.
BANK_WEIGHTS = {"class": 1.0, "digit": 0.5, "colour": 0.5, "background": 0.25}
HEAD_WEIGHT = 0.5


def train(role: Role, training: ModelTraining, directory: Path) -> None:
    """Train one model and write its folder."""
    from open_clip.model import CLIP

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = captions.write_vocabulary(directory)
    config = tiny_clip.model_config(role, tokenizer.vocab_size)
    torch.manual_seed(training.seed)
    generator = np.random.default_rng(training.seed)
    model: Any = CLIP(**config)
    sizes = [len(bank) for bank in captions.banks().values()]
    head = nn.Linear(config["embed_dim"], sum(sizes[1:]))
    optimizer = _optimizer([*model.parameters(), *head.parameters()], training)
    started = time.monotonic()
    window: list[float] = []
    for step, (pixels, labels) in enumerate(_batches(training, generator)):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _schedule(step, training.num_steps)
        features = model.encode_image(pixels)
        texts = model.encode_text(tokenizer(captions.draw_captions(generator)), normalize=True)
        logits = model.logit_scale.exp() * functional.normalize(features, dim=-1) @ texts.T
        loss = torch.zeros(())
        for (name, weight), part in zip(BANK_WEIGHTS.items(), logits.split(sizes, dim=1), strict=True):
            loss = loss + weight * functional.cross_entropy(part, labels[name])
        for name, part in zip(list(BANK_WEIGHTS)[1:], head(features).split(sizes[1:], dim=1), strict=True):
            loss = loss + HEAD_WEIGHT * functional.cross_entropy(part, labels[name])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([loss])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        window.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == training.num_steps:
            scale, seconds = math.exp(model.logit_scale.item()), time.monotonic() - started
            print(
                f"  step {step + 1}: loss {np.mean(window):.3f}, logit scale {scale:.1f}, {seconds:.0f} s",
                flush=True,
            )
            window.clear()
    tiny_clip.write_folder(directory, model, config)


def _batches(training: ModelTraining, generator: np.random.Generator) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield `num_steps` batches (model input, labels of each bank); each epoch is painted again."""
    num_images = images.DRAWINGS_PER_DIGIT["source"] * len(images.class_names())
    num_digits = len(images.DIGITS)
    step = 0
    for epoch in range(math.ceil(training.num_steps * training.batch_size / num_images) + 1):
        # from nearly upright and clean to the whole style over the first two fifths
        strength = min(1.0, 0.25 + 0.75 * step / (0.4 * training.num_steps))
        start = epoch * num_images
        painted = images.render("source", "source", num_images, seed=training.seed, start=start, strength=strength)
        order = generator.permutation(num_images)
        for first in range(0, num_images - training.batch_size + 1, training.batch_size):
            if step == training.num_steps:
                return
            rows = order[first : first + training.batch_size]
            labels = painted.labels_N[rows]
            yield (
                tiny_clip.normalise(painted.images_NHWC[rows]),
                {
                    "class": torch.from_numpy(labels),
                    "digit": torch.from_numpy(labels % num_digits),
                    "colour": torch.from_numpy(labels // num_digits),
                    "background": torch.from_numpy(painted.backgrounds_N[rows]),
                },
            )
            step += 1


def _optimizer(parameters: list[nn.Parameter], training: ModelTraining) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))


def _schedule(step: int, num_steps: int) -> float:
    """Linear rise over the first 5 %, then half a cosine to nothing."""
    warm = max(1, num_steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / (num_steps - warm))))


def main(arguments: list[str] | None = None) -> int:
    """Train the named models and print what they reach on the validation drawings."""
    parser = argparse.ArgumentParser(description="Train the demo's teacher and student on the source style.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets teacher/ and student/")
    parser.add_argument("--only", choices=sorted(MODEL_TRAININGS), help="train one of the two")
    options = parser.parse_args(arguments)
    for role, training in MODEL_TRAININGS.items():
        if options.only not in (None, role):
            continue
        print(f"{role}: {asdict(training)}", flush=True)
        train(role, training, options.out / role)
        for style in images.STRENGTH:
            accuracy = tiny_clip.zero_shot(options.out / role, "validation", style, 2400)
            shown = ", ".join(f"{subset} {value:.3f}" for subset, value in accuracy.items())
            print(f"  validation drawings, {style} style: {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
