"""Owns the spelling `coop:NAME/SPLIT=DATA`, and a split of a data set as a source of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ....storage_schemas.near_names import did_you_mean
from ..source import SourceFile
from ..spelling import DATASET_PREFIX
from .dataset import Dataset
from .layouts import LAYOUTS


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """The images of one split; paths start at the data set's own folder."""

    name: str
    dataset: Dataset
    split: str

    def walk(self) -> Iterator[SourceFile]:
        return self.dataset.walk(self.split)

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.dataset.root.read_below(path)


def open_split(spelling: str, *, name: str = "") -> DatasetSource:
    """The source that `coop:NAME/SPLIT=DATA` names.

    Args:
        spelling: as above; DATA is CoOp's root folder.
        name: of the source; default: `NAME-SPLIT`.

    Raises:
        InputError: another spelling, no such data set or split, or not all of its folders and files.
    """
    dataset, split = _parse(spelling)
    if not split:
        splits = " or ".join(f"coop:{dataset.layout.name}/{split}=…" for split in dataset.layout.images)
        raise InputError(
            "a split must be named for the images of a data set",
            code="dataset-split-needed",
            where=spelling,
            hint=splits,
        )
    dataset.check(split)
    return DatasetSource(name=name or f"{dataset.layout.name}-{split}", dataset=dataset, split=split)


def dataset_classes(spelling: str) -> tuple[str, ...]:
    """The class names of `coop:NAME=DATA` (or `coop:NAME/SPLIT=DATA`) in the order of the label ids.

    Raises:
        InputError: as in `open_split`, but for the split.
    """
    dataset, split = _parse(spelling)
    dataset.check(*([split] if split else []))
    return dataset.class_names()


def _parse(spelling: str) -> tuple[Dataset, str]:
    """The data set and the split, empty where none is named."""
    what, _, data = spelling.removeprefix(DATASET_PREFIX).partition("=")
    name, slash, split = what.partition("/")
    if not data or (slash and not split):
        raise InputError(
            "not the name of a data set",
            code="dataset-name-malformed",
            where=spelling,
            expected="coop:NAME/SPLIT=DATA",
            found=f"no {'DATA' if not data else 'SPLIT'}",
            hint="as in coop:oxford_pets/train=FOLDER",
        )
    if name not in LAYOUTS:
        raise InputError(
            "no such data set",
            code="dataset-unknown",
            where=spelling,
            hint=did_you_mean(name, LAYOUTS, f"one of {', '.join(LAYOUTS)}"),
        )
    root = UserFile.of(data)
    dataset = Dataset.below(root, name)
    if split and split not in dataset.layout.images:
        hint = did_you_mean(split, dataset.layout.images, "") or None
        if (name, split) == ("imagenet", "val"):
            hint = "go on without a validation set: what CoOp takes for ImageNet's is its test set"
        raise InputError(
            f"{name} has no such split",
            code="dataset-split-unknown",
            where=spelling,
            expected=", ".join(dataset.layout.images),
            found=split,
            hint=hint,
        )
    if not root.is_dir():
        raise InputError(
            "no such folder",
            code="folder-missing",
            where=root,
            hint=f"name the folder that holds {dataset.layout.folder}/",
        )
    return dataset, split
