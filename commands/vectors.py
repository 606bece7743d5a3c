"""`teachonce vectors`, on the command line."""

from __future__ import annotations

from dataclasses import replace

import click

from ..pipeline.terminal import say
from ..stages.models.settings import ComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.settings.vectors import VectorsComputeSettings, VectorsSettings
from .command import command, option
from .executor import ExecutorSettings, SerialByDefault
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report


@command()
@options_of("teacher", TeacherConfig, prefix="teacher", make=TeacherConfig.of)
@options_of("settings", VectorsSettings)
@option("--out", required=True, type=click.Path(), help="Target store.")
@json_option
@options_of("compute", VectorsComputeSettings)
@options_of("executor", SerialByDefault)
@one_driver
def vectors(
    out: str,
    teacher: TeacherConfig,
    settings: VectorsSettings,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Compute class vectors: text features of class names, or the rows of a classifier's head."""
    from ..pipeline.runner import run_stage
    from ..stages.models.compute import resolve_compute
    from ..stages.teachers.registry import teacher_for_one_run
    from ..stages.vectors import plan_vectors

    if compute.precision == "auto":
        compute = replace(compute, precision="fp32")  # it is done once
    with teacher_for_one_run() as forget:
        stage = plan_vectors(
            teacher, out=out, settings=settings, compute=resolve_compute(compute, elsewhere=executor.elsewhere)
        )
        for note in stage.notes:
            say(f"vectors: {note}")
        if executor.elsewhere:
            forget()
        report(run_stage(stage, stage.store, executor.make()), stage.store, as_json)
