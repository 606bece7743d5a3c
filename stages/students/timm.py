"""Owns timm students: `timm:NAME`, features before the classifier, with weights by tag or path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..models.preprocess import Preprocess, square_size
from ..models.weights import Tensors, brief, fit_weights, looks_like_path, names_in_order, read_weights
from ..views import INTERPOLATIONS
from .family import RANDOM, Backbone, unknown_name

#: `--student-pretrained` for the weights that timm itself prefers for a model.
DEFAULT = "default"


class TimmFamily:
    """Any timm image model, without its classifier (`num_classes=0`): pooled features."""

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        import timm

        name = _checked_name(name.removeprefix("timm:"), pretrained)
        path = tag = None
        if pretrained is None:
            tag = name if self.implies_weights(name) else None
        elif _is_tag(pretrained):
            tag = name
        elif pretrained != RANDOM:
            path = pretrained
        kwargs: dict[str, Json] = {}
        if size is not None and timm.models.get_pretrained_cfg_value(name, "fixed_input_size"):
            kwargs["img_size"] = size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                module = timm.create_model(name, pretrained=tag is not None, num_classes=0, **kwargs)
            except Exception as error:  # timm, hub and network errors share no base class
                what, hint = "timm cannot build this student", "choose another --student or --student-size"
                if tag is not None:
                    what = "cannot download weights"
                    hint = "check the network, or give a path with --student-pretrained"
                raise InputError(what, where=f"timm:{name}", found=brief(error), hint=hint) from error
        if path is not None:
            _load(module, name, kwargs, path)
        preprocess = _preprocess(module, name, size)
        return Backbone(
            module=module,
            config={"family": "timm", "name": name, "kwargs": kwargs},
            preprocess=preprocess,
            width=_feature_width(module, preprocess.size),
            logit_scale=None,
            weights=tag or (Location.of(path).name if path else f"random, seed {seed}"),
        )

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(
            config["name"], pretrained=False, num_classes=0, **config["kwargs"]
        )
        return module

    def implies_weights(self, name: str) -> bool:
        return "." in name


def _is_tag(pretrained: str) -> bool:
    return pretrained != RANDOM and not looks_like_path(pretrained)


def _checked_name(name: str, pretrained: str | None) -> str:
    """`NAME` or `NAME.TAG`, known to timm; a tag given as `pretrained` is joined."""
    import timm

    architecture, _, own_tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name(
            "timm has no such model", architecture, timm.list_models(), "timm.list_models() lists them all"
        )
    tag = own_tag
    if pretrained is not None and pretrained != DEFAULT and _is_tag(pretrained):
        tag = pretrained
    if tag:
        tags = [n.partition(".")[2] for n in timm.models.get_arch_pretrained_cfgs(architecture)]
        if tag not in tags:
            raise unknown_name(
                f"timm:{architecture} has no such weights", tag, tags, f"one of {', '.join(tags)}, or a path"
            )
    return f"{architecture}.{tag}" if tag else architecture


def _preprocess(module: nn.Module, name: str, size: int | None) -> Preprocess:
    from timm.data import resolve_data_config

    config = resolve_data_config(model=module)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise InputError(
            "only students with three input channels are supported", where=f"timm:{name}", found=channels
        )
    side = size or square_size((height, width), where=f"timm:{name}")
    interpolation = config["interpolation"]
    return Preprocess(
        size=side,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        crop_pct=config["crop_pct"],
    )


def _feature_width(module: nn.Module, size: int) -> int:
    module.eval()
    try:
        with torch.no_grad():
            features = module(torch.zeros(1, 3, size, size))
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # patches that do not fit, or nothing left after the last stride
        raise InputError(
            "this student cannot take images of that size", where="--student-size", found=f"{size} ({brief(error)})",
            hint="choose another --student-size",
        ) from error  # fmt: skip
    if features.ndim != 2:
        raise InputError(
            "this student gives no pooled features",
            where="--student",
            expected="one vector an image",
            found=f"shape {tuple(features.shape)}",
        )
    return int(features.shape[1])


def _load(module: nn.Module, name: str, kwargs: Mapping[str, Any], path: str) -> None:
    """Load a file, with or without a classifier: by name, by the model's own conversion, or in order."""
    weights = read_weights(path)
    own = module.state_dict()
    if not own.keys() & weights.keys():
        weights = _by_order(weights, name, kwargs, path)
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is not None and any(n not in weights or weights[n].shape != own[n].shape for n in own):
        weights = convert(weights, module)  # other names, or position embeddings of another image size
    for classifier in _classifiers(module):
        weights = {n: v for n, v in weights.items() if not n.startswith(f"{classifier}.")}
    for counter in own:  # files from before torch counted batches
        if counter.endswith("num_batches_tracked") and counter not in weights:
            weights[counter] = own[counter]
    fit_weights(module, weights, what=f"timm:{name}", where=path)


def _by_order(weights: Tensors, name: str, kwargs: Mapping[str, Any], path: str) -> Tensors:
    """Names for the weights of a port that has the same layers in the same order under other names.

    Raises:
        InputError: the number or the shapes of the weights differ.
    """
    import timm

    num_classes = list(weights.values())[-1].shape[:1]
    with torch.device("meta"):
        whole = timm.create_model(
            name, pretrained=False, num_classes=int(num_classes[0]) if num_classes else 0, **kwargs
        )
    return names_in_order(weights, whole.state_dict(), what=f"timm:{name}", where=path)


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    names: Any = module.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr,operator]
    return (names,) if isinstance(names, str) else tuple(names)
