"""Owns timm models: what `timm:NAME` and `pretrained` mean, and how a model is built and filled with its weights."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from .building import unfilled
from .hub import hub_access, one_line
from .names import RANDOM, TIMM_PREFIX, Role, one_of, unknown_name, weights_file
from .weights import Tensors, fit_weights, looks_like_path, names_in_order, read_weights_file

#: `pretrained` for the weights that timm itself prefers for a model.
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class TimmSource:
    """A model that a user named.

    Attributes:
        name: timm's, without the prefix: `NAME`, or `NAME.TAG` where its own weights are meant.
        role: whose it is; errors name its options.
        from_hub: whether the weights are timm's own, to be downloaded.
        path: a weights file; None for the hub's, or random weights.
        weights: where they come from, as text without local paths.
    """

    name: str
    role: Role
    from_hub: bool
    path: str | None
    weights: str


@dataclass(frozen=True, kw_only=True)
class BuiltTimm:
    """A model with its weights.

    Attributes:
        module: on the CPU, in fp32.
        kwargs: what it was built with beside its name.
        entry: which entry of the weights file was taken, such as `state_dict_ema`; '' where there is but one.
    """

    module: Any
    kwargs: Mapping[str, Json]
    entry: str


def names_its_weights(name: str) -> bool:
    """Whether a model's name alone names its weights: `timm:NAME.TAG`."""
    return "." in name


def resolve_timm(name: str, pretrained: str | None, *, role: Role) -> TimmSource:
    """Find the model and its weights.

    Args:
        name: `timm:NAME` or `timm:NAME.TAG`.
        pretrained: `default` (timm's own choice), a tag, a weights file, `random`, or None for those of the name's tag.
        role: whose model it is.

    Raises:
        InputError: no such model or tag, or a name without weights.
    """
    import open_clip
    import timm

    architecture, _, tag = name.removeprefix(TIMM_PREFIX).partition(".")
    if not timm.is_model(architecture):
        if open_clip.get_model_config(architecture) is not None:
            hint = f"did you mean {architecture}, without {TIMM_PREFIX}?"
            raise InputError("timm has no such model", code="model-unknown", where=architecture, hint=hint)
        hint = f"`teachonce models --{role}` lists them all"
        raise unknown_name("timm has no such model", architecture, timm.list_models(), hint, code="model-unknown")
    tags = [n.partition(".")[2] for n in timm.models.get_arch_pretrained_cfgs(architecture)]
    tags = [t for t in tags if t]
    if pretrained is None and not tag:
        raise InputError(
            f"a {role} needs weights",
            code="weights-needed",
            where=f"{TIMM_PREFIX}{architecture}",
            hint=f"add --{role}-pretrained: `{DEFAULT}` (timm's own), {one_of(tags)}, or `{RANDOM}` for trying things out",
        )
    of_file = pretrained is not None and pretrained != RANDOM and looks_like_path(pretrained)
    if pretrained not in (None, RANDOM, DEFAULT) and not of_file:
        tag = str(pretrained)
    if tag and tag not in tags:
        raise unknown_name(
            f"{TIMM_PREFIX}{architecture} has no such weights",
            tag,
            tags,
            one_of(tags),
            code="weights-tag-unknown",
        )
    from_hub = pretrained != RANDOM and not of_file
    full = f"{architecture}.{tag}" if tag else architecture
    if from_hub:
        path, weights = None, full
    elif of_file:
        path = str(pretrained)
        weights = weights_file(path, role, f"`{DEFAULT}` (timm's own), or {one_of(tags)}")
    else:
        path, weights = None, RANDOM
    return TimmSource(name=full, role=role, from_hub=from_hub, path=path, weights=weights)


def build_timm(
    source: TimmSource, *, size: int | None = None, seed: int = 0, num_classes: int | None = None
) -> BuiltTimm:
    """Build a model and fill it.

    Args:
        source: from `resolve_timm`.
        size: of the images, in pixels, instead of the model's own; position embeddings are interpolated by timm.
        seed: of random weights.
        num_classes: None keeps the model's classifier, or takes that of the file; 0 builds none.

    Raises:
        InputError: a model that timm cannot build so, weights that cannot be had, or weights of another model.
    """
    import timm

    kwargs: dict[str, Json] = {}
    if size is not None and timm.models.get_pretrained_cfg_value(source.name, "fixed_input_size"):
        kwargs["img_size"] = size
    options = kwargs if num_classes is None else {**kwargs, "num_classes": num_classes}
    where = f"{TIMM_PREFIX}{source.name}"
    with torch.random.fork_rng(devices=[]), _building(source, where):
        torch.manual_seed(seed)
        with unfilled() if source.path is not None else contextlib.nullcontext():
            module = timm.create_model(source.name, pretrained=source.from_hub, **options)
    entry = "" if source.path is None else _load(module, source, options, resize=size is not None)
    return BuiltTimm(module=module, kwargs=kwargs, entry=entry)


def classifiers(module: Any) -> tuple[str, ...]:
    """Names of a model's classifying layers, from its `pretrained_cfg`; most have one, distilled ones two."""
    names: Any = module.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _building(source: TimmSource, where: str) -> contextlib.AbstractContextManager[None]:
    """Inside, timm builds a model, and fetches its own weights if they were named."""
    if source.from_hub:
        return hub_access(where, f"check the network, or give a file with --{source.role}-pretrained")
    hint = f"choose another --{source.role} or --{source.role}-size"
    return one_line(f"timm cannot build this {source.role}", where, hint, code="model-unbuildable")


def _load(module: Any, source: TimmSource, options: Mapping[str, Any], *, resize: bool) -> str:
    """Load a file, with or without a classifier: by name, by the model's own conversion, or in order."""
    assert source.path is not None
    where = source.path
    file = read_weights_file(where)
    weights, own = dict(file.weights), module.state_dict()
    file.weights.clear()  # what is converted must not stay in memory beside its copy
    if not own.keys() & weights.keys():
        weights = _by_order(weights, source.name, options, where)
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is not None and any(n not in weights or weights[n].shape != own[n].shape for n in own):
        positions = {n: v for n, v in weights.items() if "pos" in n.lower()}
        weights = convert(weights, module)  # other names, or position embeddings of another image size
        if not resize:
            weights.update({n: v for n, v in positions.items() if n in own})  # another size is another model's
    if options.get("num_classes") == 0:
        for classifier in classifiers(module):
            weights = {n: v for n, v in weights.items() if not n.startswith(f"{classifier}.")}
    else:
        _fit_classes(module, weights)
    for counter in own:  # files from before torch counted batches
        if counter.endswith("num_batches_tracked") and counter not in weights:
            weights[counter] = torch.zeros_like(own[counter])
    del own
    fit_weights(module, weights, what=f"{TIMM_PREFIX}{source.name}", where=where, consume=True)
    return file.entry


def _fit_classes(module: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Give the model as many classes as the file's classifier has: a file from fine-tuning has its own."""
    heads = [weights.get(f"{name}.weight") for name in classifiers(module)]
    rows = {len(head) for head in heads if head is not None and head.ndim in (2, 4)}
    if len(rows) == 1 and rows != {module.num_classes}:
        module.reset_classifier(rows.pop())


def _by_order(weights: Tensors, name: str, options: Mapping[str, Any], where: str) -> Tensors:
    """Names for the weights of a port that has the same layers in the same order under other names.

    Raises:
        InputError: the number or the shapes of the weights differ.
    """
    import timm

    last = list(weights.values())[-1].shape[:1]
    with torch.device("meta"):
        whole: nn.Module = timm.create_model(
            name, pretrained=False, **{**options, "num_classes": int(last[0]) if last else 0}
        )
    return names_in_order(weights, whole.state_dict(), what=f"{TIMM_PREFIX}{name}", where=where)
