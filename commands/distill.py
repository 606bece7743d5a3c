"""`teachonce distill`, on the command line."""

from __future__ import annotations

from typing import Any

import click

from ..pipeline.terminal import say
from ..stages.recipes.registry import recipe_names
from ..storage_schemas.errors import InputError
from .command import Command, Stage, one_driver
from .executor import executor_options, make_training_executor
from .output import json_option, report
from .types import ABOVE_ZERO, FROM_ZERO, MEANS, SEED, SHARE, STDS, Choice, Finite


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


@click.command(cls=Stage)
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@student_options
@click.option("--recipe", required=True, type=Choice(recipe_names()), help="Distillation method.")
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
    from ..pipeline.runner import run_stage
    from ..stages.distill import plan_distill
    from ..stages.models.compute import training_compute
    from ..stages.training.build import StudentConfig

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
