"""Owns what a teacher offers: targets by name, with axes and shapes, and all of them from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ..models.class_head import ClassHead
from ..models.intermediates import TOKENS, Intermediates
from .base import Offer, Teacher

#: Targets of every teacher. Logits take class vectors.
EMBEDDING, LOGITS = "embedding", "logits"


def offers_with_maps(embed_dim: int, maps: Intermediates, pixels_NCHW: Tensor) -> tuple[Offer, ...]:
    """The embedding, and the maps that a model gives of images like these (normalised)."""
    found = [Offer(name=EMBEDDING, axes=("channel",), shape=(embed_dim,))]
    for name, shape in maps.shapes(pixels_NCHW).items() if maps.names else ():
        axes = ("token", "channel") if name == TOKENS else ("channel", "y", "x")
        found.append(Offer(name=name, axes=axes, shape=shape))
    return tuple(found)


def outputs_with_maps(
    names: Sequence[str],
    *,
    embed: Callable[[], Tensor],
    maps: Intermediates,
    pixels: Callable[[], Tensor],
    embed_end: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Targets by name, fp32; one pass, or two where tokens and other maps are wanted.

    Args:
        names: `embedding` and names of `maps`.
        embed: the embedding by itself.
        maps, pixels: the model's maps, and the normalised images that they are of.
        embed_end: the embedding from the end of a pass that computed maps (see `Intermediates.run`).
    """
    wanted = [name for name in names if name != EMBEDDING]
    if not wanted:
        return {EMBEDDING: embed()}
    passed = maps.run(pixels(), wanted, to_the_end=EMBEDDING in names)
    found = dict(passed.maps)
    if passed.end is not None and EMBEDDING in names:
        found[EMBEDDING] = embed_end(passed.end)
    return {name: found[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A teacher beside the class vectors of a store: all targets that the two give.

    Attributes:
        head: class vectors on the teacher's device; None where there are none.
    """

    teacher: Teacher
    head: ClassHead | None

    @staticmethod
    def of(teacher: Teacher, vectors: ClassVectors | None, device: torch.device) -> Answers:
        """With copies of the vectors on the device that the teacher is on."""
        return Answers(teacher=teacher, head=None if vectors is None else ClassHead(vectors).to(device))

    def outputs(self, images_NCHW: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Targets by name, fp32, of uint8 images on the teacher's device."""
        computed = tuple(dict.fromkeys(EMBEDDING if name == LOGITS else name for name in names))
        found = self.teacher.outputs(images_NCHW, computed)
        if LOGITS in names:
            assert self.head is not None
            found[LOGITS] = self.head(found[EMBEDDING])
        return {name: found[name] for name in names}


def target_names(targets: str) -> tuple[str, ...]:
    """The names that `--targets` lists, each once; `both` is `embedding,logits`, `auto` stays."""
    words = (word.strip() for word in targets.split(","))
    names = (name for word in words for name in ((EMBEDDING, LOGITS) if word == "both" else (word,)))
    return tuple(dict.fromkeys(names))


def choose_offers(teacher: Teacher, vectors: ClassVectors | None, targets: str) -> tuple[Offer, ...]:
    """What `--targets` asks for, in its order.

    Args:
        targets: see `target_names`; `auto` is logits where there are class vectors and no more classes than channels, else the
            embedding.

    Raises:
        InputError: the teacher does not offer one.
    """
    spec, names = teacher.spec, target_names(targets)
    if names == ("auto",):
        names = (LOGITS,) if vectors is not None and vectors.num_classes <= spec.embed_dim else (EMBEDDING,)
    simple = {EMBEDDING: Offer(name=EMBEDDING, axes=("channel",), shape=(spec.embed_dim,))}
    if vectors is not None:
        simple[LOGITS] = Offer(name=LOGITS, axes=("class",), shape=(vectors.num_classes,))
    offers = simple
    if not set(names) <= {EMBEDDING, LOGITS}:  # shapes of others take a pass to find
        offers = {offer.name: offer for offer in teacher.offers()} | simple
    for name in names:
        if name not in offers:
            raise InputError(
                "the teacher does not offer this target",
                code="target-not-offered",
                where="--targets",
                expected=", ".join(offers),
                found=name or "an empty name",
                hint=did_you_mean(name, list(offers), "") or "docs/targets.md says what they are",
            )
    return tuple(offers[name] for name in names)
