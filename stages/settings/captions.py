"""Owns the settings of `teachonce captions`."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.settings import setting
from ..inputs.caption_parts import MATCHES

TABLES = "How captions are read"


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Which captions, and how they are stored.

    Attributes:
        files: see `inputs.caption_table.CaptionFiles.of`.
        batch_size: decides low bits.
    """

    files: tuple[str, ...] = setting(
        (),
        option="from",
        unit="TABLE",
        help="Where captions are: a table (.parquet, .csv, .tsv, .jsonl) with the columns path and caption, the original WebDataset tars with "
        "members .txt, or a quoted pattern of such files; may be repeated.",
    )
    captions: int = setting(
        5, least=1, most=1000, unit="K", help="Captions of an image that count, the first of its rows."
    )
    batch_size: int = setting(256, least=1, unit="CAPTIONS", help="Captions in a forward pass.")
    encoding: str = setting("fp16", choices=("fp16", "fp32"), help="How embeddings are stored.")
    path_column: str | None = setting(
        None,
        unit="NAME",
        default_text="the first of path, file_name, filepath, filename, image, key that is there",
        group=TABLES,
        help="The column of the images' paths.",
    )
    caption_column: str | None = setting(
        None,
        unit="NAME",
        default_text="the first of caption, captions, text, title that is there",
        group=TABLES,
        help="The column of the captions: a text, or a list of texts.",
    )
    match: str | None = setting(
        None,
        choices=MATCHES,
        default_text="path; stem for the column key of img2dataset",
        group=TABLES,
        help="What of a path in the table must be that of an image in the corpus: all of it, its name, or its name without the ending.",
    )
