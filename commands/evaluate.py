"""`teachonce evaluate`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say, show, starting
from ..stages.settings.evaluate import EvaluateSettings, InferenceSettings
from ..storage_schemas.plain_text import counted
from .command import command
from .options import options_of
from .output import json_option, print_json


@command()
@click.argument("bundle", type=click.Path())
@click.argument("images", type=click.Path())
@options_of("settings", EvaluateSettings)
@json_option
@options_of("compute", InferenceSettings)
def evaluate(bundle: str, images: str, settings: EvaluateSettings, compute: InferenceSettings, as_json: bool) -> None:
    """Measure a student: accuracy where labels are class names, and with a store, agreement with its teacher.

    BUNDLE is a folder that `teachonce distill` wrote; IMAGES a folder of class folders, a tar, a list,
    coop:NAME/SPLIT=DATA for a split of a data set, or a folder of shards. Labels match class names whatever their
    case, underscores and hyphens, and by any of the synonyms of a name like "tench, Tinca tinca"; others are listed
    and left out. No teacher is loaded.

    Base images are judged among base classes only and novel images among novel classes only, as in PromptKD.
    Agreement is measured on the store's first view: the student sees the box that the teacher saw. Images that are
    not shards of the store's corpus are compared by content with the shards that it was made from.
    """
    from ..stages.evaluate import evaluate as measure
    from ..stages.models.compute import resolve_compute
    from ..stages.reports.evaluate_text import evaluation_json, evaluation_text

    starting("evaluate: loading the student")
    result = measure(bundle, images, compute=resolve_compute(compute), settings=settings)
    for note in result.notes:
        say(f"evaluate: {note}")
    facts = evaluation_json(result)
    if as_json:
        print_json({"bundle": bundle, "image_set": images, "store": settings.store, **facts})
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
