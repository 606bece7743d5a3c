"""`teachonce retry-failed`, on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..pipeline.terminal import say, show
from ..stages.settings.retry_failed import RetrySettings
from ..stages.settings.store_teacher import StoreTeacherSettings
from .command import command, option
from .executor import ExecutorSettings
from .log_option import log_option
from .options import options_of
from .output import json_option, print_json, report

if TYPE_CHECKING:
    from ..stages.fill_mended import StoreTeacher


@command(name="retry-failed")
@click.argument("shards", type=click.Path())
@click.argument("stores", nargs=-1, metavar="[STORE]…", type=click.Path())
@options_of("settings", RetrySettings)
@option("--list", "only_list", is_flag=True, help="Show the failed images with their reasons, and read nothing again.")
@json_option
@log_option
@options_of("teacher", StoreTeacherSettings, prefix="teacher", section="Stores")
@options_of("executor", ExecutorSettings)
def retry_failed(
    shards: str,
    stores: tuple[str, ...],
    settings: RetrySettings,
    teacher: StoreTeacherSettings,
    executor: ExecutorSettings,
    only_list: bool,
    as_json: bool,
) -> None:
    """Read failed images again; those that are mended by now fill the rows that they have.

    SHARDS is a folder that `teachonce shard` wrote, each STORE one that `teachonce cache` made of it. A failed image is one that has
    a row and no content in the shards, or no targets in a store. Files are read from --source. Each store's teacher then sees the
    mended images alone.
    """
    from ..stages.reports.failed_text import failed_text
    from ..stages.retry_failed import failed_images, plan_retry, retry_text

    if only_list:
        failed = failed_images(shards, stores)
        if as_json:
            print_json({"shards": shards, "failed": [one.to_json() for one in failed]})
        else:
            show(failed_text(failed))
        return
    from ..pipeline.driver import only_driver
    from ..pipeline.runner import Summary, run_stage
    from ..stages.corpora.shards import ShardSet
    from ..stages.fill_mended import store_teacher

    teachers = [store_teacher(store, teacher) for store in stores]
    out = ShardSet.open(shards).location  # before its lock is written there
    with only_driver(out, "teachonce retry-failed"):
        retry = plan_retry(shards, settings=settings, stores=stores)
        for line in retry_text(retry):
            say(f"retry-failed: {line}.")
        more = retry.to_json()
        done = Summary(stage="retry-failed", units=0)
        if retry.stage is not None:
            done = run_stage(retry.stage, retry.stage.out, executor.make())
    filled = [_fill(shards, one, executor) for one in teachers]
    if as_json or retry.stage is not None:
        report(done, shards, as_json, **more, **({"stores": filled} if stores else {}))
    else:
        say(f"Nothing to fill in{' in the shards' if stores else ''}. Output: {shards}")


def _fill(shards: str, teacher: StoreTeacher, executor: ExecutorSettings) -> dict[str, Any]:
    """Fill the rows of mended images in a store. Returns what was done, as JSON."""
    from ..pipeline.driver import only_driver
    from ..pipeline.runner import run_stage
    from ..stages.fill_mended import fill_mended
    from ..stages.teachers.registry import teacher_for_one_run

    rows = 0
    notes: list[str] = []
    with only_driver(teacher.store, "teachonce retry-failed"), teacher_for_one_run() as forget:
        for step in fill_mended(shards, teacher):
            notes += step.notes
            for note in step.notes:
                say(f"retry-failed: {teacher.store}: {note}")
            if executor.elsewhere:
                forget()
            rows += run_stage(step.stage, step.store, executor.make()).rows
    if not notes:
        say(f"retry-failed: {teacher.store}: no image of it was mended since.")
    return {"store": str(teacher.store), "rows": rows, "generations": notes}
