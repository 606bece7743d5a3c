"""`teachonce models`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import show
from .command import command, option
from .output import json_option, print_json


@command()
@click.argument("text", required=False)
@option(
    "--teacher",
    "role",
    flag_value="teacher",
    help="Only what can be a teacher: with a classifier or a text tower.",
)
@option("--student", "role", flag_value="student", help="Only what can be a student: all of them.")
@json_option
def models(text: str | None, role: str | None, as_json: bool) -> None:
    """List the models that can be named, with image size, width, parameters and pretrained weights.

    TEXT is part of the name (several words must all be in it). Weights are tags for --teacher-pretrained and
    --student-pretrained; with --json each says where it is downloaded from. Beside these, hf-hub:ORG/REPO and
    local-dir:FOLDER name open_clip models elsewhere, and teachonce:FOLDER a teacher with learned prompts.

    Exits with 1 if no model has such a name.
    """
    from ..stages.model_list import list_models, models_text

    listed = list_models(text, role=role)
    if as_json:
        print_json([model.to_json() for model in listed])
    else:
        show(models_text(listed))
