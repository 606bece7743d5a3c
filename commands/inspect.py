"""`teachonce inspect`, on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from ..pipeline.terminal import say, show
from ..stages.settings.inspect import ORDERS
from ..storage_schemas.errors import InputError
from ..storage_schemas.plain_text import counted
from .command import command, option
from .output import json_option, print_json
from .types import Choice

if TYPE_CHECKING:
    from ..pipeline.storage import Location

#: Samples on a page of `--samples`.
_PAGE = 20


@command()
@click.argument("store", type=click.Path())
@click.argument("keys", nargs=-1, metavar="[KEY]…")
@option(
    "--shards",
    type=click.Path(),
    help="Folder of the store's shards, for paths and pictures (default: as `cache` recorded).",
)
@option("--generation", metavar="NAME", help="Look at this generation of a store that grew (default: the current one).")
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
@option(
    "--export",
    type=click.Path(),
    help="Write a table of all usable samples into this file: .csv, .parquet or .npy (row, key, path, label, first class, confidence, "
    "entropy, agreement of the views).",
)
@option("--samples", is_flag=True, help="Show a page of samples, one a line, instead of the store.")
@option(
    "--sort",
    type=Choice(ORDERS),
    default="row",
    show_default=True,
    help="With --samples, their order: largest confidence, least (unsure), entropy, or disagreement of the views first.",
)
@option("--class", "class_name", metavar="NAME", help="With --samples: those with this first class, or this label.")
@option("--page", type=click.IntRange(1), default=1, show_default=True, help="With --samples: which page of 20.")
@option(
    "--against",
    type=click.Path(),
    help="With --html, and a student bundle in place of STORE: a second one to compare it with.",
)
@option(
    "--images",
    type=click.Path(),
    help="With --against: labelled images that both students are run on, as for `evaluate`.",
)
@json_option
def inspect(
    store: str,
    keys: tuple[str, ...],
    shards: str | None,
    generation: str | None,
    top: int,
    html: str | None,
    export: str | None,
    samples: bool,
    sort: str,
    class_name: str | None,
    page: int,
    against: str | None,
    images: str | None,
    as_json: bool,
) -> None:
    """Look into a target store, finished or not; with --html also at trainings.

    Without KEY: schema, fingerprint, coverage, sizes, value ranges, and what the soft labels look like. With KEYs: for
    each sample its path, views and top classes. A KEY is a sample's key, its first 6 or more characters, a row number,
    an image's path, or the end of one.

    With --html FILE it writes a page to look at. STORE may then be a student bundle too, or the output of a training that
    has begun: curves, settings and provenance, with --against beside those of another one.

    STORE may also be what `teachonce captions` made: how many images have how many captions, of which teacher; every chunk is checked.

    Exits with 1 if the store has problems, such as NaN in a valid row.
    """
    from ..pipeline.contents import Kind, kind_of
    from ..pipeline.storage import Location
    from ..stages.inspect import inspect_store, write_page, write_run_page
    from ..stages.measures.sample_table import SampleTable
    from ..stages.measures.store_pass import measure_store
    from ..stages.measures.stored import Stored
    from ..stages.pages.run_page import is_run
    from ..stages.reports.inspect_sample import inspect_sample
    from ..stages.reports.inspect_text import sample_text, store_text
    from ..stages.reports.samples_text import sample_ranking, samples_json, samples_text

    if not samples and (sort != "row" or class_name is not None or page != 1):
        raise InputError(
            "an option that orders samples, without them",
            code="option-needs-another",
            where="--sort, --class, --page",
            hint="add --samples",
        )
    if keys and (samples or html or export):
        raise InputError(
            "options about the whole store, beside the keys of samples",
            code="options-exclude-each-other",
            where="--samples, --html, --export",
            found=", ".join(keys),
            hint="leave out the keys, or the options",
        )
    if samples and (html or export):
        raise InputError(
            "a page of samples in the terminal, and files about the whole store",
            code="options-exclude-each-other",
            where="--samples, --html, --export",
            hint="leave out --samples, or the others",
        )
    if html is not None and html == export:
        raise InputError("two files of one name", code="given-twice", where="--html, --export", found=html)
    if against is None and images is not None:
        raise InputError(
            "images for two students, and only one of them",
            code="option-needs-another",
            where="--images",
            hint="add --against BUNDLE",
        )
    if against is not None or (html is not None and is_run(Location.of(store))):
        if html is None:
            raise InputError(
                "trainings are compared on a page",
                code="option-needs-another",
                where="--against",
                hint="add --html page.html",
            )
        of_stores = {
            "--shards": shards,
            "--generation": generation,
            "--samples": samples,
            "--export": export,
            "--json": as_json,
        }
        given = ", ".join(name for name, value in of_stores.items() if value)
        if given:
            raise InputError(
                "options about a store, and the page is about trainings",
                code="options-exclude-each-other",
                where=given,
                hint="leave them out",
            )
        _refuse_inside([html], [store, *([] if against is None else [against])])
        write_run_page([store] if against is None else [store, against], html, images=images)
        say(f"inspect: wrote {html}")
        return
    if kind_of(Location.of(store)) == Kind.CAPTIONS and not (keys or samples or html or export):
        from ..stages.reports.captions_text import captions_facts, captions_text

        about = captions_facts(Location.of(store))
        if as_json:
            print_json(about)
        else:
            show(captions_text(about, store))
        click.get_current_context().exit(1 if about["problems"] else 0)
    stored = Stored.open(store, shards, generation)
    if keys:
        found = [inspect_sample(stored, key, top=top) for key in keys]
        if as_json:
            print_json({"samples": found})
        else:
            show("\n\n".join(sample_text(sample) for sample in found))
        return
    if samples:
        ranking = sample_ranking(stored, order=sort, class_name=class_name, page=page, size=_PAGE)
        measure_store(stored, top, [ranking])
        shown = samples_json(stored, ranking, page=page, size=_PAGE)
        if as_json:
            print_json(shown)
        else:
            show(samples_text(shown, sort))
        return
    _refuse_inside([html, export], [store, *([] if stored.shards is None else [stored.shards.location])])
    with ExitStack() as stack:
        table = None if export is None else stack.enter_context(SampleTable(stored, export))
        watchers = [] if table is None else [table]
        if html is None:
            facts = inspect_store(stored, top=top, watchers=watchers)
        else:
            facts = write_page(stored, html, top=top, watchers=watchers)
    if html is not None:
        say(f"inspect: wrote {html}")
    if table is not None:
        say(f"inspect: wrote {counted(table.samples, 'sample')} to {export}")
    if as_json:
        print_json(facts)
    elif html is None and export is None:
        show(store_text(facts))
    click.get_current_context().exit(1 if facts["problems"] else 0)


def _refuse_inside(files: Sequence[str | None], folders: Sequence[Location | str]) -> None:
    """A file that replaces one of what is looked at would be the end of it."""
    from ..pipeline.storage import Location

    for file in files:
        for folder in map(Location.of, folders):
            if file is not None and Location.of(file).is_inside(folder):
                raise InputError(
                    "the file would lie in a folder that is looked at",
                    code="page-in-input",
                    where=file,
                    expected="a file elsewhere",
                    found=f"one in {folder}",
                    hint="name another one",
                )
