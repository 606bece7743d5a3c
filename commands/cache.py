"""`teachonce cache`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from .command import Stage, one_driver
from .executor import executor_options, make_executor
from .options import split_teacher_options, split_view_options, teacher_options, view_options
from .output import json_option, report
from .types import Choice


@click.command(cls=Stage)
@click.argument("shards", type=click.Path())
@teacher_options
@click.option("--out", required=True, type=click.Path(), help="Target store (Zarr).")
@view_options
@click.option(
    "--targets",
    metavar="NAMES",
    default="auto",
    show_default=True,
    help="What to store, with commas: embedding, logits, tokens, features.LAYER. auto: logits where there are class vectors "
    "and no more classes than channels, else the embedding; both: embedding,logits.",
)
@click.option(
    "--encoding",
    type=Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How targets are stored. fp16 keeps logits relative to their maximum.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Views in a forward pass (default: 64 on the CPU, 256 on CUDA). Decides low bits, so it is fingerprinted.",
)
@executor_options("ray")
@json_option
@one_driver
def cache(
    shards: str, out: str, targets: str, encoding: str, batch_size: int | None, executor: str,
    ray_address: str | None, workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Run the teacher once over every view of every sample and store what it says.

    SHARDS is a folder that `teachonce shard` wrote. Options of random views show their default in brackets.
    """
    from ..pipeline.runner import run_stage
    from ..stages.cache import plan_cache
    from ..stages.models.compute import resolve_compute
    from ..storage_schemas.encodings import ENCODINGS

    config = split_teacher_options(options)
    views, interpolation = split_view_options(options)
    compute = resolve_compute(**options, elsewhere=executor == "ray")
    stage = plan_cache(
        shards, config, out=out, views=views, targets=targets, encoding=ENCODINGS[encoding], compute=compute,
        batch_size=batch_size or (64 if compute.device == "cpu" else 256), view_interpolation=interpolation,
    )  # fmt: skip
    for note in stage.notes:
        say(f"cache: {note}")
    if stage.vectors is None and targets == "auto":
        say("No logits: the store has no class vectors, or more classes than channels; keeping embeddings.")
    report(run_stage(stage, stage.store, make_executor(executor, ray_address, workers)), stage.store, as_json)
