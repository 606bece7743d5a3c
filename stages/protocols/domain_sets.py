"""Owns the data sets of domain generalisation: where they lie, as DomainBed lays them out, and how long one trains on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from .domain_settings import ANY_FOLDER


@dataclass(frozen=True, kw_only=True)
class DomainSet:
    """A data set.

    Attributes:
        folders: what its folder may be called, below the folder of all data sets.
        domains: how many it has; None for any number from 2 on.
        epochs, steps_per_epoch: of each training: measurements, and steps from one to the next.
    """

    folders: tuple[str, ...]
    domains: int | None
    epochs: int = 25
    steps_per_epoch: int = 200


#: By the names that `--dataset` takes.
DOMAIN_SETS = {
    "pacs": DomainSet(folders=("PACS", "pacs"), domains=4),
    "officehome": DomainSet(folders=("office_home", "OfficeHome", "officehome"), domains=4),
    "vlcs": DomainSet(folders=("VLCS", "vlcs"), domains=4),
    "terraincognita": DomainSet(folders=("terra_incognita", "TerraIncognita", "terraincognita"), domains=4),
    "domainnet": DomainSet(
        folders=("domain_net", "DomainNet", "domainnet"), domains=6, epochs=15, steps_per_epoch=1000
    ),
    ANY_FOLDER: DomainSet(folders=(), domains=None),
}


@dataclass(frozen=True, kw_only=True)
class DomainFolder:
    """A data set's folder, with images at DOMAIN/CLASS/IMAGE.

    Attributes:
        folder: as the user spelled it, or one below that.
        domains: the names of its domains, in bytewise order.
    """

    folder: str
    domains: tuple[str, ...]

    @staticmethod
    def find(data: str, dataset: str) -> DomainFolder:
        """The folder of a data set: DATA itself, or the one below it that is called as the data set is.

        Raises:
            InputError: no such folder, another number of domains, or a domain that lacks a class of the others.
        """
        root, known = UserFile.of(data), DOMAIN_SETS[dataset]
        if not root.is_dir():
            raise InputError(
                "no such folder",
                code="folder-missing",
                where=root,
                hint="name the data set's folder, or the one that it lies in",
            )
        below = next((name for name in known.folders if (root / name).is_dir()), None)
        folder = root if below is None else root / below
        classes = {domain: set(_folders(folder / domain)) for domain in _folders(folder)}
        if len(classes) != known.domains if known.domains else len(classes) < 2:
            raise InputError(
                "not a folder of this data set's domains",
                code="domain-folder-wrong",
                where=folder,
                expected=f"{known.domains or '2 or more'} folders, one for each domain",
                found=", ".join(classes) or "none",
                hint=f"--dataset {ANY_FOLDER} takes any folder with images at DOMAIN/CLASS/IMAGE",
            )
        _refuse_lacking(folder, classes)
        return DomainFolder(folder=str(folder), domains=tuple(classes))

    def domain(self, name: str) -> str:
        """The folder of a domain."""
        return str(UserFile.of(self.folder) / name)


def _folders(folder: UserFile) -> list[str]:
    """Names of the folders in a folder; hidden ones are none."""
    return [name for name in folder.names() if not name.startswith(".") and (folder / name).is_dir()]


def _refuse_lacking(folder: UserFile, classes: dict[str, set[str]]) -> None:
    everything = set().union(*classes.values())
    for domain, own in classes.items():
        if missing := sorted(everything - own):
            raise InputError(
                "a domain has no folder of a class that other domains have",
                code="domain-lacks-class",
                where=folder / domain,
                expected=f"{len(everything)} classes",
                found=f"no {_listed(missing)}",
                hint="add images of them, or take the class out of all domains",
            )


def _listed(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first!r}" + (f" and {len(others)} more" if others else "")
