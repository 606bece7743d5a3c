"""Owns students that are trained on one pass over the pairs: what they must have in common, and their work."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from ..pipeline.contents import STUDENTS_NOTE
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import canonical_json
from ..storage_schemas.receipt import Receipt
from .distilling.stage import DistillStage, OpenStudent, train_students
from .recipes.registry import recipe_named
from .training.ranks import Ranks

if TYPE_CHECKING:
    from ..pipeline.storage import Location
    from ..pipeline.types import Timer, Unit


def claim_folder(folder: Location) -> None:
    """Mark a folder as one of students, each of which is a bundle in it."""
    note = folder / STUDENTS_NOTE
    if not note.exists():
        note.write_bytes(canonical_json({"kind": "teachonce students"}) + b"\n")


def check_common(stages: Mapping[str, DistillStage]) -> None:
    """Refuse students that cannot see the same batches.

    Args:
        stages: by the students' names; shards and store are the same.

    Raises:
        InputError: they differ in what decides the batches or how all of them compute; or other processes train with this one.
    """
    first_name, first = next(iter(stages.items()))
    expected = _common(first)
    for name, stage in stages.items():
        for option, value in _common(stage).items():
            if value != expected.setdefault(option, value):
                raise InputError(
                    "students of one pass must agree in what they see, and where they are computed",
                    code="students-differ",
                    where=f"{name}, {option}",
                    expected=f"{expected[option]} (as {first_name})",
                    found=value,
                    hint=f"train {name} with a command of its own",
                )
        if stage.compiled and len(stages) > 1:
            raise InputError(
                "students of one pass cannot be compiled",
                code="options-exclude-each-other",
                where=f"{name}, --compile",
                hint="leave out --compile, or train each with a command of its own",
            )
    if len(stages) > 1 and Ranks.here().world_size > 1:
        raise InputError(
            "several students are trained in one process",
            code="students-in-one-process",
            where="torch.distributed",
            expected="1 process",
            found=Ranks.here().world_size,
            hint="train each student with a command of its own",
        )


def _common(stage: DistillStage) -> dict[str, object]:
    """What decides the batches, and where all are computed; by option."""
    preprocess = stage.identity["student"]["preprocess"]
    return {
        "--batch-size": stage.settings.batch_size,
        "--recipe": "one that reads images" if recipe_named(stage.recipe).reads_images else "one that reads none",
        "--per-domain": stage.settings.per_domain,
        "--steps-per-epoch": stage.settings.steps_per_epoch,
        "--hold-out": stage.settings.hold_out,
        "--leave-out": ", ".join(sorted(stage.identity.get("leave_out", ()))) or "none",
        "--student-size": preprocess["size"],
        "--views": stage.pairs.views,
        "--order-seed": stage.pairs.order_seed,
        "--accept-other-pixels": stage.pairs.accept_other_pixels,
        "--decode-workers": stage.compute.decode_workers,
        "--device": stage.compute.device,
        **_by_sources(stage),
        **{f"view '{name}'": view for name, view in stage.pairs.anew.items()},
        "--threads": stage.compute.threads,
    }


def _by_sources(stage: DistillStage) -> dict[str, object]:
    """What decides the values of targets that the store does not hold, by target."""
    vectors = "" if stage.vectors is None else stage.vectors.digest
    return {
        f"target '{name}'": vectors if source.identity is None else source.identity
        for source in stage.pairs.sources
        for name in source.layouts
    }


def distill_together(
    jobs: Mapping[str, tuple[DistillStage, Unit, Timer]],
) -> Generator[tuple[str, Receipt | Exception], None, None]:
    """Train the students of some stages on one pass; yields each as it ends: the receipt of its bundle, or what it failed by."""
    first, _, _ = next(iter(jobs.values()))
    students: dict[str, OpenStudent] = {}
    with closing(first.open_pool()) as pool:
        for name, (stage, _, _) in jobs.items():
            try:
                students[name] = OpenStudent.of(stage, pool)
            except Exception as error:
                yield name, error
        if not students:
            return
        for name, ended in train_students({name: (student, jobs[name][2]) for name, student in students.items()}):
            if isinstance(ended, Exception):
                yield name, ended
                continue
            _, unit, timer = jobs[name]
            try:
                receipt = students[name].write(unit, timer, ended)
            except Exception as error:
                yield name, error
            else:
                yield name, receipt
