"""Owns how the logits of teachers whose stores are read beside the first are mixed with its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.plain_text import counted
from ...storage_schemas.store_description import StoreDescription
from ..pairs.other_store import OF, OtherStore
from ..pairs.store import open_store
from .mixes import MIXES
from .mixture import LogitsOf, Mixture


def mixture_of(
    own: LogitsOf,
    vectors: ClassVectors,
    mixed: Sequence[OtherStore],
    mix: str | None = None,
    weights: tuple[float, ...] = (),
) -> Mixture:
    """The logits of all teachers.

    Args:
        own: of the first teacher, whose class vectors are `vectors`.
        mixed: the stores of the others.
        mix, weights: as in `NamedSources`.

    Raises:
        InputError: weights that are not one for each teacher, or a store without logits.
        MismatchError: a teacher with other classes.
    """
    weights = weights or (1.0,) * (1 + len(mixed))
    if len(weights) != 1 + len(mixed):
        raise InputError(
            "each teacher that is mixed has a weight",
            code="mix-weights-count-wrong",
            where="--mix-weights",
            expected=counted(1 + len(mixed), "number") + ", that of STORE first",
            found=", ".join(f"{weight:g}" for weight in weights),
        )
    teachers = [own, *(_logits_of(one, vectors) for one in mixed)]
    weighted = (replace(one, weight=weight) for one, weight in zip(teachers, weights, strict=True))
    return Mixture(teachers=tuple(weighted), mix=mix or MIXES[0])


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
