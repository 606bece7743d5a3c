"""Owns few-shot sampling: the images that CoOp, and PromptSRC and PromptKD after it, draw for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError


def sample_shots(
    class_ids_N: NDArray[np.int64],
    places_N: NDArray[np.int64],
    *,
    shots: int,
    seed: int,
    only_C: NDArray[np.bool_],
    names: Sequence[str],
) -> NDArray[np.int64]:
    """So many images of each class, drawn at random.

    It is CoOp's own draw for this seed: CoOp seeds `random` with it and samples the training images before anything
    else, class by class in the order in which its split file first names them, base and novel classes alike; it
    takes the base classes out of what was drawn. That holds for images with a place in a split file.
    Others come in the order of their paths: so do those of shards, which keep no place, and ImageNet's, which CoOp takes
    as the file system lists them.

    Args:
        class_ids_N: int64 (image,); -1 for images that are no class's.
        places_N: int64 (image,), places in a split file, or in the order of paths; -1 where images come in that order.
        shots: images a class.
        seed: of the draw.
        only_C: bool (class,): classes to keep. Those left out are drawn too, so that the others' images do not depend
            on it.
        names: of the classes, for errors.

    Returns:
        int64 places in `class_ids_N`, class by class, in the order of the draw.

    Raises:
        InputError: a kept class has fewer images than `shots`.
    """
    known_N = np.flatnonzero(class_ids_N >= 0)
    if (places_N[known_N] >= 0).all():
        known_N = known_N[np.argsort(places_N[known_N], kind="stable")]
    counts_C = np.bincount(class_ids_N[known_N], minlength=len(only_C))
    for class_id in np.flatnonzero(only_C & (counts_C < shots))[:1]:
        count = int(counts_C[class_id])
        more = f"--shots {count}" if count else "add images, or take it out of --base-classes"
        raise InputError(
            "a class has too few images",
            code="shots-too-few",
            where=repr(names[class_id]),
            expected=f"{shots} or more",
            found=count,
            hint=more,
        )
    generator = random.Random(seed)
    drawn: list[int] = []
    _, first = np.unique(class_ids_N[known_N], return_index=True)
    for class_id in class_ids_N[known_N[np.sort(first)]].tolist():
        images = known_N[class_ids_N[known_N] == class_id]
        # A class that is too small takes nothing from the generator there either: CoOp keeps it whole.
        if len(images) >= shots:
            sample = generator.sample(range(len(images)), shots)
            drawn += images[sample].tolist() if only_C[class_id] else []
    return np.array(drawn, np.int64)
