"""`teachonce benchmark`, on the command line: published protocols."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say, show
from ..storage_schemas.errors import InputError
from .command import Command, Stage
from .executor import executor_options
from .output import json_option, print_json
from .runner import make_runner
from .types import SEED, Choice, Numbers


@click.group()
def benchmark() -> None:
    """Run a published protocol from data to table, beside the published figures."""


def promptkd_options(command: Command) -> Command:
    """What `benchmark promptkd` is asked for."""
    options = (
        click.option("--data", required=True, type=click.Path(), help="Folder of the data sets, as CoOp's DATASETS.md lays them out."),
        click.option("--protocol", required=True, type=Choice(["base2novel", "cross-dataset"]),
                     help="base2novel: prompts learned on each data set's base classes. cross-dataset: prompts learned on "
                     "ImageNet teach on the others."),
        click.option("--datasets", metavar="NAMES",
                     help="Data sets with commas between them (default: those of the paper that DATA holds)."),
        click.option("--seeds", type=Numbers(SEED), default="1,2,3", show_default=True, help="Seeds of the students, with commas between them."),
        click.option("--out", default="promptkd-run", show_default=True, type=click.Path(), help="Folder for all of it."),
        click.option("--teacher", help="open_clip model that gets prompts (ViT-L-14). With --prompts: the model that they go with, "
                     "if it is not where it was."),
        click.option("--teacher-pretrained", help="Its weights: tag or path (openai, where the name does not say)."),
        click.option("--teacher-seed", type=SEED, default=1, show_default=True, help="Of the draw of shots, and the prompts."),
        click.option("--shots", type=click.IntRange(1), default=16, show_default=True, help="Images of each class to learn prompts on."),
        click.option("--prompts", metavar="FOLDER",
                     help="Use these prompts instead of learning some: FOLDER/NAME for each data set, or for cross-dataset one "
                     "folder of prompts."),
        click.option("--student", "students", multiple=True, help="Student model; may be given several times (ViT-B-16)."),
        click.option("--student-pretrained", "students_pretrained", multiple=True,
                     help="Its weights: once for all students, or once for each (openai, where the name does not say)."),
        click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, help="Passes of a student over the images."),
        click.option("--views", type=click.IntRange(1), help="Views of each image that the teacher sees (default: one for each epoch)."),
        click.option("--select-on-test", is_flag=True,
                     help="As the authors' code does: keep the epoch that is best ON THE TEST IMAGES. Optimistic: only for comparison "
                     "with the paper. Without it, the validation split decides, by its base classes (cross-dataset: all classes), or "
                     "the last epoch counts where there is none."),
        click.option("--device", type=Choice(["auto", "cpu", "cuda"]), help="Where teacher and students run (auto)."),
        click.option("--precision", type=Choice(["auto", "bf16", "fp32"]),
                     help="Of pretrain, cache and distill (auto). Class vectors are computed, and students measured, in fp32."),
        click.option("--threads", type=click.IntRange(1), help="Torch threads of one worker (default: cores, at most 4)."),
        click.option("--pretrain-options", metavar="TEXT", help="Options to append to every `teachonce pretrain`."),
        click.option("--cache-options", metavar="TEXT", help="Options to append to `teachonce cache` of images to train on."),
        click.option("--distill-options", metavar="TEXT",
                     help='Options to append to every `teachonce distill`, as in "--lr 0.01 --batch-size 32".'),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@benchmark.command(cls=Stage)
@promptkd_options
@executor_options("ray")
@json_option
@click.pass_context
def promptkd(
    ctx: click.Context, /, data: str, protocol: str, datasets: str | None, seeds: tuple[int, ...], out: str, teacher: str | None,
    teacher_pretrained: str | None, prompts: str | None, students: tuple[str, ...], students_pretrained: tuple[str, ...],
    epochs: int, views: int | None, select_on_test: bool, device: str | None, precision: str | None,
    threads: int | None, executor: str, ray_address: str | None, workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Reproduce PromptKD: prompts, one teacher's answers for all students and seeds, students, table.

    Shows the command of each stage as it runs it, and ends with accuracies (mean and standard deviation over seeds)
    beside the published ones, and with what teacher and students took. Both are saved as results.json and results.md.
    Run again, it does what is left. --executor is for `shard` and `cache`. See docs/promptkd.md.

    Exits with 1 if a data set or a student failed; the others are done.
    """
    import shlex

    from ..pipeline.storage import Location
    from ..stages.protocols.promptkd import run_promptkd
    from ..stages.protocols.request import TEACHER, Model, Request, choose_datasets, pair_students
    from ..stages.protocols.table import facts_text

    more = {}
    for stage in ("pretrain", "cache", "distill"):
        text = options.pop(f"{stage}_options")
        try:
            more[stage] = tuple(shlex.split(text or ""))
        except ValueError as error:
            raise InputError(
                "not a list of options", where=f"--{stage}-options {text}", found=error
            ) from error
    if teacher_pretrained is not None and teacher is None and prompts is not None:
        raise InputError("--teacher-pretrained needs --teacher beside --prompts", where=teacher_pretrained)
    request = Request(
        protocol=protocol, data=data, datasets=choose_datasets(datasets, protocol, data, say), out=Location.of(out),
        seeds=seeds, students=pair_students(students, students_pretrained), prompts=prompts, more=more,
        teacher=None if prompts and teacher is None else Model.of(teacher or TEACHER, teacher_pretrained),
        epochs=epochs, views=views or epochs, on_test=select_on_test,
        compute={"device": device, "precision": precision, "threads": threads}, **options,
    )  # fmt: skip
    facts = run_promptkd(request, make_runner(ctx, executor, ray_address, workers))
    if as_json:
        print_json(facts)
    else:
        show(facts_text(facts))
    ctx.exit(1 if facts["failed"] else 0)
