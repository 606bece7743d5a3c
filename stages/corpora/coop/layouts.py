"""Owns what is known of each data set: its folders below CoOp's root, its files, and PromptKD's weight of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

#: The splits of every data set but ImageNet and its variants.
SPLITS = ("train", "val", "test")


class DatasetKind(Enum):
    """Where a data set lists which image belongs to which split and class."""

    SPLIT_FILE = "CoOp's split_zhou_*.json"
    AIRCRAFT = "FGVC-Aircraft's own text files"
    SYNSETS = "a folder for each synset of classnames.txt"
    SOME_SYNSETS = "a folder for each of some synsets of classnames.txt"
    NUMBERS = "a folder for each line of classnames.txt, named by its number from 0 on"


@dataclass(frozen=True, kw_only=True)
class DatasetLayout:
    """One data set.

    Attributes:
        name: as CoOp and PromptKD name it in their configurations.
        title: its heading in CoOp's DATASETS.md.
        folder: its folder below CoOp's root.
        images: for each split that it has, the folder within `folder` that the images' paths start at.
        kind: where splits and classes come from.
        files: what else must be there, within `folder`; the first one is what names the classes.
        loss_weight: PromptKD's weight of the loss.
    """

    name: str
    title: str
    folder: str
    images: Mapping[str, str]
    kind: DatasetKind
    files: tuple[str, ...]
    loss_weight: int = 1000


def _listed(
    name: str,
    title: str,
    *,
    folder: str = "",
    images: str,
    files: tuple[str, ...],
    loss_weight: int = 1000,
    kind: DatasetKind = DatasetKind.SPLIT_FILE,
) -> DatasetLayout:
    return DatasetLayout(
        name=name,
        title=title,
        folder=folder or name,
        images=dict.fromkeys(SPLITS, images),
        kind=kind,
        files=files,
        loss_weight=loss_weight,
    )


def _variant(name: str, title: str, folder: str, images: str, kind: DatasetKind) -> DatasetLayout:
    return DatasetLayout(
        name=name, title=title, folder=folder, images={"test": images}, kind=kind, files=("classnames.txt",)
    )


_ALL = (
    # CoOp tests on ImageNet's validation images, and has no others to validate on.
    DatasetLayout(
        name="imagenet",
        title="ImageNet",
        folder="imagenet",
        images={"train": "images/train", "test": "images/val"},
        kind=DatasetKind.SYNSETS,
        files=("classnames.txt",),
    ),
    _listed(
        "caltech101",
        "Caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        files=("split_zhou_Caltech101.json",),
    ),
    _listed("oxford_pets", "OxfordPets", images="images", files=("split_zhou_OxfordPets.json",)),
    # The only one whose split file starts at the data set's own folder.
    _listed(
        "stanford_cars", "StanfordCars", images="", files=("split_zhou_StanfordCars.json", "cars_train", "cars_test")
    ),
    _listed("oxford_flowers", "Flowers102", images="jpg", files=("split_zhou_OxfordFlowers.json",), loss_weight=200),
    _listed("food101", "Food101", folder="food-101", images="images", files=("split_zhou_Food101.json",)),
    _listed(
        "fgvc_aircraft",
        "FGVCAircraft",
        images="images",
        kind=DatasetKind.AIRCRAFT,
        loss_weight=200,
        files=("variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)),
    ),
    _listed("sun397", "SUN397", images="SUN397", files=("split_zhou_SUN397.json",)),
    _listed("dtd", "DTD", images="images", files=("split_zhou_DescribableTextures.json",), loss_weight=200),
    _listed("eurosat", "EuroSAT", images="2750", files=("split_zhou_EuroSAT.json",)),
    _listed("ucf101", "UCF101", images="UCF-101-midframes", files=("split_zhou_UCF101.json",)),
    _variant("imagenetv2", "ImageNetV2", "imagenetv2", "imagenetv2-matched-frequency-format-val", DatasetKind.NUMBERS),
    _variant("imagenet_sketch", "ImageNet-Sketch", "imagenet-sketch", "images", DatasetKind.SYNSETS),
    _variant("imagenet_a", "ImageNet-A", "imagenet-adversarial", "imagenet-a", DatasetKind.SOME_SYNSETS),
    _variant("imagenet_r", "ImageNet-R", "imagenet-rendition", "imagenet-r", DatasetKind.SOME_SYNSETS),
)

#: All data sets by name, in the order of CoOp's and PromptKD's tables.
LAYOUTS: Mapping[str, DatasetLayout] = {layout.name: layout for layout in _ALL}
