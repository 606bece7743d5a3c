"""`teachonce distill`, on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from ..pipeline.terminal import say
from ..stages.models.settings import COMPUTING, TrainingComputeSettings
from ..stages.models.student_config import StudentConfig
from ..stages.settings.distill import DistillSettings
from ..storage_schemas.errors import InputError
from .command import command, option
from .executor import TrainingExecutorSettings
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report
from .recipe_options import RecipeChoice, RecipeCommand, recipe_options


@command(cls=RecipeCommand)
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@options_of("student", StudentConfig, prefix="student")
@option("--recipe", required=True, type=RecipeChoice(), help="Distillation method.")
@option("--out", required=True, type=click.Path(), help="Folder for the student bundle.")
@recipe_options
@options_of("settings", DistillSettings)
@json_option
@options_of("compute", TrainingComputeSettings)
@option("--use-gpu", is_flag=True, section=COMPUTING, help="One GPU for each worker: the same as --device cuda.")
@options_of("executor", TrainingExecutorSettings)
@one_driver
def distill(
    shards: str,
    store: str,
    out: str,
    recipe: str,
    student: StudentConfig,
    settings: DistillSettings,
    compute: TrainingComputeSettings,
    use_gpu: bool,
    executor: TrainingExecutorSettings,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a student from shards and store. The teacher is never loaded.

    SHARDS is the folder that `teachonce shard` wrote, STORE the target store that `teachonce cache` made from it.
    """
    from ..pipeline.runner import run_stage
    from ..stages.distill import plan_distill
    from ..stages.models.compute import training_compute

    if use_gpu:
        if compute.device == "cpu":
            raise InputError(
                "--use-gpu and --device cpu exclude each other",
                code="options-exclude-each-other",
                hint="leave one of them out",
            )
        compute = replace(compute, device="cuda")
    stage = plan_distill(
        shards,
        store,
        student,
        out=out,
        recipe=recipe,
        options=options,
        settings=settings,
        compute=training_compute(compute, elsewhere=executor.elsewhere),
        workers=executor.workers or 1,
    )
    for note in stage.notes:
        say(f"distill: {note}")
    report(run_stage(stage, stage.out, executor.make(), progress=False), stage.out, as_json)
    stage.discard_checkpoint()
    if stage.reuse is not None:
        say(f"distill: {stage.reuse}")
