"""`teachonce pretrain`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from .command import Command, Stage, one_driver
from .executor import executor_options, make_executor
from .options import split_teacher_options, teacher_options
from .output import json_option, report
from .types import ABOVE_ZERO, FROM_ZERO, PROBABILITY, RATIOS, SEED, SHARES, Choice, Finite


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


@click.command(cls=Stage)
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
    from ..pipeline.runner import run_stage
    from ..stages.models.compute import training_compute
    from ..stages.pretrain import plan_pretrain

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
