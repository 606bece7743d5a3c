"""Owns labels and domains of a corpus as targets: the manifest has them, so no store needs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ...storage_schemas.plain_text import counted
from ..corpora.shards import ShardSet
from ..inputs.class_match import ClassMatcher
from .local_copies import LocalCache
from .sources import ShardRows

#: Targets that the manifest gives, int64 (sample,): the class id of the sample's label, and the number of its domain.
LABEL, DOMAIN = "label", "domain"

#: What a sample has that has no label, or one that is no class; or no domain.
NONE = -1


@dataclass(frozen=True, kw_only=True)
class ManifestLabels:
    """`label` and `domain` of every sample.

    Attributes:
        class_ids: labels that are the name of a class, each with its id in the order of the class vectors.
        domains: names of the domains in bytewise order; a domain's number is its place among them.
        unlabelled: samples without such a label; `example` is the path of the first of them, `found` its label.
        num_samples: in the corpus.
    """

    class_ids: tuple[tuple[str, int], ...] = ()
    domains: tuple[str, ...] = ()
    unlabelled: int = 0
    example: str = ""
    found: str = ""
    num_samples: int = 0

    layouts = {LABEL: ("i8", ()), DOMAIN: ("i8", ())}  # noqa: RUF012
    identity = None

    @staticmethod
    def of(shards: ShardSet, names: Iterable[str], class_names: Sequence[str] | None) -> ManifestLabels:
        """Look through the manifest for what `names` need.

        Args:
            shards: the corpus.
            names: of the wanted targets.
            class_names: in the order of the class vectors; labels match them as `ClassMatcher` says.

        Raises:
            InputError: a corpus without labels, none of which is the name of a class; or without domains.
        """
        wanted = set(names)
        ids, unlabelled, example, found = _class_ids(shards, class_names or ()) if LABEL in wanted else ({}, 0, "", "")
        return ManifestLabels(
            class_ids=tuple(sorted(ids.items())),
            domains=_domains(shards) if DOMAIN in wanted else (),
            unlabelled=unlabelled,
            example=example,
            found=found,
            num_samples=shards.corpus.num_samples,
        )

    def require_all(self, recipe: str) -> None:
        """Refuse a corpus in which samples have no label that is a class.

        Raises:
            InputError: there are some; names the first.
        """
        if self.unlabelled:
            raise InputError(
                f"recipe {recipe} needs a label of every image, and {counted(self.unlabelled, 'image')} of "
                f"{self.num_samples} have none that is the name of a class",
                code="labels-incomplete",
                where=self.example,
                expected="the name of a class",
                found=self.found or "no label",
                hint="shard only folders whose names are classes, or compute class vectors of these classes too",
            )

    @property
    def note(self) -> str:
        """How many samples have a label that is a class, or which domains there are."""
        labelled = self.num_samples - self.unlabelled
        notes = (
            [f"{labelled} of {counted(self.num_samples, 'image')} have a label that is a class"]
            if self.class_ids
            else []
        )
        return "; ".join(notes + ([f"domains {', '.join(self.domains)}"] if self.domains else []))

    def open(self, rows: ShardRows, names: Sequence[str]) -> Mapping[str, NDArray[np.int64]]:
        """Those of the shard's rows."""
        manifest, found = rows.shards.manifest(), {}
        if LABEL in names:
            found[LABEL] = _numbers(self._ids.get(label, NONE) for label in manifest.labels_of(rows.shard))
        if DOMAIN in names:
            places = {domain: place for place, domain in enumerate(self.domains)}
            found[DOMAIN] = _numbers(places.get(domain_of(path), NONE) for path in manifest.paths_of(rows.shard))
        return found

    def kept_in(self, cache: LocalCache, names: tuple[str, ...]) -> tuple[ManifestLabels, None]:
        return self, None

    @cached_property
    def _ids(self) -> Mapping[Any, int]:
        return dict(self.class_ids)


def domain_of(path: str) -> str:
    """The domain of an image at DOMAIN/CLASS/IMAGE, or behind further folders; '' where there is no such folder."""
    parts = path.split("/")
    return parts[-3] if len(parts) > 2 else ""


def _numbers(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, np.int64)


def _class_ids(shards: ShardSet, class_names: Sequence[str]) -> tuple[dict[str, int], int, str, str]:
    """Class ids by label; how many samples have none, the path of the first of them and its label."""
    matcher, manifest = ClassMatcher(class_names), shards.manifest()
    ids: dict[str, int] = {}
    strange: set[str | None] = {None}
    unlabelled, example, found = 0, "", ""
    for shard in range(manifest.num_shards):
        labels = manifest.labels_of(shard)
        for label in set(labels) - set(ids) - strange:
            class_id = matcher.match(str(label)).class_id
            if class_id is None:
                strange.add(label)
            else:
                ids[str(label)] = class_id
        without = [position for position, label in enumerate(labels) if label not in ids]
        if without and not unlabelled:
            example, found = manifest.paths_of(shard)[without[0]], labels[without[0]] or ""
        unlabelled += len(without)
    if not ids:
        some = sorted(str(label) for label in strange - {None})[:3]
        raise InputError(
            "no label of this corpus is the name of a class" if some else "this corpus has no labels",
            code="corpus-without-labels",
            where=shards.location,
            expected=f"names like {class_names[0]!r}",
            found=", ".join(map(repr, some)) or "images alone",
            hint="shard folders that are named as the classes are, or choose a recipe that needs no labels",
        )
    return ids, unlabelled, example, found


def sorted_domains(shards: ShardSet, met: Iterable[str]) -> tuple[str, ...]:
    """The domains of a corpus in bytewise order, of what `domain_of` gave for its paths.

    Raises:
        InputError: fewer than two.
    """
    domains = set(met) - {""}
    if len(domains) < 2:
        raise InputError(
            "this corpus has no domains" if not domains else "this corpus has one domain",
            code="corpus-without-domains",
            where=shards.location,
            expected="images at DOMAIN/CLASS/IMAGE, of 2 domains or more",
            found=", ".join(domains) or next(iter(shards.manifest().paths_of(0)), "no image"),
            hint="shard the folder that the domains' folders lie in",
        )
    return tuple(sorted(domains, key=str.encode))


def _domains(shards: ShardSet) -> tuple[str, ...]:
    manifest = shards.manifest()
    return sorted_domains(
        shards, {domain_of(path) for shard in range(manifest.num_shards) for path in manifest.paths_of(shard)}
    )
