"""Owns the validation split: labelled images that no student trains on, measured after each epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError
from ..corpora.shards import ShardSet
from ..decoding.threads import Threads
from ..decoding.work import Pool
from ..measures.labelled import LabelledImages
from ..measures.metrics import Accuracy, harmonic_mean
from ..models.class_head import Classifier
from ..models.compute import Compute
from ..models.forward import Forward, Parts
from ..models.preprocess import Preprocess
from ..models.softmax import log_softmax
from ..samples.images import IMAGES
from ..samples.kind import SampleKind
from ..students.student import Student


class Measured(NamedTuple):
    """What was measured of a student.

    Attributes:
        accuracy: the figure, from 0 to 1.
        loss: mean cross entropy to the labels, over the images that can be used.
    """

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Images whose labels are class names, and the figure to measure on them.

    Attributes:
        labelled: the images that the figure is of.
        by: one of `FIGURES`.
        base_C: bool (class,): base classes; None where `by` needs none.
    """

    labelled: LabelledImages
    by: str = "top1"
    base_C: NDArray[np.bool_] | None = None

    @staticmethod
    def open(
        images: str,
        class_names: Sequence[str],
        *,
        by: str = "top1",
        base_C: NDArray[np.bool_] | None = None,
        kind: SampleKind = IMAGES,
    ) -> Validation:
        """Find the images and match their labels; nothing is decoded yet.

        Args:
            images, class_names, kind: see `LabelledImages.open`.
            by: one of `FIGURES`.
            base_C: base classes, as the class vectors mark them.

        Raises:
            InputError: nothing there, no label is a class name, or a figure of base classes where none are marked.
        """
        labelled = LabelledImages.open(images, class_names, what="validation", option="--validation", kind=kind)
        return Validation._of(labelled, by, base_C)

    @staticmethod
    def held_out(
        shards: ShardSet,
        held_N: NDArray[np.bool_],
        class_names: Sequence[str],
        *,
        by: str = "top1",
        base_C: NDArray[np.bool_] | None = None,
        kind: SampleKind = IMAGES,
    ) -> Validation:
        """The images of some rows of a corpus.

        Args:
            shards: the corpus.
            held_N: bool (row,): which rows; those behind its end are none of them.
            class_names, by, base_C, kind: as in `open`.

        Raises:
            InputError: as in `open`.
        """
        labelled = LabelledImages.open(
            shards.location.address, class_names, what="held out", option="--hold-out", kind=kind
        )
        there = ShardSet.open(shards.location).corpus
        rows_N = np.concatenate([np.asarray(there.rows(shard)) for shard in range(there.num_shards)])
        wanted_N = np.zeros(max(len(held_N), int(rows_N.max()) + 1), np.bool_)
        wanted_N[: len(held_N)] = held_N
        labelled = labelled.keep(wanted_N[rows_N])
        if not len(labelled):
            raise InputError(
                "no label of the images that are held out is the name of a class",
                code="labels-without-class",
                where=shards.location,
                expected=f"names like {class_names[0]!r}",
                found=f"{int(held_N.sum())} images",
                hint="name the folders as the classes are named, or leave out --hold-out",
            )
        return Validation._of(labelled, by, base_C)

    @staticmethod
    def _of(labelled: LabelledImages, by: str, base_C: NDArray[np.bool_] | None) -> Validation:
        if by == "top1":
            return Validation(labelled=labelled)
        if base_C is None:
            raise InputError(
                "nothing says which classes are base classes",
                code="base-classes-unmarked",
                where=f"--validation-by {by}",
                hint="mark them: teachonce vectors … --base-classes FILE|@half",
            )
        ids_N = labelled.class_ids_N
        sides = set(base_C[ids_N[ids_N >= 0]].tolist())
        if True not in sides or (by == "harmonic-mean" and False not in sides):
            raise InputError(
                "the validation images lack classes that are to be measured",
                code="validation-classes-missing",
                where=labelled.images,
                expected="images of base classes" + (" and of novel ones" if by == "harmonic-mean" else ""),
                found=f"images of {'base' if True in sides else 'novel'} classes only",
                hint="give other images, or --validation-by top1",
            )
        if by == "base":
            labelled = labelled.keep(base_C[ids_N])
        return Validation(labelled=labelled, by=by, base_C=base_C)

    @property
    def digest(self) -> str:
        """blake2b-128 over keys, class ids and the figure, in hexadecimal."""
        if self.by == "top1":
            return self.labelled.digest
        return hashlib.blake2b(f"{self.labelled.digest} {self.by}".encode(), digest_size=16).hexdigest()

    def measure(
        self, student: Student, head: Classifier, preprocess: Preprocess, compute: Compute, pool: Pool | None = None
    ) -> Measured:
        """The figure of the student's own centre view, where an image that cannot be used counts as wrong; and the loss.

        Leaves the student in the mode in which it was.

        Args:
            pool: to decode in; None for threads of its own.

        Raises:
            InputError: not one image can be used.
            WorkerError: as in `Forward.through`.
        """
        counts, training = Accuracy(head.num_classes, self.base_C), student.training
        forward = Forward(compute, lambda images_NCHW: {"logits": head(student(images_NCHW)).float()}, option=None)
        usable, losses = 0, []

        def batches(pool: Pool) -> Iterator[tuple[NDArray[np.int64], Parts]]:
            for views in self.labelled.center_views(preprocess, pool):
                for class_id in views.unusable:
                    counts.total_C[class_id] += 1
                if len(views.labels_N):
                    yield views.labels_N, views.parts

        student.eval()
        try:
            with nullcontext(pool) if pool is not None else closing(Threads(compute.threads)) as there:
                for labels_N, outputs in forward.through(batches(there)):
                    counts.add(outputs["logits"], labels_N)
                    losses.append(_summed_loss(outputs["logits"], labels_N))
                    usable += len(labels_N)
        finally:
            student.train(training)
        if not usable:
            raise InputError(
                "not one validation image can be used",
                code="images-none-usable",
                where=self.labelled.images,
                expected="at least one usable image",
                found=f"{len(self.labelled)} unusable",
                hint="give other images, or leave out --validation",
            )
        return Measured(accuracy=self._figure(counts), loss=math.fsum(losses) / usable)

    def _figure(self, counts: Accuracy) -> float:
        if self.by == "harmonic-mean":
            return harmonic_mean(counts.base, counts.novel).mean
        return (counts.base if self.by == "base" else counts.top1).rate


def _summed_loss(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float:
    """Cross entropy, summed over the samples."""
    return -float(log_softmax(logits_NC)[np.arange(len(labels_N)), labels_N].sum())
