"""Owns the stores that are read beside the first in a training, and how their teachers' logits are mixed with its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.store_description import StoreDescription
from ..corpora.shards import ShardSet
from ..pairs.other_store import OF, OtherStore
from ..pairs.store import open_store
from .mixes import MIXES
from .mixture import LogitsOf, Mixture


@dataclass(frozen=True, kw_only=True)
class StoresBeside:
    """What a user says of them.

    Attributes:
        stores: NAME=STORE of each.
        mix: how logits are mixed: one of `MIXES`; None for the first.
        weights: of the first teacher and of these; none for equal ones.
        views: how many of the first store's views are read; None for all.
    """

    stores: tuple[str, ...] = ()
    mix: str | None = None
    weights: tuple[float, ...] = ()
    views: int | None = None

    def open(self, shards: ShardSet, first: Location, about: StoreDescription) -> list[OtherStore]:
        """The stores, in their order.

        Args:
            first: the store that is trained from.
            about: what it holds.

        Raises:
            InputError: two of one name, or a store that is none or has other views.
            IncompleteError, MismatchError: as in `OtherStore.named`.
        """
        if not self.stores:
            self._refuse_mix()
            return []
        views = self.views or about.spec.num_views
        found = [OtherStore.named(given, shards, first, about, views) for given in self.stores]
        names = [one.name for one in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError("two stores have the same name", code="given-twice", where="--also", found=twice)
        return found

    def check_used(
        self, beside: Sequence[OtherStore], names: Collection[str], mixture: Mixture | None, recipe: str
    ) -> None:
        """Refuse stores that nothing is read of, and a way to mix where nothing is mixed.

        Args:
            beside: the stores.
            names: of all targets that are read.
            mixture: the logits of all teachers; None where none are needed.
            recipe: the method, for errors.

        Raises:
            InputError: there is one.
        """
        for given, one in zip(self.stores, beside, strict=True):
            if not one.layouts.keys() & set(names):
                raise InputError(
                    f"recipe {recipe} uses nothing of another store",
                    code="other-store-useless",
                    where=f"--also {given}",
                    expected="one of " + ", ".join(one.layouts),
                    found=", ".join(names),
                    hint="leave it out; recipe features learns from it by --feature-targets NAME:TARGET",
                )
        if mixture is None or len(mixture.teachers) == 1:
            self._refuse_mix()

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

    def mixture(self, own: LogitsOf, vectors: ClassVectors, mixed: Sequence[OtherStore]) -> Mixture:
        """The logits of all teachers.

        Args:
            own: of the first teacher, whose class vectors are `vectors`.
            mixed: the stores of the others.

        Raises:
            InputError: weights that are not one for each teacher, or a store without logits.
            MismatchError: a teacher with other classes.
        """
        weights = self.weights or (1.0,) * (1 + len(mixed))
        if len(weights) != 1 + len(mixed):
            raise InputError(
                "each teacher that is mixed has a weight",
                code="mix-weights-count-wrong",
                where="--mix-weights",
                expected=counted(1 + len(mixed), "number") + ", that of STORE first",
                found=", ".join(f"{weight:g}" for weight in weights),
            )
        teachers = [own, *(_logits_of(one, vectors) for one in mixed)]
        weighted = (
            LogitsOf(target=one.target, vectors=one.vectors, weight=weight)
            for one, weight in zip(teachers, weights, strict=True)
        )
        return Mixture(teachers=tuple(weighted), mix=self.mix or MIXES[0])


def _logits_of(one: OtherStore, vectors: ClassVectors) -> LogitsOf:
    """Another teacher's logits: stored, or formed from embeddings; of the same classes in the same order."""
    if one.vectors is None:
        raise InputError(
            "another store has no class vectors, so its teacher has no logits to mix",
            code="other-store-without-vectors",
            where=one.facts.store,
            hint=f"teachonce vectors --teacher … --classes … --out {one.facts.store}",
        )
    if one.vectors.names != vectors.names:
        pairs = enumerate(zip(vectors.names, one.vectors.names, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(vectors.num_classes, one.vectors.num_classes))
        raise MismatchError(
            "teachers whose logits are mixed must have the same classes in the same order",
            code="stores-other-classes",
            where=f"{one.facts.store}, class {place}",
            expected=_class(vectors, place),
            found=_class(one.vectors, place),
            hint="compute the class vectors of both from one list: teachonce vectors --classes LIST",
        )
    targets = {spec.name for spec in one.facts.spec.targets}
    about = StoreDescription.read(open_store(one.facts.store, one.facts.generation), one.facts.store)
    if "logits" in targets and about.decided_by.class_vectors == one.vectors.digest:
        return LogitsOf(target=f"{one.name}{OF}logits")
    if "embedding" not in targets:
        raise MismatchError(
            "another store holds neither logits nor embeddings",
            code="store-without-embeddings",
            where=one.facts.store,
            expected="`logits` or `embedding`",
            found=", ".join(sorted(targets)),
            hint="teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE",
        )
    return LogitsOf(target=f"{one.name}{OF}embedding", vectors=one.vectors)


def _class(vectors: ClassVectors, place: int) -> str:
    return repr(vectors.names[place]) if place < vectors.num_classes else f"none: {place} in all"
