"""Owns CIFAR-10 as the benchmarks use it: which images serve which purpose, never two; from tars of CLASS/NAME.jpg."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Images of each class in train.tar, in the order of their names: what students learn from without labels, what the
#: teacher's head is fitted to, what the student's CLIP is trained on before.
PARTS: Mapping[str, range] = {
    "images": range(0, 200),
    "head": range(200, 1200),
    "clip": range(1200, 2000),
}

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class Labelled:
    """Images (N, 32, 32, 3) uint8 and class ids (N,) int64."""

    images_NHWC: NDArray[np.uint8]
    labels_N: NDArray[np.int64]


def labelled(cifar10: Path, part: str) -> Labelled:
    """A part of train.tar with its labels."""
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        for data in _part(cifar10, part)[name]:
            with Image.open(io.BytesIO(data)) as image:
                images.append(np.asarray(image.convert("RGB")))
            labels.append(label)
    return Labelled(np.stack(images), np.array(labels, np.int64))


def write_images(cifar10: Path, folder: Path, per_class: int) -> None:
    """Images without labels: flat files, classes in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, name in enumerate(CLASSES):
        for i, data in enumerate(_part(cifar10, "images")[name][:per_class]):
            (folder / f"{i * len(CLASSES) + label:05d}.jpg").write_bytes(data)


def write_held_out(cifar10: Path, folder: Path, per_class: int) -> None:
    """The first images of each class in test.tar, in class folders."""
    for name, files in _by_class(cifar10 / "test.tar").items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, data in enumerate(files[:per_class]):
            (folder / name / f"{i:04d}.jpg").write_bytes(data)


def _part(cifar10: Path, part: str) -> dict[str, list[bytes]]:
    wanted = PARTS[part]
    return {n: files[wanted.start : wanted.stop] for n, files in _by_class(cifar10 / "train.tar").items()}


def _by_class(tar: Path) -> dict[str, list[bytes]]:
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    for path, data in sorted(_members(tar)):
        found[path.split("/")[0]].append(data)
    if set(found) != set(CLASSES):
        raise SystemExit(f"{tar}: expected the folders {', '.join(CLASSES)}, found {', '.join(sorted(found))}")
    return dict(found)


def _members(tar: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(tar) as members:
        for member in members:
            if member.isreg():
                content = members.extractfile(member)
                assert content is not None
                yield member.name, content.read()
