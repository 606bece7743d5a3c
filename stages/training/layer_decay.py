"""Owns layer decay: the learning rate of each weight of a student, by how deep its layer lies below the new parts.

The layers are timm's (`group_matcher`, as its `param_groups_layer_decay` uses them; after Bao et al., BEiT, ICLR 2022, arXiv
2106.08254). New parts (projectors, a layer for the classes) stand where a model of timm's has its classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...storage_schemas.errors import InputError
from ..models.intermediates import tower_layers
from ..students.base import BaseStudent

_BACKBONE = "backbone."


def with_layer_decay(groups: Sequence[Mapping[str, Any]], student: BaseStudent, decay: float) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, divided by layers: each part gets `lr_scale`, which its learning rate is multiplied by.

    Args:
        groups: as a recipe gives them; one that has an `lr_scale` keeps it.
        student: whose parameters these are.
        decay: the rate of a layer, as a share of that of the layer above it; 1 leaves the groups as they are.

    Raises:
        InputError: nothing says which layers the backbone has.
    """
    if decay == 1:
        return [dict(group) for group in groups]
    scales = layer_scales(student.backbone, decay, what=str(type(student.backbone).__name__))
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    found = []
    for group in groups:
        if "lr_scale" in group:
            found.append(dict(group))
            continue
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            scale = scales[name.removeprefix(_BACKBONE)] if name.startswith(_BACKBONE) else 1.0
            by_scale.setdefault(scale, []).append(parameter)
        found += [{**group, "params": by_scale[scale], "lr_scale": scale} for scale in sorted(by_scale)]
    return found


def layer_scales(backbone: nn.Module, decay: float, *, what: str) -> dict[str, float]:
    """decay^(layers above it) for each parameter of a backbone, by name; the new parts are the uppermost layer.

    Raises:
        InputError: nothing says which layers it has.
    """
    trunk, own = (getattr(backbone, name, None) for name in ("trunk", "group_matcher"))
    if isinstance(
        trunk, nn.Module
    ):  # open_clip's wrapper of a timm model: what is behind the trunk belongs to the new parts
        inside = {f"trunk.{name}": scale for name, scale in layer_scales(trunk, decay, what=what).items()}
        return {name: inside.get(name, 1.0) for name, _ in backbone.named_parameters()}
    matcher = tower_layers(backbone)
    if matcher is None and callable(own):
        matcher = own(coarse=False)
    if matcher is None:
        raise InputError(
            "this student's layers are not known",
            code="layers-unknown",
            where="--layer-decay",
            expected="a model of timm's with `group_matcher`, or an image tower of open_clip's",
            found=what,
            hint="leave out --layer-decay",
        )
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(_WithClassifier(backbone), matcher, reverse=True)
    uppermost = max(layers.values())
    return {name: decay ** (uppermost - layers[name]) for name, _ in backbone.named_parameters()}


class _WithClassifier:
    """The parameters of a backbone, and one of the classifier that it lacks, by the name that the classifier would have."""

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        own = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or "head"
        self._classifier = own if isinstance(own, str) else own[0]

    def named_parameters(self) -> Iterator[tuple[str, Tensor | None]]:
        yield from self._backbone.named_parameters()
        yield f"{self._classifier}.weight", None
