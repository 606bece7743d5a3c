"""Owns the choice of targets: a training's class vectors, and the cached arrays that give logits."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, origin_model
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import typed
from ..pairs.store import open_store, read_description, read_vectors


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What the teacher left in a store, as one training uses it.

    Attributes:
        vectors: class vectors.
        targets: names of the targets to read: `logits` where they were formed with these vectors, else
            `embedding`, from which they are formed anew; both where a loss looks at embeddings.
        teacher: the teacher in words.
    """

    vectors: ClassVectors
    targets: tuple[str, ...]
    teacher: Json


def choose_targets(store: Location, vectors: str | None, *, needs_embedding: bool) -> Taught:
    """Find the class vectors, and the targets that give the teacher's logits for them.

    Args:
        store: the store with the targets.
        vectors: another store whose class vectors are to be used, or None for its own.
        needs_embedding: whether the embedding is to be read in any case.

    Raises:
        InputError: no store there.
        IncompleteError: no targets, or no class vectors, yet.
        MismatchError: class vectors of another teacher or width; logits of other class vectors and no
            embeddings.
    """
    root = open_store(store)
    about = read_description(root, store)
    source = store if vectors is None else Location.of(vectors)
    other = root if vectors is None else open_store(source)
    class_vectors = read_vectors(other, source)
    cached, asked = about.decided_by.teacher, origin_model(other, source)
    if cached.weights != asked.weights_digest:
        raise MismatchError(
            "the class vectors are another teacher's than the cached targets",
            where=f"{source}: field 'teacher.weights'",
            expected=f"{cached.model} {cached.weights} (the cached targets)",
            found=f"{asked.model} {asked.weights_digest} (the class vectors)",
            hint=f"teachonce vectors --teacher {typed(cached.model)} … --out OTHER, then --vectors OTHER",
        )  # fmt: skip
    widths = {target.name: target.width for target in about.spec.targets}
    formed_with = about.decided_by.class_vectors
    if "logits" in widths and formed_with == class_vectors.digest:
        targets = ("logits", "embedding") if needs_embedding else ("logits",)
        return Taught(vectors=class_vectors, targets=targets, teacher=about.teacher)
    if "embedding" not in widths:
        raise MismatchError(
            "the cached logits were formed with other class vectors",
            where=f"{source}: field 'class_vectors'", expected=f"{formed_with} (the cached logits)",
            found=f"{class_vectors.digest} (these class vectors)",
            hint="leave out --vectors, or cache embeddings (`--targets embedding`) for any class list",
        )  # fmt: skip
    if widths["embedding"] != class_vectors.embed_dim:
        raise MismatchError(
            "class vectors and cached embeddings differ in width", where=source,
            expected=f"{widths['embedding']} channels (the embeddings)", found=f"{class_vectors.embed_dim} (the class vectors)",
            hint="use the teacher that was cached",
        )  # fmt: skip
    return Taught(vectors=class_vectors, targets=("embedding",), teacher=about.teacher)
