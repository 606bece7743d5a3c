"""Owns what becomes of a PromptSRC checkpoint: prompts, and the towers that it keeps with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..prompts.clip import PromptShape
from ..prompts.text import check_text_tower, count_text_blocks, text_tower, text_width
from ..prompts.vision import check_tower, count_blocks, vision_width
from .frozen import Drift, compare
from .layout import COPY, IMAGE, SCALE, TEXT, CheckpointLayout, check_keys, refuse_unknown
from .prompts import stack_prompts


@dataclass(frozen=True, kw_only=True)
class PromptSrcTeacher:
    """What a checkpoint holds of a teacher.

    Attributes:
        prompts: `vision_prompts_LPD` and `text_prompts_LPD`, fp32 (layer, prompt, channel).
        shape: theirs.
        towers: the checkpoint's frozen weights by open_clip's names, as they are; None where the file holds prompts alone.
        drift: how far those are from the backbone's.
    """

    prompts: Mapping[str, Tensor]
    shape: PromptShape
    towers: Mapping[str, Tensor] | None
    drift: Drift | None


def take_teacher(
    layout: CheckpointLayout, weights: Mapping[str, Tensor], model: nn.Module, name: str, *, where: object
) -> PromptSrcTeacher:
    """Take prompts and towers out of a PromptSRC checkpoint.

    Args:
        layout: of the checkpoint.
        weights: the checkpoint.
        model: the open_clip model that it was trained with.
        name: the name that the user gave it.

    Raises:
        InputError: another model: keys, shapes or weights differ; or one that cannot take prompts.
    """
    own: Any = model
    check_tower(own.visual, role="teacher")
    check_text_tower(model)
    names = backbone_names(model)
    copies = {COPY + key.removeprefix(IMAGE) for key in names if key.startswith(IMAGE)}
    refuse_unknown(sorted(layout.copy - copies), layout.kind, where)
    towers = drift = None
    if layout.whole:
        check_keys(layout.frozen, names, kind=layout.kind, where=where)
        state = model.state_dict()
        drift = compare(
            weights,
            {key: state[own_name] for key, own_name in names.items()},
            option="--teacher",
            model=name,
            where=where,
        )
        towers = {own_name: weights[key] for key, own_name in names.items()}
    vision_LPD = stack_prompts(
        layout, weights, "vision", vision_width(own.visual), count_blocks(own.visual), where=where
    )
    text_LPD = stack_prompts(layout, weights, "text", text_width(model), count_text_blocks(model), where=where)
    shape = PromptShape(
        vision_length=vision_LPD.shape[1],
        vision_depth=len(vision_LPD),
        text_length=text_LPD.shape[1],
        text_depth=len(text_LPD),
    )
    prompts = {"vision_prompts_LPD": vision_LPD, "text_prompts_LPD": text_LPD}
    return PromptSrcTeacher(prompts=prompts, shape=shape, towers=towers, drift=drift)


def backbone_names(model: nn.Module) -> dict[str, str]:
    """The keys of a checkpoint's frozen weights, with the names that an open_clip model has for them.

    Token embeddings are not among them: the authors' model holds those of its class texts only.
    """
    inner = "" if text_tower(model) is model else "text."
    names = {SCALE: "logit_scale"}
    for name in model.state_dict():
        if name.startswith("visual."):
            names[IMAGE + name.removeprefix("visual.")] = name
        elif name.startswith((f"{inner}transformer.", f"{inner}ln_final.")) or name in (
            f"{inner}positional_embedding",
            f"{inner}text_projection",
        ):
            names[TEXT + name.removeprefix(inner)] = name
    return names
