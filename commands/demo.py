"""`teachonce demo`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import show
from .command import command, option
from .executor import ExecutorSettings
from .options import options_of
from .output import json_option, print_json
from .runner import make_runner


@command()
@option("--out", default="demo-run", show_default=True, type=click.Path(), help="Folder for everything.")
@json_option
@options_of("executor", ExecutorSettings)
@click.pass_context
def demo(ctx: click.Context, out: str, executor: ExecutorSettings, as_json: bool) -> None:
    """Run every stage on small images with a tiny teacher and student, and compare the results.

    Takes less than 3 minutes on 2 cores, offline. It draws 3,000 images of coloured digits without labels, shows
    the command of each stage as it runs it, and ends with accuracies on held-out images of base and novel classes.
    Run again, it continues where it stopped. --executor is for `shard` and `cache` of the images to train on.
    """
    from ..stages.demo.report import facts_text
    from ..stages.demo.tour import run_demo

    facts = run_demo(out, make_runner(ctx, executor))
    if as_json:
        print_json(facts)
    else:
        show(facts_text(facts))
