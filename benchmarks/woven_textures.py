"""Draws pictures of woven fabric with defects in them, in MVTec AD's layout: for trying anomaly detection where no data set can be had.

    python benchmarks/woven_textures.py OUT [--size 256] [--train 160] [--test 40] [--seed 0]

OUT/fabric/train/good, OUT/fabric/test/{good,hole,stain,broken-yarn,thick-yarn,misweave}, OUT/fabric/ground_truth/DEFECT/NNN_mask.png. Two
yarns cross in a twill; thickness, brightness and distance of each vary, the cloth is lit from a side and seen a little turned. Every
picture follows from the seed, its kind and its number. They are drawings: figures on them say how a method behaves, not how it
would on photographs of fabric.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

DEFECTS = ("hole", "stain", "broken-yarn", "thick-yarn", "misweave")


def fabric(rng: np.random.Generator, size: int, shift_rows: Array | None = None) -> tuple[Array, Array, Array]:
    """(brightness, phase along, phase across), each (size, size); brightness is about 0 to 1.

    Args:
        shift_rows: by how many yarns the weave is shifted at each pixel: 0 where it is right.
    """
    angle = rng.normal(0, 0.03)
    y, x = np.mgrid[0:size, 0:size].astype(float)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    pitch = 6.0
    u = u / pitch + _smooth(rng, size, 40) * 0.25 + rng.random()
    v = v / pitch + _smooth(rng, size, 40) * 0.25 + rng.random()
    warp, weft = np.floor(u), np.floor(v)
    shift = 0 if shift_rows is None else shift_rows
    over = (warp + weft + shift) % 4 < 2  # a 2/2 twill
    across, along = np.abs(u - warp - 0.5) * 2, np.abs(v - weft - 0.5) * 2
    levels = np.random.default_rng(rng.integers(2**32)).normal(0, 0.05, (2, 4096))
    own = np.where(over, levels[0][warp.astype(int) % 4096], levels[1][weft.astype(int) % 4096])
    rounded = np.where(over, 1 - 0.55 * across**2 - 0.15 * along**2, 0.85 - 0.5 * along**2 - 0.15 * across**2)
    light = 1 + 0.12 * ((x - size / 2) * np.cos(phase := rng.random() * 6.3) + (y - size / 2) * np.sin(phase)) / size
    return (0.62 * rounded + own + rng.normal(0, 0.03, u.shape)) * light, u, v


def _smooth(rng: np.random.Generator, size: int, scale: int) -> Array:
    coarse = rng.normal(size=(size // scale + 3, size // scale + 3)).astype(np.float32)
    found = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(found, np.float64)


def _blob(rng: np.random.Generator, size: int, radius: float) -> Array:
    """1 in a ragged round, 0 beyond, soft at the edge."""
    margin = radius + 8
    cy, cx = rng.uniform(margin, size - margin, 2)
    y, x = np.mgrid[0:size, 0:size].astype(float)
    distance = np.hypot((y - cy) * rng.uniform(0.8, 1.25), x - cx) + 2.0 * _smooth(rng, size, 12)
    inside: Array = np.clip((radius - distance) / 2 + 0.5, 0, 1)
    return inside


def picture(seed: int, kind: str, number: int, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture, uint8 (size, size, 3), and where its defect is."""
    rng = np.random.default_rng([seed, sum(map(ord, kind)), number])
    mask, shift = np.zeros((size, size)), None
    if kind == "misweave":
        mask = _blob(rng, size, rng.uniform(14, 26))
        shift = np.where(mask > 0.5, 2, 0)
    bright, u, v = fabric(rng, size, shift)
    strength = rng.uniform(0.5, 1.0)
    if kind == "hole":
        mask = _blob(rng, size, rng.uniform(5, 14))
        bright = bright * (1 - mask) + (0.12 + 0.1 * rng.random()) * mask
    elif kind == "stain":
        mask = _blob(rng, size, rng.uniform(10, 28))
        bright = bright * (1 - 0.3 * strength * mask)
    elif kind in ("broken-yarn", "thick-yarn"):
        lengthwise = rng.random() < 0.5
        line, other = (u, v) if lengthwise else (v, u)
        at = np.floor(np.quantile(line, rng.uniform(0.2, 0.8)))
        start = np.quantile(other, rng.uniform(0.1, 0.5))
        width = 0.5 if kind == "broken-yarn" else 0.9
        on = (np.abs(line - at - 0.5) < width) & (other > start) & (other < start + rng.uniform(8, 20))
        mask = on.astype(float)
        bright = bright - 0.28 * strength * mask if kind == "broken-yarn" else bright + 0.22 * strength * mask
    tint = np.array([0.95, 0.9, 0.78]) + rng.normal(0, 0.01, 3)
    colours = np.clip(bright[..., None] * tint, 0, 1)
    return np.rint(255 * colours).astype(np.uint8), mask > 0.5


def write(out: Path, size: int, train: int, test: int, seed: int) -> None:
    """All pictures of a category `fabric`; `test` faultless ones, and as many with defects of all kinds together for each."""
    root = out / "fabric"

    def keep(folder: str, kind: str, number: int, name: int) -> None:
        image, mask = picture(seed, kind, number, size)
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / folder / f"{name:03d}.png")
        if kind != "good":
            masks = root / "ground_truth" / kind
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(masks / f"{name:03d}_mask.png")

    for number in range(train):
        keep("train/good", "good", number, number)
    for number in range(test):
        keep("test/good", "good", 1_000_000 + number, number)
    for kind in DEFECTS:
        for number in range(max(1, 2 * test // len(DEFECTS))):
            keep(f"test/{kind}", kind, number, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--train", type=int, default=160)
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.out, given.size, given.train, given.test, given.seed)


if __name__ == "__main__":
    main()
