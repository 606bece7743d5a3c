"""Owns the same teacher with another normalisation of its images: for whoever asks what a store was made with."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..models.preprocess import Preprocess
from .base import Teacher


@runtime_checkable
class CanBePrepared(Protocol):
    """A teacher whose images can be normalised in another way. The size stays: it is the model's."""

    def prepared(self, preprocess: Preprocess) -> Teacher:
        """The same model, sharing its weights, with the mean and deviation of `preprocess`; it is where the model is."""


def prepared(teacher: Teacher, preprocess: Preprocess) -> Teacher | None:
    """The teacher with another preprocessing of the same size; None where its family cannot."""
    if teacher.spec.preprocess == preprocess:
        return teacher
    return teacher.prepared(preprocess) if isinstance(teacher, CanBePrepared) else None
