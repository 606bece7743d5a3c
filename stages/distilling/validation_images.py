"""Owns which images a student is validated on: labelled ones that a user names, or those of the corpus that are held out."""

from __future__ import annotations

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ..pairs.training_rows import TrainingRows
from ..recipes.settings import TrainSettings
from ..samples.registry import kind_named
from ..training.validation import Validation
from .pairs import TrainingPairs


def open_validation(
    images: str | None, by: str, vectors: ClassVectors | None, pairs: TrainingPairs
) -> Validation | None:
    """The images; None where there are none.

    Args:
        images: those that a user names; None for those that are held out, if any.
        by: the figure that decides the best epoch.
        vectors: class vectors; None where there are none.
        pairs: what trains the student.

    Raises:
        InputError: no images for this figure, or no class vectors for the images; or as in `Validation.open`.
    """
    held = isinstance(pairs.rows, TrainingRows) and bool(pairs.rows.listing.rule.hold_out)
    if images is None and not held:
        if by == "top1":
            return None
        raise InputError(
            "a figure to select by needs validation images",
            code="option-needs-another",
            where=f"--validation-by {by}",
            hint="add --validation IMAGES, or --hold-out 0.2",
        )
    if vectors is None:
        raise InputError(
            "validation needs class vectors, and this student has none",
            code="validation-needs-vectors",
            where="--hold-out" if images is None else f"--validation {images}",
            hint="learn the teacher's embedding too, from a store with class vectors; or leave it out",
        )
    kind = kind_named(pairs.shards.corpus.sample_kind, where=pairs.shards.location)
    if images is not None:
        return Validation.open(images, vectors.names, by=by, base_C=vectors.base_C, kind=kind)
    assert isinstance(pairs.rows, TrainingRows)
    return Validation.held_out(
        pairs.shards, pairs.rows.held_out, vectors.names, by=by, base_C=vectors.base_C, kind=kind
    )


def refuse_missing(settings: TrainSettings, validation: Validation | None) -> None:
    """Refuse settings that need validation images where there are none.

    Raises:
        InputError: names the option.
    """
    if validation is not None:
        return
    if settings.select == "swad":
        raise InputError(
            "SWAD needs validation images",
            code="option-needs-another",
            where="--select swad",
            hint="add --hold-out 0.2 or --validation IMAGES, or choose --select best",
        )
    if settings.patience:
        raise InputError(
            "early stopping needs validation images",
            code="option-needs-another",
            where="--patience",
            hint="add --validation IMAGES, or --hold-out 0.2",
        )
