"""`teachonce pretrain`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.models.settings import TrainingComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.pretraining.settings import PretrainSettings
from ..stages.settings.checkpoints import CheckpointSettings
from ..stages.settings.few_shot import FewShotSettings
from ..stages.views.settings import RandomViews
from .command import command, option
from .executor import ExecutorSettings, SerialByDefault
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report


@command()
@click.argument("images", type=click.Path())
@options_of("teacher", TeacherConfig, prefix="teacher", make=TeacherConfig.of)
@options_of("few", FewShotSettings)
@option("--out", required=True, type=click.Path(), help="Folder for the prompts.")
@options_of("settings", PretrainSettings)
@json_option
@log_option
@options_of("views", RandomViews, prefix="view", section="Views of the shots", only=("scale", "ratio", "flip"))
@options_of("compute", TrainingComputeSettings)
@options_of("checkpoints", CheckpointSettings)
@options_of("executor", SerialByDefault)
@one_driver
def pretrain(
    images: str,
    out: str,
    teacher: TeacherConfig,
    few: FewShotSettings,
    settings: PretrainSettings,
    views: RandomViews,
    compute: TrainingComputeSettings,
    checkpoints: CheckpointSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Tune a teacher's prompts on a few labelled images of each base class, after PromptSRC.

    IMAGES is a folder of class folders, a tar, a list, a folder of shards, or coop:NAME/SPLIT=DATA for a split of a
    data set. The model stays as it is; the prompts (some hundred kilobytes) are then a teacher: --teacher
    teachonce:FOLDER. Defaults are those published for ViT-L/14.
    """
    from ..pipeline.runner import run_stage
    from ..stages.models.compute import training_compute
    from ..stages.pretrain import plan_pretrain

    stage = plan_pretrain(
        images,
        teacher,
        out=out,
        few=few,
        settings=settings,
        views=views,
        compute=training_compute(compute, elsewhere=executor.elsewhere),
        checkpoint_every=checkpoints.checkpoint_every,
    )
    for note in stage.notes:
        say(f"pretrain: {note}")
    report(run_stage(stage, stage.out, executor.make(), progress=False), stage.out, as_json)
    stage.discard_checkpoint()
