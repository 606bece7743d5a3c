"""`teachonce evaluate`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say, show, starting
from ..storage_schemas.plain_text import counted
from .command import Stage
from .options import inference_options
from .output import json_option, print_json


@click.command(cls=Stage)
@click.argument("bundle", type=click.Path())
@click.argument("images", type=click.Path())
@click.option(
    "--store",
    type=click.Path(),
    help="Also measure agreement with this target store's teacher, on the pictures that it saw.",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="Also measure base and novel classes apart: a file with one name a line, names with commas between "
    "them, or @half for the first half of the class ids.",
)
@click.option(
    "--name", help="Corpus name that `shard` was given, to find images that are not in shards in the store."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images in a forward pass."
)
@click.option(
    "--accept-other-pixels",
    is_flag=True,
    help="With --store: go on where this machine renders views otherwise than the one that cached them.",
)
@inference_options
@json_option
def evaluate(
    bundle: str, images: str, store: str | None, base_classes: str | None, name: str | None, batch_size: int,
    accept_other_pixels: bool, device: str, precision: str, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure a student: accuracy where labels are class names, agreement with its teacher where a store knows.

    BUNDLE is a folder that `teachonce distill` wrote; IMAGES a folder of class folders, a tar, a list,
    coop:NAME/SPLIT=DATA for a split of a data set, or a folder of shards. Labels match class names whatever their
    case, underscores and hyphens, and by any of the synonyms of a name like "tench, Tinca tinca"; others are listed
    and left out. No teacher is loaded.

    Base images are judged among base classes only and novel images among novel classes only, as in PromptKD.
    Agreement is measured on the store's first view: the student sees the box that the teacher saw. Images that are
    no shards of the store's corpus are compared by content with the shards that it was made from.
    """
    from ..stages.evaluate import evaluate as measure
    from ..stages.models.compute import resolve_compute
    from ..stages.reports.evaluate_text import evaluation_json, evaluation_text

    starting("evaluate: loading the student")
    result = measure(
        bundle, images, compute=resolve_compute(device, precision, threads), store=store, base=base_classes,
        name=name, batch_size=batch_size, accept_other_pixels=accept_other_pixels,
    )  # fmt: skip
    for note in result.notes:
        say(f"evaluate: {note}")
    facts = evaluation_json(result)
    if as_json:
        print_json({"bundle": bundle, "image_set": images, "store": store, **facts})
    else:
        show(evaluation_text(facts))
    if result.unmatched:
        count = sum(result.labels[label] for label in result.unmatched)
        say(
            f"Left out of every accuracy, since their labels are no class: {counted(count, 'image')} of "
            f"{counted(len(result.unmatched), 'label')}."
        )
    if result.unusable:
        say(f"{counted(len(result.unusable), 'image')} could not be used.")
