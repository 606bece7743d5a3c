"""`teachonce captions`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.models.settings import ComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.settings.captions import CaptionSettings
from .command import command, option
from .executor import ExecutorSettings, SerialByDefault
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, print_json, report


@command()
@click.argument("shards", type=click.Path())
@options_of("settings", CaptionSettings)
@options_of("teacher", TeacherConfig, prefix="teacher", make=TeacherConfig.of)
@option("--out", required=True, type=click.Path(), help="Caption store (Zarr).")
@option(
    "--dry-run",
    is_flag=True,
    help="Tell which images have captions and how large the store would be, and write nothing.",
)
@json_option
@log_option
@options_of("compute", ComputeSettings)
@options_of("executor", SerialByDefault)
@one_driver
def captions(
    shards: str,
    out: str,
    settings: CaptionSettings,
    teacher: TeacherConfig,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Embed the captions of images once, by the teacher's text tower: for `distill --recipe affinity --captions`.

    SHARDS is a folder that `teachonce shard` wrote. See docs/captions.md.
    """
    from ..pipeline.runner import run_stage
    from ..stages.captions import plan_captions, plan_facts
    from ..stages.models.compute import resolve_compute
    from ..stages.teachers.registry import teacher_for_one_run

    resolved = resolve_compute(compute, elsewhere=executor.elsewhere)
    with teacher_for_one_run() as forget:
        stage = plan_captions(shards, teacher, out=out, settings=settings, compute=resolved, write=not dry_run)
        for note in stage.notes:
            say(f"captions: {note}")
        facts = plan_facts(stage)
        if dry_run:
            if as_json:
                print_json(facts)
            else:
                say(f"captions: the store would take {facts['bytes']:,} bytes at most; nothing was written")
            return
        if executor.elsewhere:
            forget()
        report(run_stage(stage, stage.out, executor.make()), stage.out, as_json, **facts)
