"""`teachonce retry-failed`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say, show
from ..stages.settings.retry_failed import RetrySettings
from .command import command, option
from .executor import ExecutorSettings
from .options import options_of
from .output import json_option, print_json, report


@command(name="retry-failed")
@click.argument("shards", type=click.Path())
@click.argument("stores", nargs=-1, metavar="[STORE]…", type=click.Path())
@options_of("settings", RetrySettings)
@option("--list", "only_list", is_flag=True, help="Show the failed images with their reasons, and read nothing again.")
@json_option
@options_of("executor", ExecutorSettings)
def retry_failed(
    shards: str,
    stores: tuple[str, ...],
    settings: RetrySettings,
    executor: ExecutorSettings,
    only_list: bool,
    as_json: bool,
) -> None:
    """Read failed images again; those that are mended by now fill the rows that they have.

    SHARDS is a folder that `teachonce shard` wrote, each STORE one that `teachonce cache` made of it. A failed image is one that has
    a row and no content in the shards, or no targets in a store. Files are read from --source.
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

    out = ShardSet.open(shards).location  # before its lock is written there
    with only_driver(out, "teachonce retry-failed"):
        retry = plan_retry(shards, settings=settings, stores=stores)
        for line in retry_text(retry):
            say(f"retry-failed: {line}.")
        more = retry.to_json()
        if retry.stage is None:
            if as_json:
                report(Summary(stage="retry-failed", units=0), shards, as_json, **more)
            else:
                say(f"Nothing to fill in. Output: {shards}")
            return
        report(run_stage(retry.stage, retry.stage.out, executor.make()), shards, as_json, **more)
