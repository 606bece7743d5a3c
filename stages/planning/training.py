"""Owns what training a student needs of the machine that feeds it, and from how many students on the store pays."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...pipeline.contents import kind_of
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ..measures.costs import Costs
from ..measures.training_time import training_time
from .figures import Basis, Figure
from .shard_sizes import ShardSizes
from .store_sizes import StoreSizes


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What has to arrive for a student's steps not to wait.

    Attributes:
        images_per_second: the student's rate.
        image_bytes, target_bytes: of one pair: its image in the tar, and its row's chunks of one view.
        pairs_per_core: images a second that one core decodes and draws one view of; None where that was not measured.
    """

    images_per_second: Figure
    image_bytes: Figure | None
    target_bytes: Figure
    pairs_per_core: Figure | None

    @property
    def bytes_per_second(self) -> Figure:
        parts = [part for part in (self.image_bytes, self.target_bytes) if part is not None]
        each = sum(part.value for part in parts)
        return Figure.of(self.images_per_second.value * each, self.images_per_second, *parts)

    @property
    def cores(self) -> Figure | None:
        """Cores that make pairs, whole ones."""
        if self.pairs_per_core is None:
            return None
        needed = math.ceil(self.images_per_second.value / self.pairs_per_core.value)
        return Figure.of(needed, self.images_per_second, self.pairs_per_core)


def feed(rate: Figure, shards: ShardSizes | None, store: StoreSizes, pairs: Figure | None) -> Feed:
    return Feed(
        images_per_second=rate,
        image_bytes=None if shards is None else shards.image_bytes,
        target_bytes=Figure.of(
            sum(array.read_bytes for array in store.arrays), *(array.bytes for array in store.arrays)
        ),
        pairs_per_core=pairs,
    )


def student_rate(stated: float | None, run: str | None) -> Figure | None:
    """Images a second of a student's steps; None where nothing tells.

    Raises:
        InputError: both are given; or the folder has no log of a training.
    """
    if stated is not None and run is not None:
        raise InputError(
            "--student-rate and --student-run exclude each other",
            code="options-exclude-each-other",
            hint="leave one of them out",
        )
    if run is None:
        return None if stated is None else Figure(value=stated, basis=Basis.STATED)
    folder = Location.of(run)
    took = training_time(folder, "distill")
    if took is None or not took.steps:
        raise InputError(
            "no log of a training here",
            code="training-log-missing",
            where=folder,
            expected="a folder that `teachonce distill` wrote",
            found=kind_of(folder),
            hint="state the rate: --student-rate IMAGES/S",
        )
    return Figure(value=took.steps * took.batch_size / (took.seconds - took.waited), basis=Basis.MEASURED)


def costs(*, teacher: Figure, rows: int, views: int, epochs: int, students: int, rate: Figure | None) -> Costs:
    """As `measures.costs` has it. Class vectors are computed once either way, so text costs nothing here."""
    each = () if rate is None else (epochs * rows / rate.value,) * students
    return Costs(
        device="",
        pretrain=None,
        text=0.0,
        images=teacher.value,
        samples=rows,
        views=views,
        students=each,
        student_device="",
        steps=0,
        epochs=epochs,
    )
