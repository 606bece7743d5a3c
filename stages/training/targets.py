"""Owns the choice of targets: what a training reads of a store, and the class vectors that give it logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, origin_model
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import typed
from ...storage_schemas.store_description import StoreDescription, TargetSpec
from ..corpora.shards import ShardSet
from ..models.preprocess import Preprocess
from ..pairs.caption_source import Captions
from ..pairs.join import as_made
from ..pairs.label_source import CLUSTER
from ..pairs.manifest_labels import DOMAIN, LABEL, ManifestLabels
from ..pairs.sources import TargetSource, identities
from ..pairs.store import open_store, read_description, read_vectors, vectors_if_any
from ..recipes.recipe import Recipe
from .mixture import LogitsOf, Mixture, TargetLogits
from .named_sources import ABOUT_CLASSES, NamedSources
from .stores_beside import mixture_of


@dataclass(frozen=True, kw_only=True)
class TrainingTargets:
    """What of a store, and of others beside it, one training uses.

    Attributes:
        vectors: class vectors; None where the recipe's targets are not about classes, or where there are none.
        names: targets to read. For `logits` that is `logits` where they were formed with these vectors, else `embedding`,
            from which they are formed anew; and the same of each store whose teacher is mixed in.
        specs: the requested targets that are stored, by name.
        sources: of the targets that the store does not hold.
        mixture: what the teacher's logits are made of; None where the recipe needs none.
        requested: names of all targets that the recipe needs.
        teacher: the teacher, for people.
        preprocess: how it prepared the images that the targets are of; None in stores of teachers that do not say.
    """

    vectors: ClassVectors | None
    names: tuple[str, ...]
    specs: Mapping[str, TargetSpec]
    requested: tuple[str, ...]
    teacher: Json
    sources: tuple[TargetSource, ...] = ()
    preprocess: Preprocess | None = None
    mixture: Mixture | None = None

    def teacher_logits(self, temperature: float) -> TargetLogits | None:
        """What makes the teacher's logits of a batch; None where they are stored, or not needed.

        Args:
            temperature: of the loss.
        """
        if self.mixture is None or self.mixture.is_stored:
            return None
        return TargetLogits(self.mixture, temperature)

    @property
    def identity(self) -> dict[str, Json]:
        """What fingerprints hold of it, beside the store and the class vectors."""
        mixture = {} if self.mixture is None else self.mixture.to_json()
        return {"targets": list(self.names), **identities(self.sources), **mixture}

    @property
    def text_scale(self) -> float | None:
        """The teacher's factor from cosines of image and text to logits; None where no captions are read."""
        return next((source.logit_scale for source in self.sources if isinstance(source, Captions)), None)

    @property
    def class_ids(self) -> tuple[tuple[str, int], ...]:
        """Labels that are classes, with their ids, where the recipe looks at labels."""
        return next((source.class_ids for source in self.sources if isinstance(source, ManifestLabels)), ())


def choose_targets(
    shards: ShardSet,
    store: Location,
    named: NamedSources,
    recipe: Recipe,
    settings: Any,
    generation: str | None = None,
) -> TrainingTargets:
    """Find the targets that the recipe needs, and the class vectors that go with them.

    Args:
        shards: the corpus, in any state.
        store: the store with the targets.
        named: what is read beside it.
        recipe, settings: the method.
        generation: of the store; None for the current one.

    Raises:
        InputError: no store there, or one without what the recipe needs; or a corpus without labels or domains that it needs.
        IncompleteError: no targets, or no class vectors where logits are requested, yet.
        MismatchError: class vectors of another teacher or width; logits of other class vectors and no embeddings.
    """
    root = open_store(store, generation)
    about = read_description(root, store)
    stored = {target.name: target for target in about.spec.targets}
    beside = named.open_stores(shards, store, about)
    stored |= {spec.name: spec for one in beside for spec in one.specs}
    requested = recipe.targets(settings, tuple(stored.values()))
    about_classes = bool(ABOUT_CLASSES & set(requested))
    class_vectors: ClassVectors | None = None
    source = store if named.vectors is None else Location.of(named.vectors)
    if about_classes:
        other = root if named.vectors is None else open_store(source)
        needed = named.vectors is not None or bool({"logits", LABEL, CLUSTER} & set(requested))
        class_vectors = read_vectors(other, source) if needed else vectors_if_any(other, source)
        if class_vectors is not None:
            _check_teacher(about, other, source)
    mixture = None
    if "logits" in requested:
        assert class_vectors is not None
        mixed = [one for one in beside if not set(one.layouts) & set(requested)]
        own = LogitsOf(target="logits")
        if "logits" not in stored or about.decided_by.class_vectors != class_vectors.digest:
            _check_forming(about, stored, class_vectors, source)
            own = LogitsOf(target="embedding", vectors=class_vectors)
        mixture = mixture_of(own, class_vectors, mixed, named.mix, named.weights)
    elif class_vectors is not None:
        _check_width(stored, class_vectors, source)
    from_logits = [] if mixture is None else [one.target for one in mixture.teachers]
    names = tuple(dict.fromkeys(n for name in requested for n in (from_logits if name == "logits" else [name])))
    named.check_used(recipe.name, requested, names, beside, mixture)
    sources = [*beside, *named.open(about, class_vectors)]
    if {LABEL, DOMAIN} & set(requested):
        class_names = None if class_vectors is None else class_vectors.names
        manifest = ManifestLabels.of(as_made(shards, store, about), requested, class_names)
        if recipe.needs_all_labels(settings):
            manifest.require_all(recipe.name)
        sources.append(manifest)
    return TrainingTargets(
        vectors=class_vectors,
        names=names,
        specs={name: stored[name] for name in requested if name in stored},
        requested=requested,
        teacher=about.teacher,
        sources=tuple(sources),
        preprocess=_preprocess(about, store),
        mixture=mixture,
    )


def _preprocess(about: StoreDescription, store: Location) -> Preprocess | None:
    fields = about.teacher.get("preprocess")
    return None if fields is None else Preprocess.from_json(fields, store)


def _check_teacher(about: StoreDescription, other: Any, source: Location) -> None:
    cached, origin = about.decided_by.teacher, origin_model(other, source)
    if cached.weights != origin.weights_digest:
        raise MismatchError(
            "the class vectors are another teacher's than the cached targets",
            code="vectors-other-teacher",
            where=f"{source}: field 'teacher.weights'",
            expected=f"{cached.model} {cached.weights} (the cached targets)",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint=f"teachonce vectors --teacher {typed(cached.model)} … --out OTHER, then --vectors OTHER",
        )


def _check_forming(
    about: StoreDescription, stored: Mapping[str, TargetSpec], vectors: ClassVectors, source: Location
) -> None:
    """Logits can be formed from embeddings where these are stored, and as wide as the class vectors."""
    if "logits" in stored and "embedding" not in stored:
        raise MismatchError(
            "the cached logits were formed with other class vectors",
            code="logits-other-vectors",
            where=f"{source}: field 'class_vectors'",
            expected=f"{about.decided_by.class_vectors} (the cached logits)",
            found=f"{vectors.digest} (these class vectors)",
            hint="leave out --vectors, or cache embeddings (`--targets embedding`) for any class list",
        )
    _check_width(stored, vectors, source)


def _check_width(stored: Mapping[str, TargetSpec], vectors: ClassVectors, source: Location) -> None:
    if "embedding" not in stored:
        raise MismatchError(
            "the store holds neither logits nor embeddings",
            code="store-without-embeddings",
            where=source,
            expected="`logits` or `embedding`, for class vectors",
            found=", ".join(stored),
            hint="teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE",
        )
    (width,) = stored["embedding"].shape
    if width != vectors.embed_dim:
        raise MismatchError(
            "class vectors and cached embeddings differ in width",
            code="vectors-other-width",
            where=source,
            expected=f"{width} channels (the embeddings)",
            found=f"{vectors.embed_dim} (the class vectors)",
            hint="use the teacher that was cached",
        )
