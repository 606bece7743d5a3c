"""The same Pillow work for every peer: decode, a random box, resize, mirror, channels first; and the images with their labels."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, BATCH, CLASSES = 224, 64, 1000


def view(data: bytes) -> np.ndarray:
    """One random view of an encoded image: uint8 (3, SIZE, SIZE)."""
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB")
    left, top, width, height = box(*image.size)
    crop = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop).transpose(2, 0, 1)


def box(width: int, height: int) -> tuple[int, int, int, int]:
    """As torchvision's RandomResizedCrop draws it, with Python's cheap generator: left, top, width, height."""
    area = width * height
    for _ in range(10):
        wanted = area * random.uniform(0.08, 1)
        ratio = 2 ** random.uniform(-0.415, 0.415)  # 3/4 to 4/3
        w, h = round((wanted * ratio) ** 0.5), round((wanted / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def samples(folder: str) -> Iterator[tuple[bytes, np.ndarray]]:
    """(image bytes, fp16 (CLASSES,) soft label) of every image of a folder, in order of the paths."""
    draws = np.random.default_rng(0)
    for path in sorted(Path(folder).rglob("*.jpg")):
        yield path.read_bytes(), draws.normal(size=CLASSES).astype(np.float16)


def collate(pairs: list) -> tuple:
    """A batch of (bytes or pixels, label): pixels become one tensor, bytes stay a list."""
    import torch

    images, labels = zip(*pairs, strict=True)
    labels_NC = torch.from_numpy(np.stack(labels).astype(np.float32))
    if isinstance(images[0], bytes | memoryview):
        return images, labels_NC
    return torch.from_numpy(np.stack(images)), labels_NC
