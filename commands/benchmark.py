"""`teachonce benchmark`, on the command line: published protocols."""

from __future__ import annotations

import shlex
from dataclasses import fields

import click

from ..pipeline.settings import option_name
from ..pipeline.terminal import say, show
from ..stages.models.settings import ComputeSettings
from ..stages.protocols.defect_settings import DefectBenchmarkSettings
from ..stages.protocols.domain_settings import DomainBenchmarkSettings
from ..stages.protocols.settings import BenchmarkComputeSettings, BenchmarkSettings
from ..storage_schemas.errors import InputError
from .command import Subcommand, option
from .executor import ExecutorSettings
from .options import options_of
from .output import json_option, print_json
from .runner import make_runner


@click.group()
def benchmark() -> None:
    """Run a published protocol from data to table, beside the published figures."""


@benchmark.command(cls=Subcommand)
@option("--out", default="promptkd-run", show_default=True, type=click.Path(), help="Folder for everything.")
@options_of("settings", BenchmarkSettings)
@json_option
@options_of("compute", BenchmarkComputeSettings)
@options_of("executor", ExecutorSettings)
@click.pass_context
def promptkd(
    ctx: click.Context,
    out: str,
    settings: BenchmarkSettings,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Reproduce PromptKD: prompts, one teacher's outputs for all students and seeds, students, table.

    Shows the command of each stage as it runs it, and ends with accuracies (mean and standard deviation over seeds)
    beside the published ones, and with what teacher and students took. Both are saved as results.json and results.md.
    Run again, it continues where it stopped. --executor is for `shard` and `cache`. See docs/promptkd.md.

    Exits with 1 if a data set or a student failed; the others are done.
    """
    from ..pipeline.storage import Location
    from ..stages.protocols.promptkd import run_promptkd
    from ..stages.protocols.request import Request
    from ..stages.protocols.table import facts_text

    request = Request.of(
        settings,
        Location.of(out),
        compute=_given(compute),
        say=say,
        more={stage: _words(settings, f"{stage}_options") for stage in ("pretrain", "cache", "distill")},
    )
    facts = run_promptkd(request, make_runner(ctx, executor))
    if as_json:
        print_json(facts)
    else:
        show(facts_text(facts))
    ctx.exit(1 if facts["failed"] else 0)


@benchmark.command(cls=Subcommand)
@option("--out", default="vl2v-run", show_default=True, type=click.Path(), help="Folder for everything.")
@options_of("settings", DomainBenchmarkSettings)
@json_option
@options_of("compute", BenchmarkComputeSettings)
@options_of("executor", ExecutorSettings)
@click.pass_context
def vl2v(
    ctx: click.Context,
    out: str,
    settings: DomainBenchmarkSettings,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """VL2V-ADiP: leave one domain out, train on the others in two stages, measure on it; each domain in turn, for each seed.

    Shows the command of each stage as it runs it, and ends with accuracies (mean and standard deviation over seeds), and with what
    one pass of the teacher served: all domains, both stages, all seeds. Both are saved as results.json and results.md. Run again, it
    continues where it stopped. --executor is for `shard` and `cache`. See docs/vl2v.md.

    Exits with 1 if a student failed; the others are done.
    """
    from ..pipeline.storage import Location
    from ..stages.protocols.domain_request import DomainRequest
    from ..stages.protocols.vl2v import run_vl2v
    from ..stages.protocols.vl2v_table import vl2v_text

    request = DomainRequest.of(
        settings,
        Location.of(out),
        compute=_given(compute),
        more={stage: _words(settings, f"{stage}_options") for stage in ("cache", "distill")},
    )
    facts = run_vl2v(request, make_runner(ctx, executor))
    if as_json:
        print_json(facts)
    else:
        show(vl2v_text(facts))
    ctx.exit(1 if facts["failed"] else 0)


@benchmark.command("reverse-distillation", cls=Subcommand)
@option(
    "--out", default="reverse-distillation-run", show_default=True, type=click.Path(), help="Folder for everything."
)
@options_of("settings", DefectBenchmarkSettings)
@json_option
@options_of("compute", ComputeSettings)
@options_of("executor", ExecutorSettings)
@click.pass_context
def reverse_distillation(
    ctx: click.Context,
    out: str,
    settings: DefectBenchmarkSettings,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Reproduce reverse distillation (RD4AD): maps of normal images, a decoder that learns them, anomaly maps, table.

    Shows the command of each stage as it runs it, for one category after another, and ends with AUROC of images and pixels, AUPRO,
    and the size of the stored maps. All is saved as results.json and results.md. Run again, it continues where it stopped.
    --executor is for `shard`, `cache` and `anomalies`. See docs/reverse-distillation.md.

    Exits with 1 if a category failed; the others are done.
    """
    from ..pipeline.storage import Location
    from ..stages.protocols.reverse_distillation import DefectRequest, defect_table, run_reverse_distillation

    more = {stage: _words(settings, f"{stage}_options") for stage in ("cache", "distill")}
    request = DefectRequest.of(settings, Location.of(out), compute=_given(compute), more=more)
    facts = run_reverse_distillation(request, make_runner(ctx, executor))
    if as_json:
        print_json(facts)
    else:
        show(defect_table(facts))
    ctx.exit(1 if facts["failed"] else 0)


def _given(compute: ComputeSettings) -> dict[str, str | int | None]:
    """What is not at its default, for the commands that are run: they show the options that were given."""
    values = {field.name: (getattr(compute, field.name), field.default) for field in fields(compute)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _words(
    settings: BenchmarkSettings | DefectBenchmarkSettings | DomainBenchmarkSettings, field: str
) -> tuple[str, ...]:
    """Options that a user wrote in one text."""
    text = getattr(settings, field)
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise InputError(
            "not a list of options",
            code="option-list-malformed",
            where=f"{option_name(field)} {text}",
            found=error,
        ) from error
