"""Owns what a caption store says of the teacher whose text tower embedded the captions."""

from __future__ import annotations

from typing import Any

from .base import Teacher


def caption_facts(teacher: Teacher) -> dict[str, Any]:
    """The fields of `CaptionSpec` that are the teacher's.

    Raises:
        InputError: it embeds no text.
    """
    spec, tower = teacher.spec, teacher.text_tower()
    names = ("family", "model", "architecture", "weights_digest", "embed_dim")
    return {
        "embed_dim": spec.embed_dim,
        "logit_scale": tower.logit_scale,
        "teacher": {name: getattr(spec, name) for name in names},
        "tokenizer": tower.facts(),
    }
