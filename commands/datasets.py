"""`teachonce datasets`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import show
from ..storage_schemas.errors import InputError
from .command import command
from .output import json_option, print_json


@command()
@click.argument("data", type=click.Path())
@json_option
def datasets(data: str, as_json: bool) -> None:
    """List which of CoOp's and PromptKD's data sets a folder holds, and what is missing of the others.

    DATA is the folder that CoOp's DATASETS.md lays out. A split of what is found is coop:NAME/SPLIT=DATA wherever
    images are named, as in coop:oxford_pets/train=DATA, and coop:NAME=DATA is a class list. Base classes are the
    first half. See docs/datasets.md.

    Exits with 1 if no data set is found.
    """
    from ..stages.datasets import overview, overview_json, overview_text

    states = overview(data)
    if as_json:
        print_json(overview_json(states))
    else:
        show(overview_text(states))
    if not any(state.found for state in states):
        raise InputError(
            "no data set that can be used",
            code="datasets-none-usable",
            where=data,
            hint="see docs/datasets.md for the layout",
        )
