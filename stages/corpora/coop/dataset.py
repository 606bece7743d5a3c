"""Owns one data set on this disk: what must be there, its classes, and the images of its splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..reading import look_at
from ..source import SourceFile
from .aircraft import read_aircraft
from .layouts import LAYOUTS, DatasetKind, DatasetLayout
from .listing import Listing
from .split_file import read_split_file
from .synsets import ClassFolders


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in its own folder."""

    layout: DatasetLayout
    root: UserFile

    @staticmethod
    def below(data: UserFile, name: str) -> Dataset:
        """The data set of this name below CoOp's root folder; nothing is looked for yet."""
        layout = LAYOUTS[name]
        return Dataset(layout=layout, root=data / layout.folder)

    def missing(self, *splits: str) -> UserFile | None:
        """The first folder or file that is not there, of those that its classes and these splits take."""
        # Their folders decide which classes these have.
        splits = splits or (tuple(self.layout.images) if self.layout.kind is DatasetKind.SOME_SYNSETS else ())
        folders = [self.layout.images[split] for split in splits]
        needed = (self.root, *(self.root / path for path in (*self.layout.files, *folders) if path))
        return next((location for location in needed if not location.exists()), None)

    def check(self, *splits: str) -> None:
        """Check that all that its classes and these splits take is there.

        Raises:
            InputError: it is not; names what is missing.
        """
        missing = self.missing(*splits)
        if missing is not None:
            raise InputError(
                f"a data set is not {'there' if missing == self.root else 'complete'}",
                code="dataset-incomplete",
                where=self.layout.name,
                expected=missing,
                found="nothing",
                hint=f'lay it out as the section "{self.layout.title}" of CoOp\'s DATASETS.md says',
            )

    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the label ids.

        Raises:
            InputError: as in `check` and in the readers of the kinds.
        """
        if self._has_folders:
            # The variants of ImageNet have one split; ImageNet's own classes do not depend on it.
            return self._folders("test").class_names()
        return self._listing().class_names

    def counts(self) -> dict[str, int]:
        """Images of each split, as listed, or by the names of files.

        Raises:
            InputError: as in `class_names`.
        """
        if self._has_folders:
            return {split: self._folders(split).count() for split in self.layout.images}
        return {split: len(images) for split, images in self._listing().images.items()}

    def walk(self, split: str) -> Iterator[SourceFile]:
        """The files of a split in bytewise order of their paths below `root`; `label` is the class name.

        A listed image that is not there is no error here: reading it is.

        Raises:
            InputError: as in `class_names`.
        """
        folder = self.layout.images[split]
        prefix = f"{folder}/" if folder else ""
        if self._has_folders:
            for found in self._folders(split).walk():
                yield replace(found, path=prefix + found.path)
            return
        images = self._listing().images[split]
        for place in sorted(range(len(images)), key=lambda i: images[i][0].encode()):
            path = prefix + images[place][0]
            size, problem = look_at(f"{self.root.path}/{path}")
            yield SourceFile(path=path, size=size, label=images[place][1], place=place, problem=problem)

    @property
    def _has_folders(self) -> bool:
        return self.layout.kind in (DatasetKind.SYNSETS, DatasetKind.SOME_SYNSETS, DatasetKind.NUMBERS)

    def _folders(self, split: str) -> ClassFolders:
        return ClassFolders(
            names_file=self.root / self.layout.files[0],
            images=self.root / self.layout.images[split],
            kind=self.layout.kind,
        )

    def _listing(self) -> Listing:
        if self.layout.kind is DatasetKind.AIRCRAFT:
            return read_aircraft(self.root, tuple(self.layout.images))
        return read_split_file(self.root / self.layout.files[0])
