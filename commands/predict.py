"""`teachonce predict`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say, show
from ..stages.settings.evaluate import InferenceSettings
from .command import command, option
from .options import options_of
from .output import json_option, print_json


@command()
@click.argument("bundle", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@option("--top", type=click.IntRange(1), default=5, show_default=True, metavar="K", help="Classes per image.")
@json_option
@options_of("compute", InferenceSettings)
def predict(bundle: str, images: tuple[str, ...], top: int, compute: InferenceSettings, as_json: bool) -> None:
    """Show the most probable classes of images (paths or URLs).

    BUNDLE is a folder that `teachonce distill` wrote. An image that cannot be used is named on stderr; the others
    are done, and the exit code is 1.
    """
    from ..stages.models.compute import resolve_compute
    from ..stages.predict import predict as look
    from ..stages.predict import prediction_json, prediction_text

    failed, predictions = False, []
    for prediction in look(bundle, images, top=top, compute=resolve_compute(compute)):
        if prediction.reason:
            failed = True
            say(f"{prediction.image}: {prediction.reason}")
        if as_json:
            predictions.append(prediction_json(prediction))
        elif not prediction.reason:
            show(prediction_text(prediction))
    if as_json:
        print_json(predictions)
    click.get_current_context().exit(1 if failed else 0)
