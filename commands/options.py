"""Owns the options that several commands share: the teacher and its views, and how a model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..storage_schemas.errors import InputError
from .command import Command
from .types import MEANS, PROBABILITY, RATIOS, SEED, SHARE, SHARES, STDS, STRENGTHS, Choice

if TYPE_CHECKING:
    from ..stages.teachers import TeacherConfig
    from ..stages.views.spec import ViewSpec


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
    from ..stages.teachers import TeacherConfig

    fields = ("pretrained", "backbone", "size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    chosen = {field: options.pop(f"teacher_{field}") for field in fields}
    return TeacherConfig.of(options.pop("teacher"), **chosen)


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
    from ..stages.views.spec import ViewSpec

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
