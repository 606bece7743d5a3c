"""Owns ImageNet's layout and its variants': classnames.txt, and a folder of images for each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ....pipeline.user_files import UserFile
from ....storage_schemas.errors import InputError
from ..folder import FolderSource
from ..name_list import with_indices
from ..names import is_hidden_name, is_image_name
from ..source import SourceFile
from ..text_file import read_lines
from .layouts import DatasetKind
from .listing import class_name


@dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """The class folders of one split.

    Attributes:
        names_file: classnames.txt: one `SYNSET CLASS NAME` a line, in the order of the synsets.
        images: the folder of the class folders.
        kind: `SYNSETS`, `SOME_SYNSETS` or `NUMBERS`.
    """

    names_file: UserFile
    images: UserFile
    kind: DatasetKind

    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the synsets: all of the file's, or with `SOME_SYNSETS` those that have a folder.

        ImageNet gives the same name to two pairs of classes; they are distinguished by their index.

        Raises:
            InputError: as `class_of`.
        """
        return (
            tuple(self.class_of().values()) if self.kind is DatasetKind.SOME_SYNSETS else tuple(self._known().values())
        )

    def class_of(self) -> dict[str, str]:
        """The class name of each class folder, in the order of the classes.

        Raises:
            InputError: a file of another form; a folder that is no class of it; a class without its folder.
        """
        known = self._known()
        folders = {name for name in self.images.names() if not is_hidden_name(name) and (self.images / name).is_dir()}
        unknown_folder = min(folders - set(known), default=None)
        if unknown_folder is not None:
            raise InputError(
                f"a class folder that {self.names_file.name} lacks",
                code="class-folder-not-listed",
                where=self.images / unknown_folder,
                hint=f"add it to {self.names_file}, or take the folder away",
            )
        if self.kind is DatasetKind.SOME_SYNSETS:
            there = [folder for folder in known if folder in folders]
            names = self._names()
            return dict(zip(there, with_indices([names[folder] for folder in there]), strict=True))
        missing = next((folder for folder in known if folder not in folders), None)
        if missing is not None:
            raise InputError(
                f"a class of {self.names_file.name} has no folder",
                code="class-folder-missing",
                where=self.images / missing,
                hint="sort the images into class folders as CoOp's DATASETS.md says",
            )
        return known

    def walk(self) -> Iterator[SourceFile]:
        """All files below `images`, in bytewise order.

        CoOp reads the class folders in this order too, but the files of each as the file system lists them: so
        they have no place.
        """
        class_of = self.class_of()
        for found in FolderSource(name="", root=self.images).walk():
            folder, _, rest = found.path.partition("/")
            if found.is_image and is_image_name(found.path) and (not rest or "/" in rest):
                raise InputError(
                    "an image lies in no class folder",
                    code="image-outside-class-folders",
                    where=self.images / found.path,
                    hint="sort the images into class folders as CoOp's DATASETS.md says",
                )
            yield replace(found, label=class_of.get(folder), no_label="")

    def count(self) -> int:
        """Number of images, by their names alone."""
        return sum(
            not is_hidden_name(name) and is_image_name(name)
            for folder in self.class_of()
            for name in (self.images / folder).names()
        )

    def _known(self) -> dict[str, str]:
        """The class that each folder may be, in order; with `SOME_SYNSETS` a name may stand twice."""
        names = self._names()
        if self.kind is DatasetKind.SOME_SYNSETS:
            return names
        apart = with_indices(list(names.values()))
        folders = map(str, range(len(names))) if self.kind is DatasetKind.NUMBERS else names
        return dict(zip(folders, apart, strict=True))

    def _names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        before = ""
        for number, line in read_lines(self.names_file):
            where = f"{self.names_file}, line {number}"
            synset, _, name = line.partition(" ")
            if synset <= before:
                raise InputError(
                    "synsets out of order",
                    code="synsets-out-of-order",
                    where=where,
                    expected=f"one after {before}",
                    found=synset,
                    hint="get classnames.txt as CoOp's DATASETS.md says: the order of its lines is that of the labels",
                )
            names[synset] = class_name(name.strip(), where)
            before = synset
        if not names:
            raise InputError("an empty class list", code="class-list-empty", where=self.names_file)
        return names
