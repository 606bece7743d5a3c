"""Owns the class texts in a PromptSRC checkpoint: which classes of a list its fixed token embeddings stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.plain_text import counted
from ..inputs.class_match import base_classes
from ..prompts.clip import class_ids
from ..prompts.text import Tokenize, text_tower
from .layout import PREFIX, SUFFIX, check_shape

#: Distance of a token's embedding from the model's own, as a share of its length, up to which it is the same token.
_SAME = 0.1


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """What the fixed token embeddings are of.

    Attributes:
        count: class texts in the file.
        known: those of them that are texts of a class in the list.
        classes_C: bool (class,): the classes of the list whose texts are in the file.
    """

    count: int
    known: int
    classes_C: NDArray[np.bool_]


@torch.no_grad()
def read_class_texts(
    weights: Mapping[str, Tensor],
    model: nn.Module,
    tokenizer: Tokenize,
    names: Sequence[str],
    context: str,
    length: int,
    *,
    where: object,
) -> ClassTexts | None:
    """Find the classes that a checkpoint's prompts were learned on, by the texts whose token embeddings it keeps.

    Args:
        weights: the checkpoint.
        model, tokenizer: the model that the prompts were learned for.
        names: the class list.
        context: words that the text prompts stand in for.
        length: text prompts, whose places are left out.

    Returns:
        None where the file has no such embeddings.

    Raises:
        InputError: embeddings of another shape, or of another vocabulary.
    """
    if PREFIX not in weights or SUFFIX not in weights:
        return None
    tower: Any = text_tower(model)
    token_embeddings = tower.token_embedding.weight.float()
    positions, width = tower.positional_embedding.shape
    count = len(weights[PREFIX]) if weights[PREFIX].dim() else 0
    check_shape(PREFIX, tuple(weights[PREFIX].shape), ("classes", 1, width), where=where)
    check_shape(SUFFIX, tuple(weights[SUFFIX].shape), (count, positions - 1 - length, width), where=where)
    ids_CT = class_ids(context, names, tokenizer)
    start_FD = weights[PREFIX][:, 0].float()
    if not bool((_distance(start_FD, token_embeddings[ids_CT[:1, 0]]) <= _SAME).all()):
        raise InputError(
            "the checkpoint's token embeddings are another model's",
            code="checkpoint-other-model",
            where=f"{where}: {PREFIX}",
            expected="the start token of the teacher, but for rounding",
            found="another",
            hint="name the model that it was trained with: --teacher and --teacher-pretrained",
        )
    # The last places are padding in all texts.
    used = int((ids_CT != ids_CT[:, -1:]).any(dim=0).nonzero().max()) + 1
    listed_CTD = token_embeddings[ids_CT[:, 1 + length : used]]
    found_FTD = weights[SUFFIX][:, : used - 1 - length].float()
    likeness_FC = F.normalize(found_FTD.flatten(1)) @ F.normalize(listed_CTD.flatten(1)).T
    nearest_F = likeness_FC.argmax(dim=1)
    same_F = (_distance(found_FTD, listed_CTD[nearest_F]) <= _SAME).all(dim=1)
    classes_C = np.zeros(len(names), np.bool_)
    classes_C[nearest_F[same_F].numpy()] = True
    return ClassTexts(count=count, known=int(same_F.sum()), classes_C=classes_C)


def learned_classes(
    base: str | None, names: tuple[str, ...], texts: ClassTexts | None, where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that prompts were learned on, and notes for people.

    Args:
        base: what a user names, see `base_classes`; None takes those whose texts are in the file, or all where it has none.
        names: the class list.
        texts: those in the file.
        where: the file.

    Raises:
        InputError: as `base_classes`.
        MismatchError: the user names other classes than the file.
    """
    if base is None:
        if texts is None:
            return names, ("the file does not say which classes it was learned on: all of the list",)
        chosen = tuple(np.array(names, object)[texts.classes_C])
        unknown = texts.count - texts.known
        notes = [f"learned on {len(chosen)} of {counted(len(names), 'class')}, by the class texts in the file"]
        if unknown:
            notes.append(
                f"{unknown} class texts in the file are none of the list's: other classes, other names, or another --context"
            )
        return chosen, tuple(notes)
    base_C = base_classes(base, names)
    if texts is not None and (texts.known < texts.count or (texts.classes_C != base_C).any()):
        wrong = np.flatnonzero(texts.classes_C != base_C)
        example = f", first differing at {names[wrong[0]]!r}" if len(wrong) else ""
        raise MismatchError(
            "the checkpoint was learned on other classes",
            code="checkpoint-other-classes",
            where=f"{where}: --base-classes {base}",
            expected=f"{texts.count} class texts as in the file",
            found=f"{int(base_C.sum())} base classes{example}",
            hint="leave out --base-classes to take those whose texts are in the file; --context must be the authors' too",
        )
    return tuple(np.array(names, object)[base_C]), ()


def _distance(found: Tensor, own: Tensor) -> Tensor:
    distance: Tensor = (found - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-9)
    return distance
