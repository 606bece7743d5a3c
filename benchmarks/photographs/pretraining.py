"""The pre-training of the two CLIP models on a pool of crops: captions, and features of an ImageNet model."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from photo_clip import CONTEXT_LENGTH, Role, model_config, normalise, write_folder
from pool import Pool
from teachonce.stages.demo import captions
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast a model is trained, and what its images are made to look like.

    Attributes:
        steps, batch_size: of the training.
        learning_rate, muon_rate: of AdamW and of Muon, which trains the matrices inside the blocks; both follow a cosine.
        weight_decay: of both.
        seed: of weights, batches, captions and styles.
        imagenet_weight: of the class token's loss against the ImageNet model's features.
        hint_weight: of the patch tokens' losses against its maps.
        saturation, contrast, brightness: ranges of factors; below 1 in saturation is the faded style.
        logit_scale: where it starts, at CLIP's value; it hardly moves.
        smoothing: of the labels.
    """

    steps: int
    learning_rate: float
    seed: int
    muon_rate: float = 0.02
    batch_size: int = 64
    weight_decay: float = 0.05
    imagenet_weight: float = 2.0
    hint_weight: float = 2.0
    saturation: tuple[float, float] = (0.0, 0.5)
    contrast: tuple[float, float] = (0.7, 1.3)
    brightness: tuple[float, float] = (0.7, 1.3)
    logit_scale: float = 1 / 0.07
    smoothing: float = 0.1


RECIPES: dict[Role, Recipe] = {
    "teacher": Recipe(steps=1200, learning_rate=1e-3, seed=1),
    "student": Recipe(steps=450, learning_rate=1.5e-3, seed=2, logit_scale=40.0),
}


def train(role: Role, recipe: Recipe, pool: Pool, names: tuple[str, ...], folder: Path) -> float:
    """Train one model and write its folder; return the seconds it took."""
    # the fused attention's backward pass in bfloat16 is several times slower on a CPU
    with sdpa_kernel(SDPBackend.MATH):
        return _train(role, recipe, pool, names, folder)


def _train(role: Role, recipe: Recipe, pool: Pool, names: tuple[str, ...], folder: Path) -> float:
    from open_clip.model import CLIP

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = captions.write_vocabulary(folder, names, context_length=CONTEXT_LENGTH)
    config = model_config(role, tokenizer.vocab_size)
    torch.manual_seed(recipe.seed)
    generator = np.random.default_rng(recipe.seed)
    model: Any = CLIP(**config)
    _start(model.visual, pool)
    nn.init.constant_(model.logit_scale, math.log(recipe.logit_scale))
    head = nn.Linear(config["embed_dim"], pool.features_ND.shape[1])
    hints = Hints(model.visual, pool)
    targets_ND = F.normalize(torch.from_numpy(pool.features_ND - pool.features_ND.mean(axis=0)), dim=1)
    optimizers = _optimizers(model, [*head.parameters(), *hints.parameters()], recipe)
    started = time.monotonic()
    order, sums = np.zeros(0, np.int64), np.zeros(5)
    for step in range(recipe.steps):
        if len(order) < recipe.batch_size:
            order = generator.permutation(len(pool.labels_N))
        rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step / recipe.steps)
        mirrored_N = torch.from_numpy(generator.random(recipe.batch_size) < 0.5)
        pixels_NCHW = _styled(pool.images_NHWC[rows], mirrored_N, recipe, generator)
        with torch.autocast("cpu", torch.bfloat16):
            images_ND = model.encode_image(pixels_NCHW)
        images_ND = images_ND.float()
        texts_CD = model.encode_text(tokenizer(_captions(names, generator)), normalize=True)
        logits_NC = model.logit_scale.exp() * F.normalize(images_ND, dim=1) @ texts_CD.T
        labels_N = torch.from_numpy(pool.labels_N[rows])
        named = F.cross_entropy(logits_NC, labels_N, label_smoothing=recipe.smoothing)
        copied = 1 - F.cosine_similarity(head(images_ND), targets_ND[rows]).mean()
        for optimizer, _ in optimizers:
            optimizer.zero_grad(set_to_none=True)
        early, late = hints.losses(rows, mirrored_N)
        (named + recipe.imagenet_weight * copied + recipe.hint_weight * (early + late)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        sums += [
            named.item(),
            copied.item(),
            early.item(),
            late.item(),
            (logits_NC.argmax(1) == labels_N).float().mean().item(),
        ]
        if (step + 1) % 200 == 0 or step + 1 == recipe.steps:
            named, copied, early, late, right = sums / (step % 200 + 1)
            print(
                f"  {role}, step {step + 1}: captions {named:.3f}, features {copied:.3f}, "
                f"maps {early:.3f} and {late:.3f}, right {right:.3f}, "
                f"scale {model.logit_scale.exp().item():.1f}, {time.monotonic() - started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            sums[:] = 0
    write_folder(folder, model, config)
    return time.monotonic() - started


class Hints(nn.Module):
    """Losses of patch tokens: two blocks' tokens, through linear heads, against the ImageNet model's two maps."""

    def __init__(self, visual: Any, pool: Pool) -> None:
        super().__init__()
        blocks = visual.transformer.resblocks
        self._tokens: dict[int, Tensor] = {}
        self._targets = [_standardised(maps) for maps in (pool.early_NLD, pool.late_NLD)]
        width = visual.conv1.out_channels
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, maps.shape[2])) for maps in self._targets
        )
        for i, block in enumerate((blocks[len(blocks) // 2 - 1], blocks[-2])):
            block.register_forward_hook(lambda _b, _in, out, i=i: self._tokens.__setitem__(i, out[:, 1:]))

    def losses(self, rows: np.ndarray, mirrored_N: Tensor) -> list[Tensor]:
        """Mean squared errors, where a constant would have 1, of the batch that went through the model last."""
        losses = []
        for i, (head, maps) in enumerate(zip(self.heads, self._targets, strict=True)):
            target_NLD = maps[rows].float()
            side = math.isqrt(target_NLD.shape[1])
            flipped = target_NLD.unflatten(1, (side, side)).flip(2).flatten(1, 2)
            target_NLD = torch.where(mirrored_N[:, None, None], flipped, target_NLD)
            losses.append(F.mse_loss(head(self._tokens[i].float()), target_NLD))
        return losses


def _standardised(maps_NLD: np.ndarray) -> Tensor:
    some = maps_NLD[:2000].astype(np.float32)
    mean, std = some.mean((0, 1)), some.std((0, 1)) + 1e-3
    return torch.from_numpy(((maps_NLD - mean) / std).astype(np.float16))


@torch.no_grad()
def _start(visual: Any, pool: Pool) -> None:
    """Initialise the vision tower so that it learns quickly: patches by principal components, places by sines."""
    width, side, size = visual.conv1.out_channels, visual.grid_size[0], visual.conv1.kernel_size[0]
    pixels_NCHW = normalise(torch.from_numpy(pool.images_NHWC[:800]).permute(0, 3, 1, 2).float() / 255)
    patches = F.unfold(pixels_NCHW, size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    whitened = vectors * (values + 0.01 * values.mean()).rsqrt()
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    visual.conv1.weight.copy_(0.5 * (rotation @ whitened.T).view_as(visual.conv1.weight))
    place = torch.arange(side).float()
    rates = 1 / 10000 ** (torch.arange(width // 4).float() / (width // 4))
    waves = torch.cat([(place[:, None] * rates).sin(), (place[:, None] * rates).cos()], 1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    visual.positional_embedding[1:] = 0.5 * torch.cat([rows, columns], 2).flatten(0, 1)


def _captions(names: tuple[str, ...], generator: np.random.Generator) -> list[str]:
    """One caption a class, each in a random template (3 in 10: "a photo of a …")."""
    choices = captions.templates()
    plain, which = generator.random(len(names)) < 0.3, generator.integers(len(choices), size=len(names))
    return [(captions.PLAIN if plain[i] else choices[which[i]]).replace("{}", name) for i, name in enumerate(names)]


def _styled(images_NHWC: np.ndarray, mirrored_N: Tensor, recipe: Recipe, generator: np.random.Generator) -> Tensor:
    """Crops as model input: mirrored, brightness, contrast and saturation changed, some gray."""
    n = len(images_NHWC)
    pixels = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 255

    def draw(low: float, high: float) -> Tensor:
        return torch.from_numpy(generator.uniform(low, high, n)).float().view(n, 1, 1, 1)

    pixels = torch.where(mirrored_N[:, None, None, None], pixels.flip(3), pixels)
    gray = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    pixels = gray + draw(*recipe.saturation) * (pixels - gray)
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = middle * draw(*recipe.brightness) + draw(*recipe.contrast) * (pixels - middle)
    return normalise(pixels.clamp(0, 1))


def _optimizers(
    model: nn.Module, others: list[nn.Parameter], recipe: Recipe
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices inside the blocks of both towers, AdamW for everything else, each with its rate."""
    inner = [p for name, p in model.named_parameters() if "resblocks" in name and p.ndim == 2]
    chosen = {id(p) for p in inner}
    others = [*others, *(p for p in model.parameters() if id(p) not in chosen)]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    muon = torch.optim.Muon(inner, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95)
    return [(adam, recipe.learning_rate), (muon, recipe.muon_rate)]


def _schedule(done: float) -> float:
    """Linear rise over the first 5 %, then half a cosine to nothing."""
    return min((done + 1e-3) / 0.05, 0.5 * (1 + math.cos(math.pi * max(0.0, done - 0.05) / 0.95)))
