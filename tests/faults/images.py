"""Owns the images of a run where none are given: drawn ones, in class folders."""

from __future__ import annotations

import shutil
from pathlib import Path

CLASSES = ("emu", "ibis", "lotus", "bass")
EACH = 15
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png"}


def draw(folder: Path) -> None:
    """Small pictures."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(EACH):
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            small.resize((160, 120), Image.Resampling.BICUBIC).save(folder / name / f"{i:02d}.jpg")


def take(source: Path, folder: Path) -> None:
    """The first photographs of the first class folders."""
    chosen = [at for at in sorted(source.iterdir()) if at.is_dir()][: len(CLASSES)]
    for at in chosen:
        (folder / at.name).mkdir(parents=True)
        images = sorted(one for one in at.iterdir() if one.suffix.lower() in IMAGE_ENDINGS)[:EACH]
        for one in images:
            shutil.copy(one, folder / at.name / one.name)


def lay_out(folder: Path, source: Path | None) -> Path:
    """Class folders of images, with one image that is empty and one that is cut. Returns the folder."""
    if source is None:
        draw(folder)
    else:
        take(source, folder)
    first, second, *_ = sorted(folder.iterdir())
    whole = next(iter(sorted(second.iterdir()))).read_bytes()
    (first / "empty.jpg").write_bytes(b"")
    (second / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return folder
