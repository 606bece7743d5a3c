"""`teachonce benchmark`, on the command line: published protocols."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from ..pipeline.command_runner import Runner
    from ..pipeline.storage import Location

#: Options of compute that were given, by their fields.
Given = dict[str, str | int | None]

#: The results of a protocol: as JSON, and for people.
Results = tuple[dict[str, Any], str]


@click.group()
def benchmark() -> None:
    """Run a published protocol from data to table, beside the published figures."""


def _protocol(
    name: str, settings_class: type, compute_class: type[ComputeSettings] = BenchmarkComputeSettings
) -> Callable[[Callable[[Location, Any, Given, Runner], Results]], click.Command]:
    """Make a command of a protocol: what all have in common, from the folder to the exit code."""

    def make(run: Callable[[Location, Any, Given, Runner], Results]) -> click.Command:
        @benchmark.command(name, cls=Subcommand, help=run.__doc__)
        @option("--out", default=f"{name}-run", show_default=True, type=click.Path(), help="Folder for everything.")
        @options_of("settings", settings_class)
        @json_option
        @options_of("compute", compute_class)
        @options_of("executor", ExecutorSettings)
        @click.pass_context
        def command(
            ctx: click.Context,
            out: str,
            settings: Any,
            compute: ComputeSettings,
            executor: ExecutorSettings,
            as_json: bool,
        ) -> None:
            from ..pipeline.storage import Location

            facts, text = run(Location.of(out), settings, _given(compute), make_runner(ctx, executor))
            if as_json:
                print_json(facts)
            else:
                show(text)
            ctx.exit(1 if facts["failed"] else 0)

        return command

    return make


@_protocol("promptkd", BenchmarkSettings)
def promptkd(out: Location, settings: BenchmarkSettings, compute: Given, runner: Runner) -> Results:
    """Reproduce PromptKD: prompts, one teacher's outputs for all students and seeds, students, table.

    Shows the command of each stage as it runs it, and ends with accuracies (mean and standard deviation over seeds)
    beside the published ones, and with what teacher and students took. Both are saved as results.json and results.md.
    Run again, it continues where it stopped. --executor is for `shard` and `cache`. See docs/promptkd.md.

    Exits with 1 if a data set or a student failed; the others are done.
    """
    from ..stages.protocols.promptkd import run_promptkd
    from ..stages.protocols.request import Request
    from ..stages.protocols.table import facts_text

    more = _more(settings, "pretrain", "cache", "distill")
    facts = run_promptkd(Request.of(settings, out, compute=compute, say=say, more=more), runner)
    return facts, facts_text(facts)


@_protocol("vl2v", DomainBenchmarkSettings)
def vl2v(out: Location, settings: DomainBenchmarkSettings, compute: Given, runner: Runner) -> Results:
    """VL2V-ADiP: leave one domain out, train on the others in two stages, measure on it; each domain in turn, for each seed.

    Shows the command of each stage as it runs it, and ends with accuracies (mean and standard deviation over seeds), and with what
    one pass of the teacher served: all domains, both stages, all seeds. Both are saved as results.json and results.md. Run again, it
    continues where it stopped. --executor is for `shard` and `cache`. See docs/vl2v.md.

    Exits with 1 if a student failed; the others are done.
    """
    from ..stages.protocols.domain_request import DomainRequest
    from ..stages.protocols.vl2v import run_vl2v
    from ..stages.protocols.vl2v_table import vl2v_text

    request = DomainRequest.of(settings, out, compute=compute, more=_more(settings, "cache", "distill"))
    facts = run_vl2v(request, runner)
    return facts, vl2v_text(facts)


@_protocol("reverse-distillation", DefectBenchmarkSettings, ComputeSettings)
def reverse_distillation(out: Location, settings: DefectBenchmarkSettings, compute: Given, runner: Runner) -> Results:
    """Reproduce reverse distillation (RD4AD): maps of normal images, a decoder that learns them, anomaly maps, table.

    Shows the command of each stage as it runs it, for one category after another, and ends with AUROC of images and pixels, AUPRO,
    and the size of the stored maps. All is saved as results.json and results.md. Run again, it continues where it stopped.
    --executor is for `shard`, `cache` and `anomalies`. See docs/reverse-distillation.md.

    Exits with 1 if a category failed; the others are done.
    """
    from ..stages.protocols.reverse_distillation import DefectRequest, defect_table, run_reverse_distillation

    request = DefectRequest.of(settings, out, compute=compute, more=_more(settings, "cache", "distill"))
    facts = run_reverse_distillation(request, runner)
    return facts, defect_table(facts)


def _given(compute: ComputeSettings) -> Given:
    """What is not at its default, for the commands that are run: they show the options that were given."""
    values = {field.name: (getattr(compute, field.name), field.default) for field in fields(compute)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _more(settings: object, *stages: str) -> dict[str, tuple[str, ...]]:
    """Options to append to the commands of these stages, each written in one text.

    Raises:
        InputError: a text that is no list of options.
    """
    return {stage: _words(f"{stage}_options", getattr(settings, f"{stage}_options")) for stage in stages}


def _words(field: str, text: str | None) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise InputError(
            "not a list of options",
            code="option-list-malformed",
            where=f"{option_name(field)} {text}",
            found=error,
        ) from error
