"""Owns the layout of PromptSRC's and PromptKD's checkpoints: which key is what, by its name alone.

From the authors' code (Khattak et al., ICCV 2023, arXiv 2307.06948; Li et al., CVPR 2024, arXiv 2403.02781), whose towers have
OpenAI's names: `image_encoder.…` and `text_encoder.…`. Prompts lie among them as `VPT` and `VPT_shallow`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ...storage_schemas.errors import InputError

#: Kinds of checkpoint.
TEACHER, STUDENT = "PromptSRC teacher", "PromptKD student"

IMAGE, TEXT, PROJECTOR, SCALE = "image_encoder.", "text_encoder.", "VPT_image_trans.conv1.", "logit_scale"

#: Where layer 0 of each tower's prompts is; those of layer i are in its block i.
FIRST = {"vision": f"{IMAGE}VPT", "text": "prompt_learner.ctx"}

_DEEP = re.compile(r"(image|text)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")
_TOWER_OF = {"image": "vision", "text": "text"}
COPY = "prompt_learner.ZS_image_encoder."

#: Token embeddings of class texts: behind the start token's, the prompts are left out. The second pair is PromptKD's.
PREFIX, SUFFIX = "prompt_learner.token_prefix", "prompt_learner.token_suffix"
_FIXED = {PREFIX, SUFFIX, f"{PREFIX}2", f"{SUFFIX}2"}

_ASK = "give a checkpoint of PromptSRC's or PromptKD's own trainer"


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """Every key of a checkpoint, sorted by what it is.

    Attributes:
        kind: `TEACHER` or `STUDENT`.
        prompts: for each tower that has some, the keys of layers 0, 1, …
        frozen: keys of the model that the prompts were put into: towers and logit scale.
        projector: keys of the student's projector.
        fixed: token embeddings of class texts.
        copy: keys of the second, untouched image tower that PromptSRC keeps for its loss.
    """

    kind: str
    prompts: Mapping[str, tuple[str, ...]]
    frozen: frozenset[str]
    projector: frozenset[str]
    fixed: tuple[str, ...]
    copy: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether the model is there, and not its prompts alone."""
        return any(key != SCALE for key in self.frozen)


def classify(keys: Collection[str], *, where: object) -> CheckpointLayout:
    """Sort keys by what they are. Names of the towers' own weights are left to `check_keys`.

    Raises:
        InputError: neither kind of checkpoint, an unknown key, or a layer of prompts that is missing.
    """
    teacher, student = FIRST["text"] in keys, any(key.startswith(PROJECTOR) for key in keys)
    if teacher == student:
        raise InputError(
            "not a checkpoint that can be imported",
            code="checkpoint-kind-unknown",
            where=where,
            expected=f"{FIRST['text']} (a {TEACHER}) or {PROJECTOR}… (a {STUDENT})",
            found="both" if teacher else f"neither, but {min(keys, default='nothing')}",
            hint=_ASK,
        )
    kind = TEACHER if teacher else STUDENT
    layers: dict[str, dict[int, str]] = {"vision": {}, "text": {}}
    frozen, projector, fixed, copy, unknown = set(), set(), [], set(), []
    for key in sorted(keys):
        deep = _DEEP.fullmatch(key)
        if deep:
            layers[_TOWER_OF[deep[1]]][int(deep[2])] = key
        elif key in FIRST.values():
            layers["vision" if key == FIRST["vision"] else "text"][0] = key
        elif key in _FIXED:
            fixed.append(key)
        elif key.startswith(COPY):
            copy.add(key)
        elif key.startswith(PROJECTOR):
            projector.add(key)
        elif key == SCALE or key.startswith((IMAGE, TEXT)):
            frozen.add(key)
        else:
            unknown.append(key)
    if kind == STUDENT:
        unknown += [*layers["text"].values(), *fixed, *sorted(k for k in frozen if k.startswith(TEXT))]
        unknown += sorted(copy)
    refuse_unknown(unknown, kind, where)
    prompts = {tower: _in_order(tower, found, where) for tower, found in layers.items() if found}
    return CheckpointLayout(
        kind=kind,
        prompts=prompts,
        frozen=frozenset(frozen),
        projector=frozenset(projector),
        fixed=tuple(fixed),
        copy=frozenset(copy),
    )


def check_keys(found: Iterable[str], expected: Iterable[str], *, kind: str, where: object) -> None:
    """Refuse keys unless they are the expected ones.

    Raises:
        InputError: naming the first that is missing, or else unknown.
    """
    have, want = set(found), set(expected)
    missing = sorted(want - have)
    if missing:
        raise InputError(
            "the checkpoint lacks a weight",
            code="checkpoint-weight-missing",
            where=where,
            expected=missing[0],
            found=f"none ({len(missing)} missing, {len(have - want)} unknown)",
            hint="name the model that it was trained with, or give a whole file",
        )
    refuse_unknown(sorted(have - want), kind, where)


def check_shape(key: str, found: tuple[int, ...], expected: tuple[int | str, ...], *, where: object) -> None:
    """Refuse a weight of another shape. Letters in `expected` fit any length.

    Raises:
        InputError: naming the key and both shapes.
    """
    if len(found) != len(expected) or any(isinstance(e, int) and e != f for e, f in zip(expected, found, strict=True)):
        shape = f"({', '.join(map(str, expected))}{',' if len(expected) == 1 else ''})"
        raise InputError(
            "a weight of the checkpoint has another shape",
            code="checkpoint-weight-other-shape",
            where=where,
            expected=f"{key} {shape}",
            found=found,
            hint="name the model that it was trained with",
        )


def refuse_unknown(keys: Collection[str], kind: str, where: object) -> None:
    """Refuse a checkpoint with unknown keys.

    Raises:
        InputError: there are some; names the first.
    """
    if keys:
        raise InputError(
            "an unknown key in the checkpoint",
            code="checkpoint-key-unknown",
            where=where,
            expected=f"keys of a {kind}",
            found=f"{next(iter(keys))} ({len(keys)} unknown)",
            hint=_ASK,
        )


def _in_order(tower: str, layers: Mapping[int, str], where: object) -> tuple[str, ...]:
    missing = next((layer for layer in range(max(layers) + 1) if layer not in layers), None)
    if missing is not None:
        some = layers[max(layers)]
        key = FIRST[tower] if missing == 0 else re.sub(r"resblocks\.\d+", f"resblocks.{missing}", some)
        raise InputError(
            "the checkpoint lacks a layer of prompts",
            code="checkpoint-layer-missing",
            where=where,
            expected=key,
            found=f"layers {', '.join(map(str, sorted(layers)))}",
            hint="give a whole file",
        )
    return tuple(layers[layer] for layer in sorted(layers))
