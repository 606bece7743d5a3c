"""Owns a look at the teacher's outputs for the first samples of a corpus: encodings are fitted to them before the store is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.store_description import TargetSpec
from ..corpora.shards import ShardSet
from ..decoding.work import Made, in_order
from ..encodings.budget import Choice, Rows, choices
from ..encodings.request import EncodingRequest
from ..models.compute import Compute
from ..models.forward import Forward, Parts
from ..samples.shard_views import ShardRows, ShardViews, tasks_of
from ..teachers.base import Offer, Teacher
from ..teachers.offers import Answers
from ..teachers.placing import place
from ..views.spec import ViewSpec
from .batches import Batch, batches
from .worker import VIEWS_MODULE

#: Rows of a task.
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class FirstRows:
    """Targets by name, fp32 (row, view, …), and the keys of the rows."""

    keys: Sequence[str]
    targets: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class TeacherSample:
    """What it takes to run a teacher on the first rows of a corpus.

    Attributes:
        vectors: class vectors of the store, where it has some.
        batch_size: views in a forward pass.
    """

    shards: ShardSet
    teacher: Teacher
    vectors: ClassVectors | None
    views: ViewSpec
    compute: Compute
    batch_size: int


def choose_encodings(request: EncodingRequest, offers: Sequence[Offer], sample: TeacherSample) -> dict[str, Choice]:
    """The encodings that were asked for, by target: fitted, measured and chosen on the teacher's outputs for the first rows.

    Raises:
        InputError: none keeps the budget; the teacher gave NaN or infinity.
    """
    targets = [TargetSpec(name=o.name, axes=("sample", "view", *o.axes), shape=o.shape) for o in offers]
    found = first_rows(sample, [offer.name for offer in offers], request.rows(targets, sample.views.count))
    rows_of = [
        Rows(target=target, values=found.targets[target.name], keys=found.keys, vectors=sample.vectors)
        for target in targets
    ]
    return choices(rows_of, request.spelled, request.budget)


def first_rows(sample: TeacherSample, names: Sequence[str], count: int) -> FirstRows:
    """The outputs for the first `count` usable samples, or all of them where there are fewer.

    Args:
        names: of the targets.

    Raises:
        InputError: the teacher gave NaN or infinity.
    """
    shards, views, compute = sample.shards, sample.views, sample.compute
    if compute.device == "cuda" and not torch.cuda.is_available():  # others do the work; this one is small
        compute = replace(compute, device="cpu")
    answers = Answers.of(place(sample.teacher, compute), sample.vectors, torch.device(compute.device))
    size = sample.teacher.spec.preprocess.size
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    keys: list[str] = []
    key_of: dict[int, str] = {}

    def outputs(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return answers.outputs(images.flatten(0, 1), tuple(names))

    def parts_of(made: Iterator[tuple[ShardRows, Made]]) -> Iterator[tuple[Batch, Parts]]:
        for batch in batches(made, max(1, sample.batch_size // views.count)):
            yield batch, batch.parts

    with closing(compute.pool(VIEWS_MODULE)) as pool:
        work = pool.open(ShardViews(shards, views, size))
        tasks = _tasks(shards, count, key_of)
        with closing(in_order(work, tasks, pool.ahead)) as made:
            for batch, arrays in Forward(compute, outputs, per_sample=views.count).through(parts_of(made)):
                keys += [key_of[row] for row in batch.rows]
                for name, values in arrays.items():
                    found[name].append(values.reshape(len(batch.rows), views.count, *values.shape[1:]))
        work.close()
    targets = {name: np.concatenate(parts).astype(np.float32, copy=False) for name, parts in found.items()}
    for name, values in targets.items():
        if not np.isfinite(values).all():
            raise InputError(
                "the teacher gave NaN or infinity",
                code="teacher-not-finite",
                where=f"{name} of the first {len(keys)} samples",
                hint="run `teachonce cache` with --precision fp32",
            )
    return FirstRows(keys=keys, targets=targets)


def _tasks(shards: ShardSet, count: int, key_of: dict[int, str]) -> Iterator[ShardRows]:
    left = count
    for shard in range(shards.corpus.num_shards):
        if left <= 0:
            return
        start = shards.corpus.layout.rows(shard).start
        unusable = {bad.row for bad in shards.receipt(shard).invalid_rows}
        entries = enumerate(shards.manifest().shard(shard), start)
        usable = [(row, entry.key) for row, entry in entries if row not in unusable][:left]
        left -= len(usable)
        key_of.update(usable)
        yield from tasks_of(shard, [row for row, _ in usable], [key for _, key in usable], _ROWS)
