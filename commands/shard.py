"""`teachonce shard`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.shard import ShardSettings
from .command import command, option
from .executor import SlicedExecutorSettings, sliced_executor
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report
from .steps import run_or_finish


@command()
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS…")
@option("--out", required=True, type=click.Path(), help="Folder for the shards.")
@options_of("settings", ShardSettings)
@json_option
@log_option
@options_of("executor", SlicedExecutorSettings, make=sliced_executor)
@one_driver
def shard(
    corpus: tuple[str, ...],
    out: str,
    settings: ShardSettings,
    executor: SlicedExecutorSettings,
    as_json: bool,
) -> None:
    """Write a corpus as WebDataset tars with a frozen manifest.

    CORPUS is one or more folders, tars (plain or WebDataset), or lists of paths and URLs (text, CSV, JSON, Parquet), each
    PATH or NAME=PATH; or coop:NAME/SPLIT=DATA for a split of a data set (see `teachonce datasets`). Labels, where
    folder names, sidecar files or splits give them, are kept as metadata; nothing needs them.

    CORPUS may be a pattern in quotes, such as 's3://bucket/{000..999}.tar'. With --in-place, tars are used where they are: each is
    a shard, and nothing is copied.

    With --append, images that the shards do not have yet become new shards; what is there stays as it is.
    """
    from ..pipeline.runner import Summary
    from ..stages.corpora.label import no_labels_text
    from ..stages.corpora.left_out import left_out_text
    from ..stages.shard import plan_shard

    stage = plan_shard(corpus, out=out, settings=settings)
    appended = stage.appended
    if appended is not None:
        for line in appended.lines():
            say(f"shard --append: {line}.")
    more = {} if appended is None else {"append": appended.to_json()}
    if appended is not None and not appended.new:
        if as_json:
            report(Summary(stage=stage.name, units=0), stage.out, as_json, **more)
        else:
            say(f"Nothing to add. Output: {stage.out}")
        return
    report(run_or_finish(stage, stage.out, executor), stage.out, as_json, **more)
    if executor.part is not None:
        return
    if notice := left_out_text(stage.corpus.left_out, skipped=stage.corpus.skipped):
        say(f"{notice[0].upper()}{notice[1:]}.")
    if notice := no_labels_text(stage.corpus.no_labels):
        say(f"Warning: {notice}.")
