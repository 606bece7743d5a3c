"""Owns `teachonce datasets`: which of the data sets lie in a folder, and what is missing of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..pipeline.tables import section, table
from ..pipeline.user_files import UserFile
from ..storage_schemas.errors import InputError
from .corpora.coop.dataset import Dataset
from .corpora.coop.layouts import LAYOUTS, SPLITS, DatasetLayout
from .corpora.coop.published import BASE_TO_NOVEL


@dataclass(frozen=True, kw_only=True)
class DatasetState:
    """What there is of one data set.

    Attributes:
        missing: the first folder or file that is not there.
        problem: why it cannot be used though all is there.
        images: images of each split; empty if it cannot be used.
        num_classes: 0 if it cannot be used.
    """

    layout: DatasetLayout
    missing: str | None = None
    problem: str | None = None
    images: dict[str, int]
    num_classes: int = 0

    @property
    def found(self) -> bool:
        return self.missing is None and self.problem is None

    @property
    def num_base(self) -> int:
        """The first ⌈C/2⌉ classes are base classes."""
        return -(-self.num_classes // 2)


def overview(data: str) -> list[DatasetState]:
    """The state of every data set below CoOp's root folder.

    Raises:
        InputError: no such folder.
    """
    root = UserFile.of(data)
    if not root.is_dir():
        raise InputError(
            "no such folder",
            code="folder-missing",
            where=root,
            hint="name the folder that holds the data sets' folders",
        )
    return [_state(Dataset.below(root, name)) for name in LAYOUTS]


def _state(dataset: Dataset) -> DatasetState:
    missing = dataset.missing(*dataset.layout.images)
    if missing is not None:
        return DatasetState(layout=dataset.layout, missing=str(missing), images={})
    try:
        return DatasetState(layout=dataset.layout, images=dataset.counts(), num_classes=len(dataset.class_names()))
    except InputError as error:
        return DatasetState(layout=dataset.layout, problem=str(error), images={})


def overview_text(states: list[DatasetState]) -> str:
    """Up to three tables: what was found, what cannot be used and why, what is not there."""
    found = [
        [
            s.layout.name,
            *(str(s.images.get(split, "-")) for split in SPLITS),
            str(s.num_classes),
            str(s.num_base),
            str(s.num_classes - s.num_base),
        ]
        for s in states
        if s.found
    ]
    problems = [[s.layout.name, s.problem] for s in states if s.problem is not None]
    missing = [[s.layout.name, s.missing] for s in states if s.missing is not None]
    parts = []
    if found:
        head = ("data set", *SPLITS, "classes", "base", "novel")
        parts.append(section("Found (images, classes)", table(found, head=head, align="lrrrrrr")))
    if problems:
        parts.append(section("Cannot be used", table(problems)))
    if missing:
        parts.append(section("Not there (what is missing first)", table(missing)))
    return "\n\n".join(parts)


def overview_json(states: list[DatasetState]) -> list[dict[str, Any]]:
    """The same and what PromptKD publishes, one object a data set."""
    return [
        {
            "name": s.layout.name,
            "folder": s.layout.folder,
            "found": s.found,
            "missing": s.missing,
            "problem": s.problem,
            "images": s.images,
            "classes": s.num_classes,
            "base_classes": s.num_base,
            "novel_classes": s.num_classes - s.num_base,
            "promptkd_loss_weight": s.layout.loss_weight,
            "promptkd_harmonic_mean": BASE_TO_NOVEL[s.layout.name][2] if s.layout.name in BASE_TO_NOVEL else None,
        }
        for s in states
    ]
