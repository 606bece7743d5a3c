"""`teachonce labels`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.labels import LabelsSettings
from ..stages.settings.vectors import VectorsComputeSettings
from .command import command, option
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report


@command()
@click.argument("store", type=click.Path())
@options_of("settings", LabelsSettings)
@option("--out", required=True, type=click.Path(), help="The labels.")
@json_option
@log_option
@one_driver
def labels(store: str, out: str, settings: LabelsSettings, as_json: bool) -> None:
    """Cluster a store's images without labels, and give each cluster a name of a large vocabulary (S3A).

    STORE is a target store with embeddings of the centre view. Its class vectors, or those of --vectors, are the vocabulary. See
    docs/s3a.md.
    """
    from ..pipeline.executors.serial import SerialExecutor
    from ..pipeline.runner import run_stage
    from ..stages.labels import plan_labels
    from ..stages.labels import summary as summary_of
    from ..stages.models.compute import resolve_compute

    stage = plan_labels(store, out=out, settings=settings, compute=resolve_compute(VectorsComputeSettings()))
    for note in stage.notes:
        say(f"labels: {note}")
    summary = run_stage(stage, stage.out, SerialExecutor())
    lines, facts = summary_of(stage)
    for line in lines:
        say(f"labels: {line}")
    report(summary, stage.out, as_json, **facts)
