"""Owns the class vectors of a recoded store: whose they are, whether they fit, and how they get there."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, origin_model, read_origin, write_class_vectors
from ...storage_schemas.errors import DamagedError, InputError, MismatchError
from ...storage_schemas.plain_text import typed
from ...storage_schemas.target_store import open_root
from ..pairs.receipts import CACHE
from ..pairs.store import open_store, read_vectors, vectors_if_any

#: The stage that makes class vectors, and its only unit.
_STAGE, _UNIT = "vectors", "class_vectors"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassList:
    """Class vectors, and the store that they lie in.

    Attributes:
        generation: of that store; None for the current one.
    """

    store: Location
    generation: str | None = None
    vectors: ClassVectors


def own_class_list(store: Location, generation: str) -> ClassList | None:
    """The class vectors of the store that is recoded; None where it has none."""
    vectors = vectors_if_any(open_store(store, generation), store)
    return None if vectors is None else ClassList(store=store, generation=generation, vectors=vectors)


def other_class_list(other: Location, *, store: Location, weights: str) -> ClassList:
    """The class vectors of another store, for the embeddings of `store`.

    Args:
        other: where `teachonce vectors` wrote them.
        store: whose embeddings they are for.
        weights: digest of the weights of the teacher that gave these.

    Raises:
        InputError, IncompleteError, DamagedError: no class vectors there.
        MismatchError: they are another teacher's.
    """
    root = open_store(other)
    vectors = read_vectors(root, other)
    origin = origin_model(root, other)
    if origin.weights_digest != weights:
        raise MismatchError(
            "these class vectors are another teacher's",
            code="vectors-other-teacher",
            where=f"{other}: field 'teacher.weights'",
            expected=f"{weights} (the embeddings of {store})",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint="run `teachonce vectors` with the teacher of the store, into a store of its own",
        )
    return ClassList(store=other, vectors=vectors)


def check_width(classes: ClassList, width: int, store: Location) -> None:
    """Refuse class vectors of another width than the embeddings of `store`.

    Raises:
        MismatchError: they are.
    """
    if classes.vectors.embed_dim != width:
        raise MismatchError(
            "class vectors and embeddings have other widths",
            code="vectors-other-width",
            where=classes.store,
            expected=f"{width} channels (the embeddings of {store})",
            found=f"{classes.vectors.embed_dim} channels",
            hint="give class vectors of the store's teacher",
        )


def refuse_other_classes(out: Location, classes: ClassList | None) -> None:
    """Refuse an output that has class vectors already which are not these.

    Raises:
        InputError: it has.
        DamagedError: it has some that changed.
    """
    if not (out / "class_vectors" / "zarr.json").exists():
        return
    try:
        there = vectors_if_any(open_store(out), out)
    except DamagedError:
        if Ledger(out, _STAGE).receipt(_UNIT) is None and Ledger(out, CACHE).plan() is None:
            return  # a copy that was killed in its middle, which is made anew
        raise
    if there is not None and (classes is None or there.digest != classes.vectors.digest):
        raise InputError(
            "the output has class vectors of its own",
            code="output-has-vectors",
            where=out,
            expected="none" if classes is None else f"{classes.vectors.digest} (as in {classes.store})",
            found=there.digest,
            hint=f"give another --out; for logits of these classes: --classes-from {typed(out)} --out ANOTHER_STORE",
        )


def copy_classes(classes: ClassList, out: Location) -> None:
    """Put the class vectors into another store: file by file, with the receipt that vouches for them where there is one.

    The same bytes, whatever version of Zarr copies them.
    """
    root, ledger = open_root(out.zarr_store(), mode="a", where=out), Ledger(classes.store, _STAGE)
    receipt = ledger.receipt(_UNIT)
    if receipt is None or receipt.digest != classes.vectors.digest:  # or they are of a generation that has more classes
        origin = read_origin(open_store(classes.store, classes.generation), classes.store)
        write_class_vectors(root, classes.vectors, origin)
        return
    if Ledger(out, _STAGE).receipt(_UNIT) == receipt:
        return  # it is written last
    for output in receipt.outputs:
        (out / output.path).write_bytes((classes.store / output.path).read_bytes())
    copied, folder = Ledger(out, _STAGE).folder, ledger.folder
    for name in ("plan.json", f"receipts/{_UNIT}.json"):
        (copied / name).write_bytes((folder / name).read_bytes())
