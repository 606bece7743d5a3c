"""Owns the check of a store's class vectors by the teacher itself: it computes them again, and what differs is explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors, read_origin
from ...storage_schemas.errors import InputError, MismatchError, TeachonceError
from ..inputs.classes import DEFAULT_TEMPLATES, read_templates
from ..teachers.base import Teacher
from ..teachers.class_check import check_spread
from .differences import apart

#: 1 - cosine between vectors of one teacher and one text, whatever computes them: 1e-6 between processors and GPUs in fp32, 1e-3 in bf16.
_SAME = 5e-3

#: Lists of templates that have a name.
_TEMPLATES = ("openai-imagenet", "simple-imagenet")


def vectors_errors(teacher: Teacher, vectors: ClassVectors, root: Any, store: Location) -> Iterator[TeachonceError]:
    """What is wrong with class vectors, seen by the teacher that they are of.

    Raises:
        InputError: the teacher cannot compute any, as without a tokenizer.
    """
    try:
        check_spread(vectors, where=store)
    except TeachonceError as error:
        yield error
        return
    templates = _templates(root, store)
    own = teacher.class_vectors(vectors.names, templates)
    if own.vectors_CD.shape != vectors.vectors_CD.shape:
        yield _error(
            store,
            f"{own.num_classes} vectors of {own.embed_dim} channels",
            f"{vectors.num_classes} of {vectors.embed_dim}",
        )
        return
    if abs(own.logit_scale / vectors.logit_scale - 1) > 1e-3:
        yield MismatchError(
            "the class vectors have another logit scale than the teacher",
            code="logit-scale-other",
            where=store,
            expected=f"{own.logit_scale:.6g} (the teacher)",
            found=f"{vectors.logit_scale:.6g}",
            hint="run `teachonce vectors` into a new store, then `teachonce cache`",
        )
    if _is_same(vectors.vectors_CD, own.vectors_CD):
        return
    yield _explained(teacher, vectors, own, templates, store)


def _explained(
    teacher: Teacher, vectors: ClassVectors, own: ClassVectors, templates: Sequence[str], store: Location
) -> TeachonceError:
    stored, again = vectors.vectors_CD, "run `teachonce vectors` into a new store, then `teachonce cache`"
    for _, plain in teacher.plain(vectors.names):
        if _is_same(stored, plain.vectors_CD):
            return MismatchError(
                "the prompts were not loaded before the class vectors were computed",
                code="prompts-not-loaded",
                where=store,
                expected="text features of the learned prompts",
                found=f"those of {DEFAULT_TEMPLATES[0]!r}, without any",
                hint=again,
            )
    order_C = (_unit(stored) @ _unit(own.vectors_CD).T).argmax(axis=1)
    if len(set(order_C.tolist())) == len(order_C) and _is_same(stored, own.vectors_CD[order_C]):
        first = int(np.flatnonzero(order_C != np.arange(len(order_C)))[0])
        return MismatchError(
            "the class vectors are of the classes in another order",
            code="classes-in-another-order",
            where=f"{store}: class {first}, {vectors.names[first]}",
            expected=f"the vector of {vectors.names[first]}",
            found=f"that of {vectors.names[int(order_C[first])]}",
            hint=again,
        )
    for name in (None, *_TEMPLATES):
        if tuple(read_templates(name)) != tuple(templates) and _is_same(
            stored, teacher.class_vectors(vectors.names, read_templates(name)).vectors_CD
        ):
            return MismatchError(
                "the class vectors were computed with other templates than they say",
                code="vectors-other-templates",
                where=store,
                expected=", ".join(templates[:2]),
                found=name or DEFAULT_TEMPLATES[0],
                hint=again,
            )
    few = np.flatnonzero(apart("", stored, own.vectors_CD).cosine_M > _SAME)
    if 2 * len(few) < len(stored):
        return MismatchError(
            "some class vectors are of other classes than they say",
            code="classes-other",
            where=f"{store}: class {int(few[0])}, {vectors.names[int(few[0])]}",
            expected="its text features",
            found=f"others, in {len(few)} of {len(stored)} classes",
            hint=again,
        )
    far = float(np.median(apart("", stored, own.vectors_CD).cosine_M))
    return _error(store, f"1 - cosine of {_SAME:g} at most (median)", f"{far:.2g}")


def _error(store: Location, expected: str, found: str) -> MismatchError:
    return MismatchError(
        "the class vectors are not those of this teacher",
        code="vectors-not-of-teacher",
        where=store,
        expected=expected,
        found=found,
        hint="run `teachonce vectors` into a new store, then `teachonce cache`",
    )


def _templates(root: Any, store: Location) -> tuple[str, ...]:
    """Those that the vectors record; the usual one where they record none."""
    origin = read_origin(root, store)
    found = origin.get("templates") if isinstance(origin, dict) else None
    return tuple(found) if found else tuple(DEFAULT_TEMPLATES)


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    found = apart("", one, other)
    return bool((found.cosine_M <= _SAME).all()) and abs(float(np.median(found.scale_M)) - 1) < 0.01


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-30)
    return found


def cannot_check(error: InputError) -> str:
    """A line for people: the vectors were not compared."""
    return f"the class vectors were not computed again: {error}"
