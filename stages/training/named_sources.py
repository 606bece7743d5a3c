"""Owns what a user names beside the store that is trained from: class vectors, other stores, labels, captions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import StoreDescription
from ..corpora.shards import ShardSet
from ..corpora.spelling import split_generation
from ..pairs.caption_source import CAPTION, Captions
from ..pairs.label_source import CLUSTER, ClusterLabels
from ..pairs.manifest_labels import LABEL
from ..pairs.other_store import OtherStore, path_of
from ..pairs.sources import TargetSource
from .mixture import Mixture

#: Targets that class vectors belong to.
ABOUT_CLASSES = {"logits", "embedding", LABEL, CLUSTER}


@dataclass(frozen=True, kw_only=True)
class NamedSources:
    """What a user says of them.

    Attributes:
        vectors: another store whose class vectors are used; None for the store's own.
        stores: NAME=STORE of each other store.
        mix: how their teachers' logits are mixed with the store's own: one of `MIXES`; None for the first.
        weights: of the first teacher and of these; none for equal ones.
        views: how many of the first store's views are read; None for all.
        labels: names of clusters, as in `ClusterLabels.of`; None for none.
        captions: where captions are, as in `Captions.of`; None for none.
    """

    vectors: str | None = None
    stores: tuple[str, ...] = ()
    mix: str | None = None
    weights: tuple[float, ...] = ()
    views: int | None = None
    labels: str | None = None
    captions: str | None = None

    @property
    def paths(self) -> tuple[str | None, ...]:
        """Where they lie; None for what is not given."""
        labels = None if self.labels is None else split_generation(self.labels)[0]
        return (self.vectors, labels, self.captions, *map(path_of, self.stores))

    def open_stores(self, shards: ShardSet, first: Location, about: StoreDescription) -> list[OtherStore]:
        """The other stores, in their order.

        Args:
            first: the store that is trained from.
            about: what it holds.

        Raises:
            InputError: two of one name, a store that is none or has other views, or a way to mix without any.
            IncompleteError, MismatchError: as in `OtherStore.named`.
        """
        if not self.stores:
            self._refuse_mix()
        views = self.views or about.spec.num_views
        found = [OtherStore.named(given, shards, first, about, views) for given in self.stores]
        names = [one.name for one in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError("two stores have the same name", code="given-twice", where="--also", found=twice)
        return found

    def open(self, about: StoreDescription, vectors: ClassVectors | None) -> list[TargetSource]:
        """Labels and captions, joined to the store.

        Args:
            about: the store that is trained from.
            vectors: the class vectors of the training; labels need them.

        Raises:
            InputError, IncompleteError, DamagedError, MismatchError: as in `ClusterLabels.of` and `Captions.of`.
        """
        found: list[TargetSource] = []
        if self.labels is not None:
            assert vectors is not None
            found.append(ClusterLabels.of(self.labels, about, vectors))
        if self.captions is not None:
            found.append(Captions.of(self.captions, about))
        return found

    def check_used(
        self,
        recipe: str,
        requested: Collection[str],
        names: Collection[str],
        stores: Sequence[OtherStore],
        mixture: Mixture | None,
    ) -> None:
        """Refuse what the recipe reads nothing of, and the lack of what it reads.

        Args:
            recipe: the method, for errors.
            requested: the targets that it needs; `names`: those that are read for it.
            stores: the other stores.
            mixture: the logits of all teachers; None where none are needed.

        Raises:
            InputError: there is some; or a way to mix where nothing is mixed.
        """
        if self.vectors is not None:
            _check_read(
                ABOUT_CLASSES,
                requested,
                what="this recipe learns no embedding, so it cannot use class vectors",
                code="vectors-useless",
                where=f"--vectors {self.vectors}",
                expected="`embedding` among its targets",
                hint="leave out --vectors",
            )
        for given, one in zip(self.stores, stores, strict=True):
            _check_read(
                one.layouts,
                names,
                what=f"recipe {recipe} uses nothing of another store",
                code="other-store-useless",
                where=f"--also {given}",
                expected="one of " + ", ".join(one.layouts),
                hint="leave it out; recipe features learns from it by --feature-targets NAME:TARGET",
            )
        if mixture is None or len(mixture.teachers) == 1:
            self._refuse_mix()
        if self.labels is not None:
            _check_read(
                [CLUSTER],
                requested,
                what=f"recipe {recipe} learns no names of clusters",
                code="labels-useless",
                where=f"--labels {self.labels}",
                expected=f"`{CLUSTER}` among its targets",
                hint="leave out --labels, or use --recipe s3a",
            )
        elif CLUSTER in requested:
            command = "teachonce labels STORE --classes N --out LABELS"
            raise _lacking(recipe, "the names of clusters", "--labels LABELS", command)
        if self.captions is not None:
            _check_read(
                [CAPTION],
                requested,
                what=f"recipe {recipe} learns no captions",
                code="captions-useless",
                where=f"--captions {self.captions}",
                expected=f"`{CAPTION}` among its targets",
                hint="leave out --captions, or use --recipe affinity",
            )
        elif CAPTION in requested:
            command = "teachonce captions SHARDS --from TABLE --teacher … --out CAPTIONS"
            raise _lacking(recipe, "captions", "--captions CAPTIONS", command)

    def _refuse_mix(self) -> None:
        """Refuse a way to mix."""
        for option, value in (("--mix", self.mix), ("--mix-weights", self.weights)):
            if value:
                raise InputError(
                    "nothing is mixed: fewer than two teachers with logits",
                    code="option-needs-another",
                    where=option,
                    hint="add --also NAME=STORE, for a recipe that learns logits",
                )


def _check_read(offered: Collection[str], read: Collection[str], *, what: str, code: str, **about: str) -> None:
    """Refuse a source none of whose targets is read."""
    if not set(offered) & set(read):
        raise InputError(what, code=code, found=", ".join(read), **about)


def _lacking(recipe: str, learned: str, option: str, command: str) -> InputError:
    return InputError(
        f"recipe {recipe} learns {learned}",
        code="option-needs-another",
        where="--recipe",
        expected=option,
        found="nothing",
        hint=f"{command}, then add {option}",
    )
