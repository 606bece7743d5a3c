"""`teachonce shard`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from .command import Stage, one_driver
from .executor import executor_options, make_executor
from .output import json_option, report
from .types import Choice


@click.command(cls=Stage)
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS…")
@click.option("--out", required=True, type=click.Path(), help="Folder for the shards.")
@click.option(
    "--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Samples a shard."
)
@click.option("--name", help="Name of the corpus, part of every sample's key (default: the sources' names).")
@click.option(
    "--resize",
    type=click.IntRange(1),
    help="Reduce the shorter side to this many pixels (re-encodes as JPEG).",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    help="Larger images are recorded as unusable (default: 89 million).",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1, 1 << 30),
    default=1 << 30,
    help="Longer files are recorded as unusable; a URL's body is left there (default and most: 1 GiB).",
)
@click.option(
    "--order",
    type=Choice(["hash", "source"]),
    help="Order of rows: `hash` mixes classes and sources, `source` keeps the sources' own (default: hash; shards that were "
    "begun keep theirs).",
)
@click.option(
    "--give-up-on-unreachable",
    is_flag=True,
    help="Record images that cannot be read at the moment as unusable; without it they fail, and are tried again.",
)
@executor_options("ray")
@json_option
@one_driver
def shard(
    corpus: tuple[str, ...], out: str, max_pixels: int | None, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a corpus as WebDataset tars with a frozen manifest.

    CORPUS is one or more folders, tars (plain or WebDataset), or lists of paths and URLs (text, CSV, JSON, Parquet), each
    PATH or NAME=PATH; or coop:NAME/SPLIT=DATA for a split of a data set (see `teachonce datasets`). Labels, where
    folder names, sidecar files or splits give them, are kept as metadata; nothing needs them.
    """
    from ..pipeline.runner import run_stage
    from ..stages.corpora.images import MAX_PIXELS
    from ..stages.corpora.label import no_labels_text
    from ..stages.corpora.left_out import left_out_text
    from ..stages.shard import plan_shard

    stage = plan_shard(corpus, out=out, max_pixels=max_pixels or MAX_PIXELS, **options)
    report(run_stage(stage, stage.out, make_executor(executor, ray_address, workers)), stage.out, as_json)
    if told := left_out_text(stage.corpus.left_out, skipped=stage.corpus.skipped):
        say(f"{told[0].upper()}{told[1:]}.")
    if told := no_labels_text(stage.corpus.no_labels):
        say(f"Warning: {told}.")
