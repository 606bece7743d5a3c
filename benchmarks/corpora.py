"""Owns the images that are measured on: a user's, or drawn on the fly; as folders of so many files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def files(corpus: Path) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of every image in a folder or a plain tar, in order of the paths in a folder."""
    if corpus.is_dir():
        for path in sorted(p for p in corpus.rglob("*") if p.suffix.lower() in _SUFFIXES):
            yield path.relative_to(corpus).as_posix(), path.read_bytes()
        return
    with tarfile.open(corpus) as tar:
        for member in tar:
            if member.isreg() and member.name.lower().endswith(_SUFFIXES):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


def take(corpus: Path, count: int, folder: Path) -> Path:
    """Copy `count` images, evenly spread over the corpus, into a new folder; all where there are fewer."""
    total = sum(1 for _ in files(corpus))
    wanted = {i * total // count for i in range(min(count, total))} if total > count else set(range(total))
    for i, (path, data) in enumerate(files(corpus)):
        if i in wanted:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return folder


def draw(folder: Path, count: int, *, width: int, height: int, per_folder: int = 100) -> Path:
    """Write `count` JPEGs of blurred colours and some noise: the same every time, 500 different ones."""
    drawn = [_jpeg(number, width, height) for number in range(min(count, 500))]
    for number in range(count):
        target = folder / f"class{number // per_folder:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(drawn[number % len(drawn)])
    return folder


def _jpeg(number: int, width: int, height: int) -> bytes:
    stream = np.random.default_rng(number)
    coarse = stream.integers(0, 256, (6, 8, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + stream.integers(-14, 15, (height, width, 1), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
