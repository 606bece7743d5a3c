"""`teachonce vectors`, on the command line."""

from __future__ import annotations

from dataclasses import replace

import click

from ..pipeline.terminal import say
from ..stages.models.settings import ComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.settings.vectors import VectorsComputeSettings, VectorsSettings
from .beside import beside_option
from .command import command, option
from .executor import ExecutorSettings, SerialByDefault
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report
from .steps import run_steps


@command()
@options_of("teacher", TeacherConfig, prefix="teacher", make=TeacherConfig.of)
@options_of("settings", VectorsSettings)
@option("--out", required=True, type=click.Path(), help="Target store.")
@option(
    "--grow",
    is_flag=True,
    help="Add the classes of --classes that the finished store at --out does not have, behind those that it has.",
)
@json_option
@log_option
@options_of("compute", VectorsComputeSettings)
@options_of("executor", SerialByDefault)
@beside_option
@one_driver
def vectors(
    out: str,
    teacher: TeacherConfig,
    settings: VectorsSettings,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    grow: bool,
    as_json: bool,
) -> None:
    """Compute class vectors: text features of class names, or the rows of a classifier's head."""
    from ..pipeline.runner import run_stage
    from ..stages.grow_vectors import plan_more_classes
    from ..stages.models.compute import resolve_compute
    from ..stages.teachers.registry import teacher_for_one_run
    from ..stages.vectors import plan_vectors

    if compute.precision == "auto":
        compute = replace(compute, precision="fp32")  # it is done once
    resolved = resolve_compute(compute, elsewhere=executor.elsewhere)
    with teacher_for_one_run() as forget:
        if grow:
            run_steps(
                "vectors", plan_more_classes(teacher, out=out, settings=settings, compute=resolved), executor, as_json
            )
            return
        stage = plan_vectors(teacher, out=out, settings=settings, compute=resolved)
        for note in stage.notes:
            say(f"vectors: {note}")
        if executor.elsewhere:
            forget()
        report(run_stage(stage, stage.store, executor.make()), stage.store, as_json)
