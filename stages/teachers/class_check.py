"""Owns the refusal of class vectors that have collapsed: all alike, or no better than guessing on labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import DamagedError, InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..measures.labelled import LabelledImages
from ..measures.metrics import Accuracy, Rate
from ..models.compute import Compute
from ..models.forward import Forward
from ..models.picture_pool import picture_pool
from . import Teacher

#: Images that accuracy is measured on at most, evenly taken from those that are there.
MOST_IMAGES = 1000

#: 1 - |mean of the unit vectors|². CLIP ViT-B/32 has 0.37 on ImageNet's classes, a model with random weights 0.06.
LEAST_SPREAD = 1e-3

#: Vectors this near to one another (1 - cosine) are the same. A few names may well mean the same; most must not.
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How good class vectors are on labelled images.

    Attributes:
        images: what the user called them.
        accuracy: top-1 over all classes.
        plain: the same of the teacher without learned prompts and with a plain template; None where it has none.
    """

    images: str
    accuracy: Rate
    plain: Rate | None

    def to_json(self) -> Json:
        facts: dict[str, Json] = {
            "images": self.images,
            "measured_on": self.accuracy.total,
            "accuracy": self.accuracy.rate,
        }
        return facts if self.plain is None else facts | {"plain_accuracy": self.plain.rate}


def check_spread(vectors: ClassVectors, where: object) -> None:
    """Refuse class vectors that hardly differ.

    Raises:
        DamagedError: not finite, or all (or most of them) alike.
    """
    if not np.isfinite(vectors.vectors_CD).all():
        raise DamagedError(
            "the class vectors hold NaN or infinity",
            code="vectors-not-finite",
            where=where,
            hint="use --precision fp32",
        )
    if not vectors.normalized or vectors.num_classes < 2:
        return  # a linear head has no cosines; one class has nothing to differ from
    spread = 1 - float(np.linalg.norm(vectors.vectors_CD.astype(np.float64).mean(axis=0)) ** 2)
    order = np.lexsort(vectors.vectors_CD.T)
    neighbours = (vectors.vectors_CD[order[1:]] * vectors.vectors_CD[order[:-1]]).sum(axis=1)
    same = int((neighbours > 1 - _SAME).sum())
    if spread >= LEAST_SPREAD and 2 * same < vectors.num_classes:
        return
    raise DamagedError(
        "the class vectors have collapsed: they hardly differ",
        code="vectors-collapsed",
        where=where,
        expected=f"a spread (1 - |mean|²) of {LEAST_SPREAD:g} or more, and few classes alike",
        found=f"{spread:.2g}, and {same} of {counted(vectors.num_classes, 'class')} the same as their neighbour",
        hint="check the teacher's weights and the class names; names beyond the context length are cut",
    )


def check_accuracy(teacher: Teacher, vectors: ClassVectors, images: str, compute: Compute, where: object) -> Checked:
    """Refuse class vectors that are no better than guessing on labelled images, or far worse than without prompts.

    Args:
        teacher: on its device.
        vectors: to be checked.
        images: labelled images, as `evaluate` takes them; `MOST_IMAGES` of them are looked at.
        compute: how.
        where: what an error names.

    Raises:
        InputError: no usable image, no label that is a class name.
        DamagedError: accuracy within three standard errors of chance, or less than half of what the same teacher
            reaches without learned prompts.
    """
    labelled = LabelledImages.open(images, vectors.names, what="check", option="--check")
    known = np.flatnonzero(labelled.class_ids_N >= 0)
    evenly = known[:: max(1, math.ceil(len(known) / MOST_IMAGES))]
    labelled = labelled.keep(np.isin(np.arange(labelled.found), evenly))
    plain = teacher.plain(vectors.names)
    found = measure_models(labelled, [(teacher, vectors), *plain], compute)
    checked = Checked(images=images, accuracy=found[0], plain=found[1] if plain else None)
    chance = 1 / vectors.num_classes
    least = chance + 3 * math.sqrt(chance * (1 - chance) / found[0].total)
    if checked.plain is not None:
        least = max(least, checked.plain.rate / 2)
    if found[0].rate <= min(least, 0.99):
        comparison = "" if checked.plain is None else f", {checked.plain.rate:.1%} without prompts"
        raise DamagedError(
            "the class vectors have collapsed: their accuracy is too low to be true",
            code="vectors-inaccurate",
            where=where,
            expected=f"more than {least:.1%} on {found[0].total} images of {images} (chance {chance:.1%}{comparison})",
            found=f"{found[0].rate:.1%}",
            hint="check the prompts, the order of the class list and the labels",
        )
    return checked


def measure_models(
    labelled: LabelledImages, models: Sequence[tuple[Teacher, ClassVectors]], compute: Compute
) -> list[Rate]:
    """The accuracy of each model. Those that see the same views share them."""
    counts = [Accuracy(vectors.num_classes) for _, vectors in models]
    with closing(picture_pool(compute, len(labelled))) as pool:
        for preprocess in dict.fromkeys(teacher.spec.preprocess for teacher, _ in models):
            places = [i for i, (teacher, _) in enumerate(models) if teacher.spec.preprocess == preprocess]

            def embed(images_NCHW: torch.Tensor, places: list[int] = places) -> dict[str, torch.Tensor]:
                return {str(i): models[i][0].embed(images_NCHW).float() for i in places}

            views = labelled.center_views(preprocess, pool)
            batches = ((each.labels_N, each.parts) for each in views if len(each.labels_N))
            for labels_N, outputs in Forward(compute, embed, option=None).through(batches):
                for i in places:
                    counts[i].add(models[i][1].logits(outputs[str(i)]), labels_N)
    if not counts[0].top1.total:
        raise InputError(
            "none of the images can be used",
            code="images-none-usable",
            where="--check",
            hint="give other images",
        )
    return [each.top1 for each in counts]
