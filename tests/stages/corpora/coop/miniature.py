"""Miniature copies of the data sets' layouts, with images that are drawn here.

The layouts are written down from CoOp's DATASETS.md and readers, not taken from the package.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SPLITS = ("train", "val", "test")

#: Of the data sets with a split file: the file, the folder that its paths start at, a path for class and number, classes.
SPLIT_FILES: dict[str, tuple[str, str, Callable[[str, str, int], str], tuple[str, ...]]] = {
    "caltech101": (
        "caltech-101/split_zhou_Caltech101.json",
        "101_ObjectCategories",
        lambda split, name, n: f"{name}/image_{n:04d}.jpg",
        ("face", "leopard", "accordion"),
    ),
    "oxford_pets": (
        "oxford_pets/split_zhou_OxfordPets.json",
        "images",
        lambda split, name, n: f"{name.title()}_{n}.jpg",
        ("abyssinian", "american_bulldog", "pug", "beagle"),
    ),
    "stanford_cars": (
        "stanford_cars/split_zhou_StanfordCars.json",
        "",
        lambda split, name, n: f"cars_{'test' if split == 'test' else 'train'}/{n:05d}.jpg",
        ("2000 AM General Hummer SUV", "2012 Acura RL Sedan"),
    ),
    "oxford_flowers": (
        "oxford_flowers/split_zhou_OxfordFlowers.json",
        "jpg",
        lambda split, name, n: f"image_{n:05d}.jpg",
        ("pink primrose", "hard-leaved pocket orchid", "rose"),
    ),
    "food101": (
        "food-101/split_zhou_Food101.json",
        "images",
        lambda split, name, n: f"{name}/{n}.jpg",
        ("apple_pie", "baby_back_ribs", "waffles"),
    ),
    "sun397": (
        "sun397/split_zhou_SUN397.json",
        "SUN397",
        lambda split, name, n: f"{name[0]}/{'/'.join(reversed(name.split(' ')))}/sun_{n}.jpg",
        ("abbey", "indoor church", "outdoor church"),
    ),
    "dtd": (
        "dtd/split_zhou_DescribableTextures.json",
        "images",
        lambda split, name, n: f"{name}/{name}_{n:04d}.jpg",
        ("banded", "blotchy", "zigzagged"),
    ),
    "eurosat": (
        "eurosat/split_zhou_EuroSAT.json",
        "2750",
        lambda split, name, n: f"{name.replace(' ', '')}/{name.replace(' ', '')}_{n}.jpg",
        ("Annual Crop Land", "Forest", "Sea or Lake"),
    ),
    "ucf101": (
        "ucf101/split_zhou_UCF101.json",
        "UCF-101-midframes",
        lambda split, name, n: f"{name}/v_{name.replace('_', '')}_g01_c{n:02d}.jpg",
        ("Apply_Eye_Makeup", "Yo_Yo", "Archery"),
    ),
}

#: Of ImageNet and its variants: the folder, and the folder of each split's class folders.
CLASS_FOLDERS = {
    "imagenet": ("imagenet", {"train": "images/train", "test": "images/val"}),
    "imagenetv2": ("imagenetv2", {"test": "imagenetv2-matched-frequency-format-val"}),
    "imagenet_sketch": ("imagenet-sketch", {"test": "images"}),
    "imagenet_a": ("imagenet-adversarial", {"test": "imagenet-a"}),
    "imagenet_r": ("imagenet-rendition", {"test": "imagenet-r"}),
}

NAMES = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet_a",
    "imagenet_r",
)


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """What was built.

    `images`: for each split, (path below `folder`, class name) in the order of the split file, or of the paths where
    there is none.
    """

    folder: Path
    classes: tuple[str, ...]
    images: dict[str, list[tuple[str, str]]]
    ordered: bool


def draw_plain(name: str, number: int) -> Image.Image:
    """A small image of one colour, another for each class and number."""
    return Image.new("RGB", (24 + number % 5, 20), (zlib.crc32(name.encode()) % 256, 40 * number % 256, number % 256))


def build(
    root: Path,
    name: str,
    *,
    classes: Sequence[str] | None = None,
    per_class: Mapping[str, int],
    draw: Callable[[str, int], Image.Image] = draw_plain,
) -> Miniature:
    """Lay out a data set below CoOp's root folder.

    Args:
        root: CoOp's root folder.
        name: of the data set.
        classes: class names in the order of the label ids; default: two to four of its own.
        per_class: images of each class in each split; splits that the data set lacks are left out.
        draw: the image of a class and a number, which is another for each image of the class.
    """
    if name == "fgvc_aircraft":
        return _aircraft(root / name, tuple(classes or ("707-320", "A300B4", "F/A-18")), per_class, draw)
    if name in CLASS_FOLDERS:
        return _folders(root, name, tuple(classes or ("tench", "goldfish", "great white shark")), per_class, draw)
    file, below, path, names = SPLIT_FILES[name]
    return _listed(root, file, below, path, tuple(classes or names), per_class, draw)


def _entries(
    classes: Sequence[str], per_class: Mapping[str, int], path: Callable[[str, str, int], str]
) -> dict[str, list[tuple[str, str, int]]]:
    """(path, class name, number) of each split, in an order that is none of paths or classes."""
    entries: dict[str, list[tuple[str, str, int]]] = {split: [] for split in SPLITS}
    number = 0
    for split in SPLITS:
        for name in classes:
            for _ in range(per_class.get(split, 0)):
                number += 1
                entries[split].append((path(split, name, number), name, number))
        random.Random(5).shuffle(entries[split])
    return entries


def _draw(file: Path, image: Image.Image) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, "JPEG", quality=95)


def _listed(
    root: Path,
    file: str,
    below: str,
    path: Callable[[str, str, int], str],
    classes: tuple[str, ...],
    per_class: Mapping[str, int],
    draw: Callable[[str, int], Image.Image],
) -> Miniature:
    split_file = root / file
    folder = split_file.parent
    for needed in (below,) if below else ("cars_train", "cars_test"):
        (folder / needed).mkdir(parents=True)
    prefix = f"{below}/" if below else ""
    entries = _entries(classes, per_class, path)
    for listed in entries.values():
        for image, name, number in listed:
            _draw(folder / (prefix + image), draw(name, number))
    written = {s: [(p, classes.index(c), c) for p, c, _ in listed] for s, listed in entries.items()}
    split_file.write_text(json.dumps(written, indent=4, separators=(",", ": ")))
    images = {s: [(prefix + p, c) for p, c, _ in listed] for s, listed in entries.items()}
    return Miniature(folder=folder, classes=classes, images=images, ordered=True)


def _aircraft(
    folder: Path,
    classes: tuple[str, ...],
    per_class: Mapping[str, int],
    draw: Callable[[str, int], Image.Image],
) -> Miniature:
    (folder / "images").mkdir(parents=True)
    entries = _entries(classes, per_class, lambda split, name, n: f"{n:07d}")
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in classes))
    for split, listed in entries.items():
        (folder / f"images_variant_{split}.txt").write_text("".join(f"{p} {c}\n" for p, c, _ in listed))
        for image, name, number in listed:
            _draw(folder / "images" / f"{image}.jpg", draw(name, number))
    images = {s: [(f"images/{p}.jpg", c) for p, c, _ in listed] for s, listed in entries.items()}
    return Miniature(folder=folder, classes=classes, images=images, ordered=True)


def _folders(
    root: Path,
    name: str,
    classes: tuple[str, ...],
    per_class: Mapping[str, int],
    draw: Callable[[str, int], Image.Image],
) -> Miniature:
    folder = root / CLASS_FOLDERS[name][0]
    # The variants with some of the classes have classnames.txt of them all.
    partly = name in ("imagenet_a", "imagenet_r")
    names = ("kit fox", *classes, "toilet tissue") if partly else classes
    synsets = [f"n{1440764 + 2801 * i:08d}" for i in range(len(names))]
    folders = [str(i) for i in range(len(names))] if name == "imagenetv2" else synsets
    folder_of = {c: f for c, f in zip(names, folders, strict=True) if c in classes}
    folder.mkdir(parents=True)
    lines = [f"{s} {c}\n" for s, c in zip(synsets, names, strict=True)]
    (folder / "classnames.txt").write_text("".join(lines))
    images: dict[str, list[tuple[str, str]]] = {}
    number = 0
    for split, below in CLASS_FOLDERS[name][1].items():
        images[split] = []
        for c in classes:
            (folder / below / folder_of[c]).mkdir(parents=True)
            for _ in range(per_class.get(split, 0)):
                number += 1
                path = f"{below}/{folder_of[c]}/{folder_of[c]}_{number}.JPEG"
                _draw(folder / path, draw(c, number))
                images[split].append((path, c))
        if partly:
            (folder / below / "README.txt").write_text("about it\n")
        images[split].sort(key=lambda image: image[0].encode())
    return Miniature(folder=folder, classes=classes, images=images, ordered=False)
