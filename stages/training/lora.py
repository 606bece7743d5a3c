"""Owns low-rank additions to a student's backbone (LoRA, Hu et al., ICLR 2022, arXiv 2106.09685), by peft.

They train in place of the weights that they are added to. A finished student has them merged into these weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...pipeline.settings import impossible
from ...storage_schemas.errors import InputError, MissingDependency
from ..recipes.settings import TrainSettings
from ..students.base import BaseStudent
from .freezing import matching, patterns_of
from .lora_attention import add_to_attention, can_add_to_attention, merge_attention

_BACKBONE = "backbone."


@dataclass(frozen=True)
class Additions:
    """The additions of one student.

    Attributes:
        tuner: peft's, which replaced layers of the backbone by layers with additions; None where attention alone has some.
        attentions: torch's own, whose matrices have some.
    """

    tuner: Any
    attentions: Sequence[nn.MultiheadAttention]

    def merge(self) -> None:
        """Add them to the weights, once training is over; the backbone is as it was before, with other numbers."""
        if self.tuner is not None:
            self.tuner.merge_and_unload()
        for attention in self.attentions:
            merge_attention(attention)


def add_low_rank(student: BaseStudent, settings: TrainSettings) -> Additions:
    """Give the backbone additions, which are 0 at first, drawn from torch's global generator. Its own weights are frozen.

    Raises:
        MissingDependency: peft is not installed.
        InputError: no such layers, layers that cannot have additions, or a rank beyond that of their weights.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise MissingDependency(
            "low-rank additions (--lora-rank) need peft", "pip install 'teachonce[lora]'"
        ) from error
    targets = _targets(student, settings.lora_targets)
    attentions = {name: module for name, module in targets.items() if isinstance(module, nn.MultiheadAttention)}
    rank = settings.lora_rank
    if rank > (most := max(map(_most, targets.values()))):
        raise impossible("lora_rank", f"at most {most}, the rank that the weights of its layers have themselves", rank)
    alpha: Any = settings.lora_alpha or 2 * rank  # peft says int, and divides it by the rank
    student.backbone.requires_grad_(False)
    tuner = None
    if layers := [name.removeprefix(_BACKBONE) for name in targets if name not in attentions]:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=layers, bias="none")
        tuner = LoraModel(student.backbone, {"default": config}, "default")
    for attention in attentions.values():
        add_to_attention(attention, rank=rank, scale=alpha / rank)
    student.hold_still()
    return Additions(tuner, tuple(attentions.values()))


def check_additions_train(student: BaseStudent, frozen: str) -> None:
    """
    Args:
        frozen: what `--freeze` names.

    Raises:
        InputError: it leaves none of them to train.
    """
    if not any(parameter.requires_grad for parameter in student.backbone.parameters()):
        raise InputError(
            "none of the low-rank additions is left to train",
            code="nothing-trains",
            where="--freeze",
            expected="fewer layers than --lora-rank adds to",
            found=frozen,
            hint="leave out a pattern, or --lora-rank",
        )


def _targets(student: BaseStudent, given: str) -> dict[str, nn.Module]:
    """The layers that get additions, by their names in the student."""
    layers = {name: module for name, module in student.named_modules() if name.startswith(_BACKBONE)}
    fitting = {n: module for n, module in layers.items() if _fits(module) and not _is_within_attention(n, layers)}
    if not given:
        linear = {name: module for name, module in fitting.items() if not isinstance(module, nn.Conv2d)}
        if not fitting:
            raise _unfit("of all layers", type(student.backbone).__name__)
        return linear or fitting
    found: set[str] = set()
    for pattern in patterns_of(given):
        meant = matching(pattern, layers, option="--lora-targets")
        if not meant & fitting.keys():
            raise _unfit(pattern, ", ".join(sorted({type(layers[name]).__name__ for name in meant})))
        found |= meant
    return {name: module for name, module in fitting.items() if name in found}


def _fits(module: nn.Module) -> bool:
    """Linear layers, torch's own attention, and ungrouped convolutions."""
    if isinstance(module, nn.MultiheadAttention):
        return can_add_to_attention(module)
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _most(layer: nn.Module) -> int:
    """The rank that the layer's weights can have."""
    return max(min(weight.flatten(1).shape) for weight in layer.parameters() if weight.ndim > 1)


def _is_within_attention(name: str, layers: dict[str, nn.Module]) -> bool:
    return any(isinstance(layers.get(above), nn.MultiheadAttention) for above in _above(name))


def _above(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _unfit(where: str, found: str) -> InputError:
    return InputError(
        "these layers of the student cannot have low-rank additions",
        code="lora-targets-unfit",
        where=f"--lora-targets {where}",
        expected="linear layers, torch's MultiheadAttention, or ungrouped convolutions",
        found=found,
        hint="leave out --lora-targets",
    )
