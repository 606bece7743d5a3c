"""The split of the photographs into pre-training, training, validation and test, and CoOp's layout of the last three.

Which part a photograph falls into follows from a hash of its class and file name, so every machine has the same split.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

#: Photographs a part gets of a class of 60; of smaller classes in proportion, and the training part takes the rest.
PRETRAIN, VAL, TEST, WHOLE = 20, 5, 10, 60

#: As CoOp and all that build on it name the files of Caltech-101.
LAYOUT, IMAGES, SPLIT_NAME = "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Photographs and their labels: indices into the classes' names in alphabetical order of their folders."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """The four parts. `pretrain` is what a stand-in for a CLIP is trained on before; it is used for nothing else."""

    names: tuple[str, ...]
    pretrain: Part
    train: Part
    val: Part
    test: Part

    @staticmethod
    def of(photographs: Path) -> Split:
        """Split `photographs`/CLASS/*.jpg."""
        folders = sorted(folder for folder in photographs.iterdir() if folder.is_dir())
        parts: dict[str, list[tuple[Path, int]]] = {"pretrain": [], "train": [], "val": [], "test": []}
        for label, folder in enumerate(folders):
            for part, paths in _divide(sorted(folder.glob("*.jpg"), key=_hash)).items():
                parts[part] += [(path, label) for path in sorted(paths)]
        return Split(
            names=tuple(folder.name.replace("_", " ") for folder in folders),
            **{
                part: Part(paths=tuple(p for p, _ in rows), labels=tuple(c for _, c in rows))
                for part, rows in parts.items()
            },
        )

    @property
    def num_base(self) -> int:
        """How many of the classes, from the first, are base classes; the others are novel."""
        return (len(self.names) + 1) // 2

    def write(self, directory: Path) -> Path:
        """Copy all but the pre-training part into `directory`/caltech-101, with the split file; return that folder."""
        root = directory / LAYOUT
        rows: dict[str, list[tuple[str, int, str]]] = {}
        for name in ("train", "val", "test"):
            part: Part = getattr(self, name)
            rows[name] = []
            for path, label in zip(part.paths, part.labels, strict=True):
                place = f"{path.parent.name}/{path.name}"
                target = root / IMAGES / place
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                rows[name].append((place, label, self.names[label]))
        (root / SPLIT_NAME).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return root


def _divide(paths: list[Path]) -> dict[str, list[Path]]:
    """Parts of one class, in the order of its hashes."""
    sizes = {"pretrain": PRETRAIN, "val": VAL, "test": TEST}
    divided, first = {}, 0
    for part, size in sizes.items():
        last = first + round(len(paths) * size / WHOLE)
        divided[part], first = paths[first:last], last
    return divided | {"train": paths[first:]}


def _hash(path: Path) -> str:
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).hexdigest()
