"""Owns few-shot sampling: the images that CoOp, and PromptSRC and PromptKD after it, draw for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ..corpora.image_set import Picture


def sample_shots(
    pictures: Sequence[tuple[Picture, int]], *, shots: int, seed: int, only: NDArray[np.bool_] | None
) -> list[tuple[Picture, int]]:
    """So many images of each class, drawn at random.

    It is CoOp's own draw for this seed: CoOp seeds `random` with it and samples the training images before anything
    else, class by class in the order in which its split file first names them, base and novel classes alike; it
    takes the base classes out of what was drawn. That holds for pictures that know their place in a split file.
    Others come in the order of their paths: so do those of shards, which keep no place, and ImageNet's, which CoOp
    takes as the file system lists them.

    Args:
        pictures: images and their class ids, in any order.
        shots: images a class.
        seed: of the draw.
        only: bool (class,): classes to keep; None keeps all. Those left out are drawn too, so that the others' images do
            not depend on it.

    Returns:
        Images and class ids, class by class, in the order of the draw.

    Raises:
        InputError: a kept class has fewer images than `shots`.
    """
    by_place = all(picture.place >= 0 for picture, _ in pictures)
    groups: dict[int, list[tuple[Picture, int]]] = {}
    for item in sorted(pictures, key=lambda p: p[0].place if by_place else p[0].path.encode()):
        groups.setdefault(item[1], []).append(item)
    kept = set(groups) if only is None else set(np.flatnonzero(only).tolist())
    for class_id in sorted(kept):
        items = groups.get(class_id, [])
        if len(items) < shots:
            label = items[0][0].label if items else None
            raise InputError(
                "a class has too few images", where=f"class {class_id}" if label is None else label,
                expected=f"{shots} or more", found=len(items), hint=f"--shots {len(items)}" if items else None,
            )  # fmt: skip
    generator = random.Random(seed)
    drawn: list[tuple[Picture, int]] = []
    for class_id, items in groups.items():
        # A class that is too small takes nothing from the generator there either: CoOp keeps it whole.
        if len(items) >= shots:
            sample = generator.sample(items, shots)
            drawn += sample if class_id in kept else []
    return drawn
