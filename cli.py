"""The `teachonce` command: parses options, calls a stage or the runner, prints. Heavy imports wait for the command."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .pipeline import interrupt
from .pipeline.terminal import clear, say, show, starting
from .storage_schemas.errors import InputError, TeachonceError
from .storage_schemas.near_names import did_you_mean
from .storage_schemas.plain_text import counted, typed

if TYPE_CHECKING:
    from .pipeline.command_runner import Runner
    from .pipeline.runfile import StageCall
    from .pipeline.runner import Executor, Summary
    from .stages.teachers import TeacherConfig
    from .stages.views.spec import ViewSpec

#: Where a path begins in a word of a command line: at once, behind `=`, or behind the prefix of a model in a folder.
_HOME = re.compile(r"^((?:[^~/]*[=:]|[^~]*coop:[^=~]*=)?)~(?=/|$)")

Command = TypeVar("Command", bound=Callable[..., Any])


class Stage(click.Command):
    """A command whose arguments may begin with `~` where a shell leaves it: in `--out=~/x`, `NAME=~/x`, run files."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [expand_homes(word) for word in args])


class Program(click.Group):
    """Turns the errors that a user can act on into one line and an exit code; bugs keep their traceback."""

    command_class, group_class = Stage, type

    def invoke(self, ctx: click.Context) -> Any:
        with interrupt.work():
            try:
                _require_working_folder()
                return super().invoke(ctx)
            except BaseException as error:
                clear()
                shown = _as_people_see_it(error, self.commands.get(str(ctx.invoked_subcommand)))
                if shown is error:
                    raise
                raise shown from error
            finally:
                clear()


def _require_working_folder() -> None:
    """Libraries ask for it as they are imported, Ray as it starts, and say odd things."""
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError as error:
        raise InputError("the working folder has been deleted", hint="cd to one that is there") from error


def _as_people_see_it(error: BaseException, command: click.Command | None) -> BaseException:
    """One line for what a user can act on; itself for what is a bug, or no error."""
    if isinstance(error, KeyboardInterrupt) or interrupt.happened():
        only_looks = command is not None and all(p.name not in ("out", "file") for p in command.params)
        say("Interrupted." if only_looks and not isinstance(command, click.Group) else interrupt.LINE)
        interrupt.told()
        return click.exceptions.Exit(interrupt.EXIT_CODE)
    if isinstance(error, TeachonceError):
        return click.ClickException(str(error))
    if isinstance(error, OSError):
        from .pipeline.storage import as_storage_error

        told = as_storage_error(error)
        return error if told is None else click.ClickException(str(told))
    return error


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="teachonce")
def main() -> None:
    """Run an expensive teacher once, keep what it said, train any number of students from that.

    The stages, in order: shard, vectors, cache, distill, evaluate. Every command can be stopped at any moment;
    the same command resumes. Data goes to stdout, progress to stderr.
    """
    # torch's threads spin while they wait for each other, which costs dearly where others (loader processes, a
    # second worker) want the cores: steps took up to five times as long. It counts before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def expand_homes(word: str) -> str:
    """A word of a command line with `~` in full, wherever in it a path begins."""
    from .pipeline.storage import expand_home

    return _HOME.sub(lambda found: found[1] + expand_home("~"), word)


def executor_options(
    default: str, workers: str = "Worker processes on Ray (default: what fits)."
) -> Callable[[Command], Command]:
    """--executor, --ray-address and --workers, for every command that does units of work."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--workers", type=click.IntRange(1), help=workers),
            click.option("--ray-address", help="Join this Ray cluster: `auto` or HOST:PORT. Without it, Ray starts here."),
            click.option("--executor", type=Choice(["ray", "serial"]), default=default, show_default=True,
                         help="Where units of work run."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def one_driver(command: Command) -> Command:
    """For every command that writes a stage's --out: one process at a time, from the first look at it to the last word."""

    @functools.wraps(command)
    def alone(*arguments: Any, out: str, **options: Any) -> None:
        from .pipeline.driver import only_driver
        from .pipeline.output import check_output
        from .pipeline.storage import Location

        context = click.get_current_context()
        name = str(context.info_name)
        given = (options[p.name] for p in context.command.params if isinstance(p, click.Argument) and p.name)
        inputs = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        # The lock is a file in it. Plans, which know what else is an input, look again.
        check_output(Location.of(out), name, inputs)
        with only_driver(Location.of(out), f"teachonce {name}"):
            starting(f"{name}: loading libraries, and what was given")
            command(*arguments, out=out, **options)

    return alone  # type: ignore[return-value,no-any-return]


def json_option(command: Command) -> Command:
    """--json, for every command that reports."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def make_executor(executor: str, ray_address: str | None, workers: int | None) -> Executor:
    """The executor that the options name."""
    if executor == "ray":
        from .pipeline.executors.ray import RayExecutor

        return RayExecutor(address=ray_address, workers=workers)
    if ray_address is not None:
        raise InputError("--ray-address needs --executor ray", where=ray_address)
    if workers not in (None, 1):
        raise InputError("several workers need --executor ray", where="--workers", found=workers)
    from .pipeline.executors.serial import SerialExecutor

    return SerialExecutor()


def make_training_executor(executor: str, ray_address: str | None, workers: int | None) -> Executor:
    """The executor for a student: several workers train it together."""
    if workers is None or workers == 1:
        return make_executor(executor, ray_address, workers)
    from .pipeline.executors.ray_train import RayTrainExecutor

    return RayTrainExecutor(address=ray_address, workers=workers)


def report(summary: Summary, out: object, as_json: bool) -> None:
    """What a run of a stage did: one line for people on stderr, or JSON on stdout."""
    if as_json:
        print_json({"out": str(out), **summary.__dict__})
        return
    from .pipeline.ledger import noun_of

    done = (
        f"{summary.stage}: {summary.done_before + summary.done_now} of {counted(summary.units, 'unit')} done"
    )
    before = f", {summary.done_before} of them before" if summary.done_before else ""
    see = f"see `teachonce status {typed(out)}`"
    bad = f", {summary.invalid_rows} unusable ({see})" if summary.invalid_rows else ""
    say(f"{done}{before}; {counted(summary.rows, noun_of(summary.stage))} now{bad}. Output: {out}")
    if summary.warning is not None:
        say(f"Warning: {summary.warning}. S{see[1:]}.")


def print_json(value: Any) -> None:
    """One JSON document on stdout. What a terminal would obey is escaped: such characters stand inside strings only."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    unsafe = {c for c in text if not c.isprintable()} - {"\n"}
    sys.stdout.write(text.translate({ord(c): json.dumps(c)[1:-1] for c in unsafe}) + "\n")


def teacher_options(command: Command) -> Command:
    """The teacher and how it is run, for `pretrain`, `vectors` and `cache`."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="Torch threads of one worker (default: cores, at most 4)."),
        click.option("--precision", type=Choice(["auto", "bf16", "fp32"]), default="auto", show_default=True,
                     help="bf16 autocast, or fp32. Logits are always formed in fp32."),
        click.option("--device", type=Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                     help="Where the teacher runs."),
        click.option("--teacher-crop-mode", type=Choice(["center", "squash", "border"]),
                     help="Override: resize the shorter side, both sides, or the longer side and pad with the mean colour."),
        click.option("--teacher-crop-pct", type=SHARE,
                     help="Override: share of the resized image that the centre crop keeps."),
        click.option("--teacher-interpolation", type=Choice(["bicubic", "bilinear", "lanczos", "nearest"]),
                     help="Override: resampling filter."),
        click.option("--teacher-std", type=STDS, help="Override: R,G,B standard deviation, on a scale of 0 to 1."),
        click.option("--teacher-mean", type=MEANS, help="Override: R,G,B mean, on a scale of 0 to 1."),
        click.option("--teacher-size", type=click.IntRange(1), help="Override: input size in pixels."),
        click.option("--teacher-backbone", help="For prompts: the model that they were learned for, if it is not where it was."),
        click.option("--teacher-pretrained", help="Pretrained tag, path to weights, or `random`."),
        click.option("--teacher", required=True, help="open_clip model (ViT-L-14, hf-hub:…, local-dir:…), timm:NAME, or "
                     "teachonce:FOLDER for learned prompts."),
    ):  # fmt: skip
        command = option(command)
    return command


def split_teacher_options(options: dict[str, Any]) -> TeacherConfig:
    """Take the teacher's options out of `options`."""
    from .stages.teachers import TeacherConfig

    fields = ("pretrained", "backbone", "size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    chosen = {field: options.pop(f"teacher_{field}") for field in fields}
    return TeacherConfig.of(options.pop("teacher"), **chosen)


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of several words; a misspelt one is answered with the nearest."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        near = did_you_mean(str(value), map(str, self.choices), "")
        return f"{super().get_invalid_choice_message(value, ctx)}{near and ' D' + near[1:]}"


class Finite(click.FloatRange):
    """A finite number in a range. click's own type lets NaN pass, and infinity where the range has no end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Comma-separated numbers of one type: `count` of them, or as many as one likes."""

    name = "numbers"

    def __init__(self, each: click.FloatRange | click.IntRange, count: int | None = None) -> None:
        self.each: Any = each
        self.count = count

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if self.count not in (None, len(parts)):
            self.fail(f"{value!r} is not {self.count} numbers with commas between them", param, ctx)
        return tuple(self.each.convert(part, param, ctx) for part in parts)


#: What all that takes a seed tells apart: torch's generator for the CPU looks at 32 bits, Python's takes -1 for 1.
SEED = click.IntRange(0, 2**32 - 1)

PROBABILITY, SHARE = Finite(0, 1), Finite(0, 1, min_open=True)
FROM_ZERO, ABOVE_ZERO = Finite(0), Finite(0, min_open=True)
MEANS, STDS, STRENGTHS = Numbers(Finite(), 3), Numbers(ABOVE_ZERO, 3), Numbers(FROM_ZERO, 4)
SHARES, RATIOS = Numbers(SHARE, 2), Numbers(Finite(0.001, 1000), 2)


def view_options(command: Command) -> Command:
    """Which views the teacher sees, for `cache`. No defaults: what is given with `--views center` is refused."""
    for option in (
        click.option("--view-interpolation", type=Choice(["bicubic", "bilinear", "lanczos", "nearest"]),
                     help="Random views: resampling filter (the teacher's)."),
        click.option("--view-grayscale", type=PROBABILITY, metavar="P",
                     help="Random views: probability of a gray view (0)."),
        click.option("--view-jitter-probability", type=SHARE, metavar="P",
                     help="Random views: probability of a jittered view (1 with --view-jitter)."),
        click.option("--view-jitter", type=STRENGTHS, metavar="B,C,S,H",
                     help="Random views: strengths of torchvision's ColorJitter: brightness, contrast, saturation, "
                     "and hue up to 0.5 (0,0,0,0)."),
        click.option("--view-seed", type=SEED, help="Random views: seed of boxes and colours (0)."),
        click.option("--view-flip", type=PROBABILITY, metavar="P",
                     help="Random views: probability of a mirrored view (0.5)."),
        click.option("--view-ratio", type=RATIOS, help="Random views: range of the aspect ratio (3/4 to 4/3)."),
        click.option("--view-scale", type=SHARES, help="Random views: range of the area's share (0.08,1)."),
        click.option("--views", default="center", show_default=True, help="Number of random views K, or `center`."),
    ):  # fmt: skip
        command = option(command)
    return command


def split_view_options(options: dict[str, Any]) -> tuple[ViewSpec | None, str | None]:
    """Take the views' options out of `options`: the spec, None for centre views, and the filter if one was given."""
    from .stages.views.spec import ViewSpec

    views = options.pop("views")
    fields = ("seed", "scale", "ratio", "flip", "jitter", "jitter_probability", "grayscale", "interpolation")
    chosen = {field: options.pop(f"view_{field}") for field in fields}
    given = {field: value for field, value in chosen.items() if value is not None}
    if views == "center":
        if given:
            names = ", ".join(f"--view-{field.replace('_', '-')}" for field in given)
            also = "; a centre view's filter is --teacher-interpolation" if "interpolation" in given else ""
            raise InputError(
                "these options are for random views", where=names, expected="--views K", found="--views center",
                hint=f"give a number of views, or leave them out{also}",
            )  # fmt: skip
        return None, None
    if not (views.isdecimal() and int(views) > 0):
        raise InputError(
            "impossible number of views", where="--views", expected="a number or `center`", found=views
        )
    interpolation = given.pop("interpolation", None)
    return ViewSpec(kind="random_resized_crop", count=int(views), **given), interpolation


@main.command()
@click.argument("corpus", nargs=-1, required=True, metavar="CORPUS…")
@click.option("--out", required=True, type=click.Path(), help="Folder for the shards.")
@click.option(
    "--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Samples a shard."
)
@click.option("--name", help="Name of the corpus, part of every sample's key (default: the sources' names).")
@click.option(
    "--resize",
    type=click.IntRange(1),
    help="Reduce the shorter side to this many pixels (re-encodes as JPEG).",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    help="Larger images are recorded as unusable (default: 89 million).",
)
@click.option(
    "--max-bytes",
    type=click.IntRange(1, 1 << 30),
    default=1 << 30,
    help="Longer files are recorded as unusable; a URL's body is left there (default and most: 1 GiB).",
)
@click.option(
    "--order",
    type=Choice(["hash", "source"]),
    help="Order of rows: `hash` mixes classes and sources, `source` keeps the sources' own (default: hash; shards that were "
    "begun keep theirs).",
)
@click.option(
    "--give-up-on-unreachable",
    is_flag=True,
    help="Record images that cannot be read at the moment as unusable; without it they fail, and are tried again.",
)
@executor_options("ray")
@json_option
@one_driver
def shard(
    corpus: tuple[str, ...], out: str, max_pixels: int | None, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a corpus as WebDataset tars with a frozen manifest.

    CORPUS is one or more folders, tars (plain or WebDataset), or lists of paths and URLs (text, CSV, JSON, Parquet), each
    PATH or NAME=PATH; or coop:NAME/SPLIT=DATA for a split of a data set (see `teachonce datasets`). Labels, where
    folder names, sidecar files or splits give them, are kept as metadata; nothing needs them.
    """
    from .pipeline.runner import run_stage
    from .stages.corpora.images import MAX_PIXELS
    from .stages.corpora.label import no_labels_text
    from .stages.corpora.left_out import left_out_text
    from .stages.shard import plan_shard

    stage = plan_shard(corpus, out=out, max_pixels=max_pixels or MAX_PIXELS, **options)
    report(run_stage(stage, stage.out, make_executor(executor, ray_address, workers)), stage.out, as_json)
    if told := left_out_text(stage.corpus.left_out, skipped=stage.corpus.skipped):
        say(f"{told[0].upper()}{told[1:]}.")
    if told := no_labels_text(stage.corpus.no_labels):
        say(f"Warning: {told}.")


@main.command()
@click.argument("data", type=click.Path())
@json_option
def datasets(data: str, as_json: bool) -> None:
    """List which of CoOp's and PromptKD's data sets a folder holds, and what is missing of the others.

    DATA is the folder that CoOp's DATASETS.md lays out. A split of what is found is coop:NAME/SPLIT=DATA wherever
    images are named, as in coop:oxford_pets/train=DATA, and coop:NAME=DATA is a class list. Base classes are the
    first half. See docs/datasets.md.

    Exits with 1 if no data set is found.
    """
    from .stages.datasets import overview, overview_json, overview_text

    states = overview(data)
    if as_json:
        print_json(overview_json(states))
    else:
        show(overview_text(states))
    if not any(state.found for state in states):
        raise InputError(
            "no data set that can be used", where=data, hint="see docs/datasets.md for the layout"
        )


@main.command()
@click.argument("text", required=False)
@click.option(
    "--teacher",
    "role",
    flag_value="teacher",
    help="Only what can be a teacher: with a classifier or a text tower.",
)
@click.option("--student", "role", flag_value="student", help="Only what can be a student: all of them.")
@json_option
def models(text: str | None, role: str | None, as_json: bool) -> None:
    """List the models that can be named, with image size, width, parameters and pretrained weights.

    TEXT is part of the name (several words must all be in it). Weights are tags for --teacher-pretrained and
    --student-pretrained; with --json each says where it is downloaded from. Beside these, hf-hub:ORG/REPO and
    local-dir:FOLDER name open_clip models elsewhere, and teachonce:FOLDER a teacher with learned prompts.

    Exits with 1 if no model has such a name.
    """
    from .stages.model_list import list_models, models_text

    listed = list_models(text, role=role)
    if as_json:
        print_json([model.to_json() for model in listed])
    else:
        show(models_text(listed))


def pretraining_options(command: Command) -> Command:
    """What PromptSRC's defaults can be replaced by. Names are those of `PretrainSettings`."""
    for option in (
        click.option("--class-chunk", type=click.IntRange(0), metavar="CLASSES",
                     help="Classes whose activations are held at a time, at the cost of computing them twice (32; 0: all)."),
        click.option("--gpa-std", type=Finite(0.001, 1e6), help="Standard deviation of that Gaussian, in epochs (1)."),
        click.option("--gpa-mean", type=Finite(0, 1e6), help="Mean of the Gaussian that weighs the epochs' prompts, in epochs from 1 "
                     "(3/4 of all epochs: 15 of 20)."),
        click.option("--logits-weight", type=FROM_ZERO, help="Factor of the divergence from the frozen model's logits (1)."),
        click.option("--image-weight", type=FROM_ZERO, help="Factor of the distance to frozen image features (10)."),
        click.option("--text-weight", type=FROM_ZERO, help="Factor of the distance to frozen text features (25)."),
        click.option("--text-depth", type=click.IntRange(1), help="Layers with text prompts (9; at most the tower's)."),
        click.option("--vision-depth", type=click.IntRange(1), help="Layers with vision prompts (9; at most the tower's)."),
        click.option("--text-length", type=click.IntRange(0), help="Text prompt tokens a layer (4)."),
        click.option("--vision-length", type=click.IntRange(0), help="Vision prompt tokens a layer (4)."),
        click.option("--context", help="Words that text prompts start from (a photo of a)."),
        click.option("--clip-norm", type=FROM_ZERO, help="Largest norm of the gradients (0: no limit)."),
        click.option("--weight-decay", type=FROM_ZERO, help="On all prompts (0.0005)."),
        click.option("--warmup-epochs", type=click.IntRange(0), help="Epochs of warm-up (1)."),
        click.option("--schedule", type=Choice(["cosine", "coop", "constant"]),
                     help="Learning rate: cosine by step, CoOp's by epoch, or constant (coop)."),
        click.option("--optimizer", type=Choice(["sgd", "adamw"]), help="SGD with momentum 0.9, or AdamW (sgd)."),
        click.option("--lr", type=ABOVE_ZERO, help="Highest learning rate (0.005; the papers' ViT-B/16: 0.0025)."),
        click.option("--batch-size", type=click.IntRange(1), help="Images a step (8; the papers' ViT-B/16: 4)."),
        click.option("--epochs", type=click.IntRange(1), help="Passes over the shots (20)."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.argument("images", type=click.Path())
@teacher_options
@click.option(
    "--classes",
    help="All classes, base and novel: a file (one name a line, or a JSON list), `coop:NAME=DATA`, or a folder of shards "
    "(default: the data set's class list, or the labels of the images).",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="Learn on these classes only: a file with one name a line, names with commas between them, or @half for the "
    "first half of the class ids (default: all).",
)
@click.option(
    "--shots", type=click.IntRange(1), default=16, show_default=True, help="Images of each class to learn on."
)
@click.option(
    "--seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Of the draw of shots, their order and views, and the prompts.",
)
@click.option("--out", required=True, type=click.Path(), help="Folder for the prompts.")
@pretraining_options
@click.option("--view-scale", type=SHARES, help="Views of the shots: range of the area's share (0.08,1).")
@click.option("--view-ratio", type=RATIOS, help="Views of the shots: range of the aspect ratio (3/4 to 4/3).")
@click.option(
    "--view-flip",
    type=PROBABILITY,
    metavar="P",
    help="Views of the shots: probability of a mirrored view (0.5).",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Write a checkpoint every so many steps, beside the one after each epoch.",
)
@executor_options("serial")
@json_option
@one_driver
def pretrain(
    images: str, out: str, classes: str | None, base_classes: str | None, shots: int, seed: int, precision: str,
    device: str, threads: int | None, checkpoint_every: int | None, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Tune a teacher's prompts on a few labelled images of each base class, after PromptSRC.

    IMAGES is a folder of class folders, a tar, a list, a folder of shards, or coop:NAME/SPLIT=DATA for a split of a
    data set. The model stays as it is; the prompts (some hundred kilobytes) are then a teacher: --teacher
    teachonce:FOLDER. Options show the published value for ViT-L/14 in brackets.
    """
    from .pipeline.runner import run_stage
    from .stages.models.compute import training_compute
    from .stages.pretrain import plan_pretrain

    config = split_teacher_options(options)
    views = {name: options.pop(f"view_{name}") for name in ("scale", "ratio", "flip")}
    stage = plan_pretrain(
        images, config, out=out, classes=classes, base=base_classes, shots=shots, seed=seed, options=options,
        views={name: value for name, value in views.items() if value is not None},
        compute=training_compute(device, precision, threads, elsewhere=executor == "ray"),
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    for note in stage.notes:
        say(f"pretrain: {note}")
    report(
        run_stage(stage, stage.out, make_executor(executor, ray_address, workers), progress=False),
        stage.out,
        as_json,
    )
    stage.discard_checkpoint()


@main.command()
@teacher_options
@click.option(
    "--classes",
    help="Class list: a file (one name a line, or a JSON list), `imagenet`, `coop:NAME=DATA` for a data set's, "
    "or a folder of shards for its labels. Not needed where the teacher has classes of its own.",
)
@click.option(
    "--templates",
    help="Prompt templates: a file, `openai-imagenet` or `simple-imagenet` (default: 'a photo of a {}.').",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="Mark base classes, the others being novel: a file with one name a line, names with commas between them, or "
    "@half for the first half (default: those that the teacher's prompts were learned on).",
)
@click.option(
    "--check",
    metavar="IMAGES",
    help="Labelled images to try the vectors on: refused if they are no better than guessing, or if learned prompts do "
    "half as well as none.",
)
@click.option("--out", required=True, type=click.Path(), help="Target store.")
@executor_options("serial")
@json_option
@one_driver
def vectors(
    out: str, classes: str | None, templates: str | None, base_classes: str | None, check: str | None, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Compute class vectors: text features of class names, or the rows of a classifier's head."""
    from .pipeline.runner import run_stage
    from .stages.models.compute import resolve_compute
    from .stages.vectors import plan_vectors

    config = split_teacher_options(options)
    if options["precision"] == "auto":
        options["precision"] = "fp32"  # it is done once
    stage = plan_vectors(
        config, out=out, classes=classes, templates=templates, base=base_classes, check=check,
        compute=resolve_compute(**options, elsewhere=executor == "ray"),
    )  # fmt: skip
    for note in stage.notes:
        say(f"vectors: {note}")
    report(run_stage(stage, stage.store, make_executor(executor, ray_address, workers)), stage.store, as_json)


@main.command()
@click.argument("shards", type=click.Path())
@teacher_options
@click.option("--out", required=True, type=click.Path(), help="Target store (Zarr).")
@view_options
@click.option(
    "--targets",
    type=Choice(["auto", "logits", "embedding", "both"]),
    default="auto",
    show_default=True,
    help="auto: logits where there are class vectors and no more classes than channels, else the embedding.",
)
@click.option(
    "--encoding",
    type=Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="How targets are stored. fp16 keeps logits relative to their maximum.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Views in a forward pass (default: 64 on the CPU, 256 on CUDA). Decides low bits, so it is fingerprinted.",
)
@executor_options("ray")
@json_option
@one_driver
def cache(
    shards: str, out: str, targets: str, encoding: str, batch_size: int | None, executor: str,
    ray_address: str | None, workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Run the teacher once over every view of every sample and store what it says.

    SHARDS is a folder that `teachonce shard` wrote. Options of random views show their default in brackets.
    """
    from .pipeline.runner import run_stage
    from .stages.cache import plan_cache
    from .stages.models.compute import resolve_compute
    from .storage_schemas.encodings import ENCODINGS

    config = split_teacher_options(options)
    views, interpolation = split_view_options(options)
    compute = resolve_compute(**options, elsewhere=executor == "ray")
    stage = plan_cache(
        shards, config, out=out, views=views, targets=targets, encoding=ENCODINGS[encoding], compute=compute,
        batch_size=batch_size or (64 if compute.device == "cpu" else 256), view_interpolation=interpolation,
    )  # fmt: skip
    for note in stage.notes:
        say(f"cache: {note}")
    if stage.vectors is None and targets == "auto":
        say("No logits: the store has no class vectors, or more classes than channels; keeping embeddings.")
    report(run_stage(stage, stage.store, make_executor(executor, ray_address, workers)), stage.store, as_json)


@main.command("import")
@click.argument("checkpoint", type=click.Path())
@click.option(
    "--teacher",
    help="PromptSRC: the open_clip model that it was trained with (ViT-L-14, hf-hub:…, local-dir:…).",
)
@click.option(
    "--teacher-pretrained", help="PromptSRC: that model's weights: a pretrained tag (openai) or a path."
)
@click.option(
    "--classes",
    help="PromptSRC: all classes, base and novel: a file (one name a line, or a JSON list), `imagenet`, `coop:NAME=DATA`, or "
    "a folder of shards.",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="PromptSRC: the classes that it was trained on (default: those whose texts are in the file; all where it has none).",
)
@click.option("--context", help="PromptSRC: words that its text prompts start from (a photo of a).")
@click.option(
    "--weights",
    type=Choice(["checkpoint", "backbone"]),
    help="PromptSRC: whose frozen weights to use: the file's, which its authors ran, or the model's (checkpoint).",
)
@click.option(
    "--student", help="PromptKD: the open_clip model that the student was trained from (ViT-B-16, …)."
)
@click.option(
    "--student-pretrained", help="PromptKD: that model's weights: a pretrained tag (openai) or a path."
)
@click.option("--vectors", type=click.Path(), help="PromptKD: the store with its teacher's class vectors.")
@click.option(
    "--out", required=True, type=click.Path(), help="Folder for the prompts, or for the student bundle."
)
@json_option
@one_driver
def import_checkpoint(
    checkpoint: str, teacher: str | None, teacher_pretrained: str | None, base_classes: str | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Bring a checkpoint of PromptSRC's or PromptKD's authors here.

    CHECKPOINT is a file that their trainers wrote, such as VLPromptLearner/model.pth.tar-20; nothing in it is run. A
    PromptSRC teacher becomes a folder for --teacher teachonce:FOLDER; a PromptKD student becomes a bundle for
    `evaluate`, `predict`, or your own code. Every key is accounted for, or the file is refused.
    """
    from .pipeline.executors.serial import SerialExecutor
    from .pipeline.runner import run_stage
    from .stages.import_checkpoint import plan_import
    from .stages.published.report import found_text
    from .stages.teachers import TeacherConfig

    config = None if teacher is None else TeacherConfig.of(teacher, teacher_pretrained)
    stage = plan_import(checkpoint, teacher=config, base=base_classes, **options)
    summary = run_stage(stage, stage.out, SerialExecutor(), progress=False)
    if as_json:
        print_json({"out": str(stage.out), **summary.__dict__, "checkpoint": stage.found.to_json()})
        return
    say(found_text(stage.found))
    for note in stage.found.notes:
        say(f"import: {note}")
    report(summary, stage.out, as_json)


def student_options(command: Command) -> Command:
    """The student and its preprocessing, for `distill`."""
    for option in (
        click.option("--student-crop-mode", type=Choice(["center", "squash", "border"]),
                     help="Override: at test time, resize the shorter side, both sides, or the longer side and pad with the "
                     "mean colour."),
        click.option("--student-crop-pct", type=SHARE,
                     help="Override: share of the resized image that the test-time centre crop keeps."),
        click.option("--student-interpolation", type=Choice(["bicubic", "bilinear", "lanczos", "nearest"]),
                     help="Override: resampling filter at test time."),
        click.option("--student-std", type=STDS, help="Override: R,G,B standard deviation, on a scale of 0 to 1."),
        click.option("--student-mean", type=MEANS, help="Override: R,G,B mean, on a scale of 0 to 1."),
        click.option("--student-size", type=click.IntRange(1), help="Override: input size in pixels."),
        click.option("--student-pretrained", help="Pretrained tag, path to weights, `random`, or for timm `default`. "
                     "Without it, kd starts from seeded random weights; promptkd needs it."),
        click.option("--student", required=True, help="open_clip model (ViT-B-16, hf-hub:…, local-dir:…) or timm:NAME."),
    ):  # fmt: skip
        command = option(command)
    return command


def training_options(command: Command) -> Command:
    """What a recipe's defaults can be replaced by. Names are those of `recipes.Settings`."""
    for option in (
        click.option("--embedding-weight", type=FROM_ZERO, help="kd: factor of the embedding term (1)."),
        click.option("--embedding-loss", type=Choice(["none", "cosine", "mse"]),
                     help="kd: also draw embeddings to the teacher's, if they are cached (none)."),
        click.option("--prompt-depth", type=click.IntRange(1), help="promptkd: layers with prompts (9; at most the student's)."),
        click.option("--prompt-length", type=click.IntRange(0), help="promptkd: visual prompt tokens a layer (4)."),
        click.option("--projector", type=Choice(["linear", "mlp", "none"]),
                     help="From the student's features to the teacher's width (kd linear, promptkd mlp)."),
        click.option("--loss-weight", type=FROM_ZERO, help="Factor of the divergence (kd 1, promptkd 1000)."),
        click.option("--temperature", type=ABOVE_ZERO, help="Of the softmaxes (1)."),
        click.option("--ema", type=Finite(0, 1, max_open=True), metavar="DECAY",
                     help="Keep a moving average of the weights, and give the bundle that (0: none)."),
        click.option("--clip-norm", type=FROM_ZERO, help="Largest norm of the gradients (0: no limit)."),
        click.option("--accumulate", type=click.IntRange(1), metavar="PARTS",
                     help="Take each batch through the student in so many equal parts, to save memory (1)."),
        click.option("--warmup-epochs", type=click.IntRange(0), help="Epochs of warm-up (1)."),
        click.option("--schedule", type=Choice(["cosine", "coop", "constant"]),
                     help="Learning rate: cosine by step, CoOp's by epoch, or constant (kd cosine, promptkd coop)."),
        click.option("--optimizer", type=Choice(["sgd", "adamw"]), help="kd adamw, promptkd sgd with momentum 0.9."),
        click.option("--weight-decay", type=FROM_ZERO, help="kd 0.05 on matrices, promptkd 0.0005 on all that trains."),
        click.option("--lr", type=ABOVE_ZERO, help="Highest learning rate (kd 0.001, promptkd 0.005)."),
        click.option("--batch-size", type=click.IntRange(1), help="Samples a step (kd 64, promptkd 8)."),
        click.option("--epochs", type=click.IntRange(1), help="Passes over the corpus; epoch e reads view e mod K (20)."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@student_options
@click.option("--recipe", required=True, type=Choice(["kd", "promptkd"]), help="Distillation method.")
@click.option("--out", required=True, type=click.Path(), help="Folder for the student bundle.")
@click.option(
    "--vectors", type=click.Path(), help="Use the class vectors of this other store; needs cached embeddings."
)
@click.option(
    "--views",
    type=click.IntRange(1),
    help="Read only the first so many of the store's K views (default: all).",
)
@click.option(
    "--reuse-views", is_flag=True, help="Fewer views than epochs are meant: do not mention it in the end."
)
@click.option(
    "--accept-other-pixels",
    is_flag=True,
    help="Train even if this machine renders images otherwise than the teacher saw them.",
)
@click.option(
    "--validation",
    metavar="IMAGES",
    help="Labelled images (folder, tar, list, coop:…, shards): measured after each epoch; the bundle gets the best weights.",
)
@click.option(
    "--validation-by",
    type=Choice(["top1", "base", "harmonic-mean"]),
    default="top1",
    show_default=True,
    help="What the best epoch is best by: accuracy over all classes, of base images among base classes, or the harmonic "
    "mean of that and of novel images among novel classes (classes as `vectors --base-classes` marked them).",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    metavar="EPOCHS",
    help="Stop after so many epochs without a better validation accuracy (0: never).",
)
@training_options
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of the order, new weights and dropout."
)
@click.option(
    "--precision",
    type=Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the student's backbone; logits and loss are always fp32. auto: bf16 on CUDA, fp32 on the CPU.",
)
@click.option(
    "--device",
    type=Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the student trains.",
)
@click.option("--threads", type=click.IntRange(1), help="Torch threads (default: cores, at most 4).")
@click.option(
    "--compile", "compiled", is_flag=True, help="Use torch.compile: slow to start, then faster on GPUs."
)
@click.option(
    "--loader-workers",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Processes that prepare batches ahead; they decide no bytes.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(1),
    metavar="STEPS",
    help="Write a checkpoint every so many steps, beside the one after each epoch.",
)
@click.option("--use-gpu", is_flag=True, help="One GPU for each worker: the same as --device cuda.")
@executor_options(
    "serial",
    workers="Processes that train one student together, on Ray: each batch is shared out among them (1).",
)
@json_option
@one_driver
def distill(
    shards: str, store: str, out: str, recipe: str, vectors: str | None, views: int | None, reuse_views: bool,
    accept_other_pixels: bool, validation: str | None, validation_by: str, seed: int, precision: str, device: str, threads: int | None, compiled: bool,
    loader_workers: int, checkpoint_every: int | None, use_gpu: bool, executor: str, ray_address: str | None,
    workers: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Train a student from shards and store. The teacher is never loaded.

    SHARDS is the folder that `teachonce shard` wrote, STORE the target store that `teachonce cache` made from it.
    Options of a recipe show its default in brackets.
    """
    from .pipeline.runner import run_stage
    from .stages.distill import plan_distill
    from .stages.models.compute import training_compute
    from .stages.training.build import StudentConfig

    together = workers is not None and workers > 1
    if use_gpu:
        if device == "cpu":
            raise InputError("--use-gpu and --device cpu exclude each other", hint="leave one of them out")
        device = "cuda"
    fields = ("pretrained", "size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    config = StudentConfig(model=options.pop("student"), **{f: options.pop(f"student_{f}") for f in fields})
    stage = plan_distill(
        shards, store, config, out=out, recipe=recipe, options=options, vectors=vectors, views=views,
        compute=training_compute(device, precision, threads, elsewhere=together or executor == "ray"), seed=seed,
        validation=validation, validation_by=validation_by, compiled=compiled, reuse_views=reuse_views,
        accept_other_pixels=accept_other_pixels, workers=workers or 1, loader_workers=loader_workers,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    for note in stage.notes:
        say(f"distill: {note}")
    report(
        run_stage(stage, stage.out, make_training_executor(executor, ray_address, workers), progress=False),
        stage.out,
        as_json,
    )
    stage.discard_checkpoint()
    if stage.reuse is not None:
        say(f"distill: {stage.reuse}")


@main.command()
@click.argument("store", type=click.Path())
@click.argument("keys", nargs=-1, metavar="[KEY]…")
@click.option(
    "--shards",
    type=click.Path(),
    help="Folder of the store's shards, for paths (default: as `cache` recorded).",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Classes, samples and examples to name.",
)
@json_option
def inspect(store: str, keys: tuple[str, ...], shards: str | None, top: int, as_json: bool) -> None:
    """Look into a target store, finished or not.

    Without KEY: schema, fingerprint, coverage, sizes, value ranges, and what the soft labels look like. With KEYs: for
    each sample its path, views and top classes. A KEY is a sample's key, its first 6 or more characters, a row number,
    an image's path, or the end of one.

    Exits with 1 if the store has problems, such as NaN in a valid row.
    """
    from .stages.inspect import inspect_store
    from .stages.measures.stored import Stored
    from .stages.reports.inspect_sample import inspect_sample
    from .stages.reports.inspect_text import sample_text, store_text

    stored = Stored.open(store, shards)
    if keys:
        samples = [inspect_sample(stored, key, top=top) for key in keys]
        if as_json:
            print_json({"samples": samples})
        else:
            show("\n\n".join(sample_text(sample) for sample in samples))
        return
    facts = inspect_store(stored, top=top)
    if as_json:
        print_json(facts)
    else:
        show(store_text(facts))
    click.get_current_context().exit(1 if facts["problems"] else 0)


@main.command()
@click.argument("path", type=click.Path())
@json_option
def status(path: str, as_json: bool) -> None:
    """How far each stage got, how fast, and where its time went.

    PATH is a folder of shards, of prompts, a target store, a student bundle, or a run folder that holds some of these.

    Exits with 0 if everything is done, 3 if units are left, 4 if units failed (and 1 on an error).
    """
    from .stages.status import exit_code, folder_status, status_text

    facts = folder_status(path)
    if as_json:
        print_json(facts)
    else:
        show(status_text(facts))
    click.get_current_context().exit(exit_code(facts))


def inference_options(command: Command) -> Command:
    """How a student bundle is run, for `evaluate` and `predict`."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="Threads that decode and compute (default: cores, at most 4)."),
        click.option("--precision", type=Choice(["auto", "bf16", "fp32"]), default="fp32", show_default=True,
                     help="Of the student's backbone; auto: bf16 where it is faster."),
        click.option("--device", type=Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
                     help="Where the student runs."),
    ):  # fmt: skip
        command = option(command)
    return command


@main.command()
@click.argument("bundle", type=click.Path())
@click.argument("images", type=click.Path())
@click.option(
    "--store",
    type=click.Path(),
    help="Also measure agreement with this target store's teacher, on the pictures that it saw.",
)
@click.option(
    "--base-classes",
    metavar="FILE|NAMES|@half",
    help="Also measure base and novel classes apart: a file with one name a line, names with commas between "
    "them, or @half for the first half of the class ids.",
)
@click.option(
    "--name", help="Corpus name that `shard` was given, to find images that are not in shards in the store."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images in a forward pass."
)
@click.option(
    "--accept-other-pixels",
    is_flag=True,
    help="With --store: go on where this machine renders views otherwise than the one that cached them.",
)
@inference_options
@json_option
def evaluate(
    bundle: str, images: str, store: str | None, base_classes: str | None, name: str | None, batch_size: int,
    accept_other_pixels: bool, device: str, precision: str, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure a student: accuracy where labels are class names, agreement with its teacher where a store knows.

    BUNDLE is a folder that `teachonce distill` wrote; IMAGES a folder of class folders, a tar, a list,
    coop:NAME/SPLIT=DATA for a split of a data set, or a folder of shards. Labels match class names whatever their
    case, underscores and hyphens, and by any of the synonyms of a name like "tench, Tinca tinca"; others are listed
    and left out. No teacher is loaded.

    Base images are judged among base classes only and novel images among novel classes only, as in PromptKD.
    Agreement is measured on the store's first view: the student sees the box that the teacher saw. Images that are
    no shards of the store's corpus are compared by content with the shards that it was made from.
    """
    from .stages.evaluate import evaluate as measure
    from .stages.models.compute import resolve_compute
    from .stages.reports.evaluate_text import evaluation_json, evaluation_text

    starting("evaluate: loading the student")
    result = measure(
        bundle, images, compute=resolve_compute(device, precision, threads), store=store, base=base_classes,
        name=name, batch_size=batch_size, accept_other_pixels=accept_other_pixels,
    )  # fmt: skip
    for note in result.notes:
        say(f"evaluate: {note}")
    facts = evaluation_json(result)
    if as_json:
        print_json({"bundle": bundle, "image_set": images, "store": store, **facts})
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


@main.command()
@click.argument("bundle", type=click.Path())
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, metavar="K", help="Classes an image."
)
@inference_options
@json_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    top: int,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Show the most probable classes of images (paths or URLs).

    BUNDLE is a folder that `teachonce distill` wrote. An image that cannot be used is named on stderr; the others
    are done, and the exit code is 1.
    """
    from .stages.models.compute import resolve_compute
    from .stages.predict import predict as look
    from .stages.predict import prediction_json, prediction_text

    failed, said = False, []
    for prediction in look(bundle, images, top=top, compute=resolve_compute(device, precision, threads)):
        if prediction.reason:
            failed = True
            say(f"{prediction.image}: {prediction.reason}")
        if as_json:
            said.append(prediction_json(prediction))
        elif not prediction.reason:
            show(prediction_text(prediction))
    if as_json:
        print_json(said)
    click.get_current_context().exit(1 if failed else 0)


@main.command("run")
@click.argument("file", type=click.Path(), metavar="FILE.yaml")
@json_option
@click.pass_context
def run_file(ctx: click.Context, file: str, as_json: bool) -> None:
    """Run the stages that a YAML file describes, skipping what is done.

    Each stage is a command of this program with its options; paths are relative to the file. All options, and
    whether all that is read is there, are checked before the first stage starts. See docs/run-files.md. With --json each stage prints a document.
    """
    import contextlib

    from .commands.run_inputs import RunInputs
    from .pipeline.runfile import as_arguments, read_runfile
    from .pipeline.storage import Location

    location, inputs = Location.of(file), RunInputs()
    runfile = read_runfile(location)
    commands = {
        n: c for n, c in main.commands.items() if not isinstance(c, click.Group) and c is not run_file
    }
    with contextlib.chdir(location.path.parent):
        calls = []
        for stage in runfile.stages:
            command = commands.get(stage.command)
            if command is None:
                hint = did_you_mean(stage.command, commands, f"one of {', '.join(sorted(commands))}")
                raise InputError("unknown stage", where=stage.where, hint=hint)
            _refuse_unknown_keys(stage, command)
            takes = {p.name for p in command.params}
            options = {**{k: v for k, v in runfile.defaults.items() if k in takes}, **stage.options}
            if as_json and any("--json" in p.opts for p in command.params):
                options["json"] = True
            positional = [p.name for p in command.params if isinstance(p, click.Argument) and p.name]
            try:
                calls.append(
                    command.make_context(stage.command, as_arguments(options, positional), parent=ctx)
                )
            except click.UsageError as error:
                raise InputError(
                    "a stage's options are wrong", where=stage.where, found=error.format_message().rstrip("."),
                    hint=f"teachonce {stage.command} --help",
                ) from error  # fmt: skip
            inputs.check(stage.command, calls[-1].params, stage.where)
        for number, call in enumerate(calls, 1):
            say(f"[{number}/{len(calls)}] {call.info_name}")
            with call:
                call.command.invoke(call)


def _refuse_unknown_keys(stage: StageCall, command: click.Command) -> None:
    """A stage's keys are the names of its command's arguments and options."""
    known = {p.name or "" for p in command.params if isinstance(p, click.Argument)}
    known |= {name.lstrip("-") for p in command.params if isinstance(p, click.Option) for name in p.opts}
    for key in stage.options:
        if key.replace("_", "-") not in known and key not in known:
            hint = did_you_mean(key.replace("_", "-"), sorted(known), f"teachonce {stage.command} --help")
            raise InputError(
                "a stage has no such option", where=stage.where, found=key.replace("_", "-"), hint=hint
            )


@main.command()
@click.option("--out", default="demo-run", show_default=True, type=click.Path(), help="Folder for all of it.")
@executor_options("ray")
@json_option
@click.pass_context
def demo(
    ctx: click.Context, out: str, executor: str, ray_address: str | None, workers: int | None, as_json: bool
) -> None:
    """Run every stage on small images with a tiny teacher and student, and compare what came out.

    Takes less than 3 minutes on 2 cores, offline. It draws 3,000 images of coloured digits without labels, shows
    the command of each stage as it runs it, and ends with accuracies on held-out images of base and novel classes.
    Run again, it does what is left. --executor is for `shard` and `cache` of the images to train on.
    """
    from .stages.demo.report import facts_text
    from .stages.demo.tour import run_demo

    facts = run_demo(out, make_runner(ctx, executor, ray_address, workers))
    if as_json:
        print_json(facts)
    else:
        show(facts_text(facts))


@main.group()
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


@benchmark.command()
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

    from .pipeline.storage import Location
    from .stages.protocols.promptkd import run_promptkd
    from .stages.protocols.request import TEACHER, Model, Request, choose_datasets, pair_students
    from .stages.protocols.table import facts_text

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


def make_runner(ctx: click.Context, executor: str, ray_address: str | None, workers: int | None) -> Runner:
    """What a command that runs other commands needs: they run here, `shard` and `cache` where the options say."""
    from .pipeline.command_runner import Runner

    if executor == "serial":
        make_executor(executor, ray_address, workers)  # refuses options that go with Ray only
    program_context = ctx.find_root()

    def make_context(words: Sequence[str]) -> click.Context:
        return main.commands[words[0]].make_context(words[0], list(words[1:]), parent=program_context)

    def command(words: Sequence[str]) -> None:
        with make_context(words) as call:
            call.command.invoke(call)

    def check(words: Sequence[str]) -> None:
        try:
            make_context(words)
        except click.UsageError as error:
            raise InputError(
                "a command's options are wrong", where=f"teachonce {words[0]}", found=error.format_message().rstrip("."),
                hint=f"teachonce {words[0]} --help",
            ) from error  # fmt: skip

    def leave() -> None:
        if executor == "ray":
            from .pipeline.executors.ray import disconnect

            disconnect()

    where = ["--executor", executor]
    for option, value in (("--ray-address", ray_address), ("--workers", workers)):
        where += [option, str(value)] if value is not None else []
    program, beside = called_as()
    return Runner(
        command=command, check=check, leave=leave, say=say, program=program, beside=beside, where=tuple(where)
    )


def called_as() -> tuple[str, str]:
    """How a person calls this program, and what goes before the name of one installed beside it.

    `teachonce` and nothing where PATH finds it; else as it was called: a path, or `python -m teachonce`.
    """
    import shlex
    from pathlib import Path

    script = Path(sys.argv[0])
    if script.resolve() == Path(__file__).resolve().with_name("__main__.py"):
        python = Path(sys.executable)
        return f"{shlex.quote(str(python))} -m teachonce", shlex.quote(f"{python.parent}/")
    on_path = str(script.absolute().parent) in os.environ.get("PATH", "").split(os.pathsep)
    if script.name != "teachonce" or on_path:
        return "teachonce", ""
    return shlex.quote(str(script)), shlex.quote(f"{script.parent}/")
