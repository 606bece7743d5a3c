"""`teachonce inspect`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import say, show
from .command import command, option
from .output import json_option, print_json


@command()
@click.argument("store", type=click.Path())
@click.argument("keys", nargs=-1, metavar="[KEY]…")
@option(
    "--shards",
    type=click.Path(),
    help="Folder of the store's shards, for paths and pictures (default: as `cache` recorded).",
)
@option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Classes, samples and examples to name.",
)
@option(
    "--html",
    type=click.Path(),
    help="Write a page to look at into this file: charts, a map, galleries of the views. Needs teachonce[page].",
)
@json_option
def inspect(store: str, keys: tuple[str, ...], shards: str | None, top: int, html: str | None, as_json: bool) -> None:
    """Look into a target store, finished or not.

    Without KEY: schema, fingerprint, coverage, sizes, value ranges, and what the soft labels look like. With KEYs: for
    each sample its path, views and top classes. A KEY is a sample's key, its first 6 or more characters, a row number,
    an image's path, or the end of one.

    Exits with 1 if the store has problems, such as NaN in a valid row.
    """
    from ..stages.inspect import inspect_store, write_page
    from ..stages.measures.stored import Stored
    from ..stages.reports.inspect_sample import inspect_sample
    from ..stages.reports.inspect_text import sample_text, store_text

    stored = Stored.open(store, shards)
    if keys:
        samples = [inspect_sample(stored, key, top=top) for key in keys]
        if as_json:
            print_json({"samples": samples})
        else:
            show("\n\n".join(sample_text(sample) for sample in samples))
        return
    facts = inspect_store(stored, top=top) if html is None else write_page(stored, html, top=top)
    if as_json:
        print_json(facts)
    elif html is None:
        show(store_text(facts))
    else:
        say(f"inspect: wrote {html}")
    click.get_current_context().exit(1 if facts["problems"] else 0)
