"""`teachonce distill`, on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..pipeline.terminal import say
from ..stages.settings.distill import SeveralStudents
from ..storage_schemas.errors import InputError, TeachonceError
from .command import command, option
from .executor import TrainingExecutorSettings
from .log_option import log_option
from .one_driver import driving
from .options import options_of
from .output import json_option, print_json, report
from .recipe_options import RecipeCommand
from .student_options import StudentRequest, requests, student_options

if TYPE_CHECKING:
    from ..stages.distilling.stage import DistillStage


def _leads() -> bool:
    launched = TrainingExecutorSettings().launched
    return launched is None or launched.is_first


@command(cls=RecipeCommand)
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@student_options
@option("--out", required=True, type=click.Path(), help="Folder for the student bundle, or for those of several.")
@json_option
@partial(log_option, leads=_leads)
@options_of("several", SeveralStudents)
@options_of("executor", TrainingExecutorSettings)
@click.pass_context
def distill(
    ctx: click.Context,
    /,
    shards: str,
    store: str,
    out: str,
    several: SeveralStudents,
    executor: TrainingExecutorSettings,
    as_json: bool,
    **student: Any,
) -> None:
    """Train a student from shards and store, or several on one pass. The teacher is never loaded.

    SHARDS is the folder that `teachonce shard` wrote, STORE the target store that `teachonce cache` made from it.
    """
    request = StudentRequest.of(**student)
    launched = executor.launched
    if several.seeds is None and several.students is None:
        if launched is not None and not launched.is_first:
            from ..pipeline.storage import Location

            launched.follow(lambda: _plan(request, shards, store, out, executor), Location.of(out), executor.grace)
            return
        with nullcontext() if launched is None else launched.leading(), driving(out, "distill", (shards, store)):
            _one(request, shards, store, out, executor, as_json)
        return
    if executor.elsewhere or launched is not None:
        raise InputError(
            "several students are trained in one process",
            code="students-in-one-process",
            where="torchrun" if launched is not None else "--executor" if executor.executor == "ray" else "--workers",
            hint="leave it out, or train each student with a command of its own",
        )
    form = "distill --seeds" if several.students is None else "distill --students"
    inputs = (shards, store, several.students)
    with driving(out, "distill", inputs, form=form):
        _several(requests(request, several, ctx), several.students, shards, store, out, executor.grace, as_json)


def _one(
    request: StudentRequest, shards: str, store: str, out: str, executor: TrainingExecutorSettings, as_json: bool
) -> None:
    from ..pipeline.runner import run_stage

    stage = _plan(request, shards, store, out, executor)
    for note in stage.notes:
        say(f"distill: {note}")
    if executor.elsewhere:
        stage.built.take()  # workers build their own
    report(run_stage(stage, stage.out, executor.make(), progress=False), stage.out, as_json)
    stage.discard_checkpoint()
    if stage.reuse is not None:
        say(f"distill: {stage.reuse}")


def _several(
    students: Mapping[str, StudentRequest],
    file: str | None,
    shards: str,
    store: str,
    out: str,
    grace: float,
    as_json: bool,
) -> None:
    """
    Args:
        file: what they were read from; None where they differ in their seeds alone.
    """
    from ..pipeline import stopping
    from ..pipeline.storage import Location
    from ..pipeline.together import run_together
    from ..stages.many_students import check_common, claim_folder, distill_together

    folder, here = Location.of(out), TrainingExecutorSettings()
    stages = {}
    for name, request in students.items():
        try:
            stages[name] = _plan(request, shards, store, folder / name, here, folder.name)
        except TeachonceError as error:
            if file is not None:
                error.where = f"{file}, {name}" if error.where is None else f"{file}, {name}: {error.where}"
            raise
    check_common(stages)
    claim_folder(folder)
    _say_for_each({name: stage.notes for name, stage in stages.items()})
    stopping.arm(grace)
    done = run_together(stages, folder, distill_together)
    if as_json:
        print_json({"out": str(folder), "students": {name: s.__dict__ for name, s in done.by_name.items()}})
    for name, stage in stages.items():
        if not done.by_name[name].failed:
            stage.discard_checkpoint()
            if not as_json:
                report(done.by_name[name], stage.out, as_json=False)
    if done.failure is not None:
        raise done.failure
    _say_for_each({name: (stage.reuse,) for name, stage in stages.items() if stage.reuse is not None})


def _plan(
    request: StudentRequest, shards: str, store: str, out: Any, executor: TrainingExecutorSettings, group: str = ""
) -> DistillStage:
    from ..stages.distill import plan_distill
    from ..stages.models.compute import training_compute

    return plan_distill(
        shards,
        store,
        request.student,
        out=out,
        recipe=request.recipe,
        options=request.options,
        settings=request.settings,
        compute=training_compute(request.compute, elsewhere=executor.elsewhere),
        workers=executor.processes,
        group=group,
    )


def _say_for_each(notes: Mapping[str, tuple[str, ...]]) -> None:
    """Lines for people: what is the same for all students once, the rest with the student's name."""
    common = [line for line in next(iter(notes.values()), ()) if all(line in own for own in notes.values())]
    for line in common:
        say(f"distill: {line}")
    for name, own in notes.items():
        for line in own:
            if line not in common:
                say(f"distill: {name}: {line}")
