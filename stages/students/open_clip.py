"""Owns open_clip students: the image tower alone, by open_clip's own spelling of models and weights."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..models.attention import fold_attention
from ..models.preprocess import Preprocess, square_size
from ..models.weights import Tensors, brief, fit_weights, looks_like_path, read_weights
from .family import RANDOM, Backbone, unknown_name

_SCHEMAS = ("hf-hub:", "local-dir:")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a name and `pretrained` resolve to. `weights_path` is None for random weights."""

    name: str
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights_path: str | None
    weights: str


class OpenClipFamily:
    """`ViT-B-16`, `hf-hub:ORG/REPO`, `local-dir:FOLDER`, weights by tag or path. Builds no text tower."""

    def create(self, name: str, pretrained: str | None, *, seed: int, size: int | None) -> Backbone:
        source = _resolve(name, pretrained, seed)
        vision_cfg = copy.deepcopy(source.model_cfg["vision_cfg"])
        vision_cfg.pop("timm_model_pretrained", None)
        # A timm trunk takes its weights at its own size and is resized then; open_clip's towers the other way
        # round.
        trunk_size = size if "timm_model_name" in vision_cfg else None
        if size is not None:
            vision_cfg["image_size"] = size
        config = {
            "family": "open_clip", "name": source.name, "embed_dim": source.model_cfg["embed_dim"],
            "vision_cfg": vision_cfg, "quick_gelu": bool(source.model_cfg.get("quick_gelu", False)),
            "trunk_size": trunk_size,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = _build(config)
        logit_scale = float(source.model_cfg.get("init_logit_scale", math.log(1 / 0.07)))
        if source.weights_path is not None:
            logit_scale = _load(tower, source, logit_scale)
        _resize_trunk(tower, trunk_size)
        preprocess = source.preprocess_cfg
        return Backbone(
            module=tower,
            config=config,
            preprocess=Preprocess(
                size=square_size(vision_cfg.get("image_size", 224), where=name),
                mean=tuple(preprocess["mean"]),
                std=tuple(preprocess["std"]),
                interpolation=preprocess["interpolation"],
            ),
            width=int(source.model_cfg["embed_dim"]),
            logit_scale=math.exp(logit_scale),
            weights=source.weights,
        )

    def rebuild(self, config: Mapping[str, Json]) -> nn.Module:
        tower = _build(config)
        _resize_trunk(tower, config["trunk_size"])
        return tower

    def implies_weights(self, name: str) -> bool:
        return name.startswith(_SCHEMAS)


def _build(config: Mapping[str, Json]) -> nn.Module:
    # open_clip has no public way to build one tower; this is what its CLIP, CustomTextCLIP and CoCa all call.
    from open_clip.model import _build_vision_tower

    tower: nn.Module = _build_vision_tower(
        config["embed_dim"], dict(config["vision_cfg"]), config["quick_gelu"]
    )
    fold_attention(tower)
    return tower


def _resolve(name: str, pretrained: str | None, seed: int) -> _Source:
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    preprocess_cfg = asdict(PreprocessCfg())
    if name.startswith("local-dir:"):
        config, found, label = _local_folder(name)
    elif name.startswith("hf-hub:"):
        config, found, label = _hub_repository(name, weights_wanted=pretrained is None)
    else:
        return _built_in(name, pretrained, preprocess_cfg, seed)
    preprocess_cfg = merge_preprocess_dict(preprocess_cfg, config.get("preprocess_cfg", {}))
    path, weights = found, f"those of {label}"
    if pretrained == RANDOM:
        path, weights = None, f"random, seed {seed}"
    elif pretrained is not None:
        path, weights = pretrained, Location.of(pretrained).name
    elif path is None:
        raise InputError(
            "no weights beside the model's configuration",
            where=name,
            hint=f"--student-pretrained PATH, or --student-pretrained {RANDOM}",
        )
    return _Source(
        name=label,
        model_cfg=config["model_cfg"],
        preprocess_cfg=preprocess_cfg,
        weights_path=path,
        weights=weights,
    )


def _built_in(name: str, pretrained: str | None, preprocess_cfg: dict[str, Any], seed: int) -> _Source:
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.transform import merge_preprocess_dict

    name = name.replace("/", "-")
    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise unknown_name(
            "open_clip has no such model", name, open_clip.list_models(), "timm models are named timm:NAME"
        )
    if pretrained in (None, RANDOM):
        return _Source(
            name=name,
            model_cfg=model_cfg,
            preprocess_cfg=preprocess_cfg,
            weights_path=None,
            weights=f"random, seed {seed}",
        )
    assert pretrained is not None
    tag = get_pretrained_cfg(name, pretrained)
    if not tag:
        if looks_like_path(pretrained):
            return _Source(
                name=name,
                model_cfg=model_cfg,
                preprocess_cfg=preprocess_cfg,
                weights_path=pretrained,
                weights=Location.of(pretrained).name,
            )
        tags = list_pretrained_tags_by_model(name)
        raise unknown_name(
            f"{name} has no such weights", pretrained, tags, f"one of {', '.join(tags) or 'none'}, or a path"
        )
    # Weights were trained with one of two activations; open_clip warns of the wrong one, here the right one
    # is built.
    model_cfg["quick_gelu"] = tag.get("quick_gelu", False)
    try:
        path = download_pretrained(tag)
    except Exception as error:  # network and hub errors share no base class
        raise _no_download(f"{name}, {pretrained}", error) from error
    return _Source(
        name=name,
        model_cfg=model_cfg,
        preprocess_cfg=merge_preprocess_dict(preprocess_cfg, tag),
        weights_path=path,
        weights=pretrained,
    )


def _local_folder(name: str) -> tuple[dict[str, Any], str | None, str]:
    from open_clip.factory import _find_checkpoint_in_dir

    folder = Location.of(name.removeprefix("local-dir:"))
    file = folder / "open_clip_config.json"
    if not file.exists():
        raise InputError(
            "no open_clip model in this folder",
            where=folder,
            expected="open_clip_config.json and weights",
            found="no open_clip_config.json",
        )
    weights = _find_checkpoint_in_dir(folder.path)
    return _parse_config(file.read_bytes(), where=file), weights, f"local-dir:{folder.name}"


def _hub_repository(name: str, *, weights_wanted: bool) -> tuple[dict[str, Any], str | None, str]:
    from open_clip.pretrained import download_pretrained_from_hf

    repository = name.removeprefix("hf-hub:")
    try:
        path = download_pretrained_from_hf(repository, filename="open_clip_config.json")
        weights = download_pretrained_from_hf(repository) if weights_wanted else None
    except Exception as error:  # network and hub errors share no base class
        raise _no_download(name, error) from error
    return _parse_config(Location.of(path).read_bytes(), where=name), weights, name


def _parse_config(data: bytes, where: object) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(data)
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["embed_dim"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "not an open_clip configuration",
            where=where,
            expected="model_cfg with vision_cfg and embed_dim",
            found=f"{type(error).__name__}: {error}",
        ) from error
    return config


def _no_download(where: str, error: Exception) -> InputError:
    return InputError(
        "cannot download weights",
        where=where,
        found=brief(error),
        hint="check the network, or give a path with --student-pretrained",
    )


def _load(tower: nn.Module, source: _Source, logit_scale: float) -> float:
    """Load the tower's part of a CLIP checkpoint, or a tower's own. Returns the log of the logit scale."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed

    assert source.weights_path is not None
    weights: Tensors = read_weights(source.weights_path)
    as_model = SimpleNamespace(visual=tower)  # all that these two look at
    weights = convert_state_dict(as_model, weights)
    if "logit_scale" in weights:
        logit_scale = float(weights["logit_scale"].float())
    if not any(name.startswith("visual.") for name in weights):
        weights = {f"visual.{name}": value for name, value in weights.items()}
    resize_pos_embed(weights, as_model)
    visual = {
        name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")
    }
    fit_weights(tower, visual, what=f"the image tower of {source.name}", where=source.weights)
    return logit_scale


def _resize_trunk(tower: Any, size: int | None) -> None:
    if size is None or not hasattr(tower.trunk, "set_input_size"):
        return  # convolutional trunks take any size
    try:
        tower.set_input_size(size)
    except (TypeError, AssertionError, ValueError) as error:
        raise InputError(
            "this student cannot take that image size", where="--student-size", found=size
        ) from error
