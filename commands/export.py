"""`teachonce export`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say
from ..stages.settings.export import ExportSettings
from .command import command, option
from .options import options_of
from .output import json_option, print_json


@command()
@click.argument("bundle", type=click.Path())
@option("--out", required=True, type=click.Path(), help="Folder for the files.")
@options_of("settings", ExportSettings)
@json_option
def export(bundle: str, out: str, settings: ExportSettings, as_json: bool) -> None:
    """Write a student in a form that other programs load: ONNX, TorchScript, timm or open_clip.

    BUNDLE is a folder that `teachonce distill` wrote. What was written is loaded again and compared with the student on
    images; it is kept only if it computes the same. A student that has no exact counterpart in a form is refused.
    """
    from ..stages.export import export_bundle

    exported = export_bundle(bundle, out=out, settings=settings)
    if as_json:
        print_json(exported.to_json())
        return
    for line in exported.to_text().splitlines():
        say(f"export: {line}")
