"""Owns the settings of `teachonce export`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting

#: Forms that students can be exported to.
FORMS = ("onnx", "torchscript", "timm", "open_clip")

#: What a form takes: normalised fp32, or uint8 that it normalises itself.
PIXELS = ("float-nchw", "uint8-nchw", "uint8-nhwc")

#: What it gives.
RESULTS = ("logits", "embedding", "features")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is exported, and how it is checked.

    Attributes:
        result: None for logits where the student has classes, else the embedding; open_clip always has the embedding.
    """

    to: str = setting(choices=FORMS, help="The form.")
    result: str | None = setting(
        None,
        choices=RESULTS,
        default_text="logits, or embedding without classes",
        help="What it computes: logits, the student's embedding, or the backbone's features before the projector.",
    )
    pixels: str = setting(
        "float-nchw",
        choices=PIXELS,
        help="What onnx and torchscript take: normalised fp32 (image, channel, y, x), or uint8 that they normalise themselves.",
    )
    images: str | None = setting(
        None,
        unit="IMAGES",
        default_text="drawn pictures",
        help="Images to compare with the student on (folder, tar, list, shards): the first 16 that can be used.",
    )
    tolerance: float = setting(
        1e-4,
        above=0,
        below=1,
        help="Greatest difference in any number, as a share of the largest, for which the export is kept.",
    )
