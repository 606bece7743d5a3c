"""Owns what an open_clip name and `pretrained` mean: configuration, preprocessing, weights file. Nothing is built here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import DamagedError, InputError
from .hub import hub_access, quiet_libraries
from .names import (
    HUB_PREFIX,
    LOCAL_PREFIX,
    RANDOM,
    TIMM_PREFIX,
    Role,
    one_of,
    unknown_name,
    weights_file,
    without_prefix_error,
)
from .vision_config import check_vision_config
from .weights import looks_like_path

_CONFIG = "open_clip_config.json"

#: Names that open_clip looks for before it takes any file.
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A model that a user named.

    Attributes:
        name: as it is recorded: of `local-dir:` only the last part of the path, since folders move.
        typed: as open_clip finds it again, for its tokenizer.
        role: whose it is; errors name its options.
        model_cfg: open_clip's `model_cfg`, with the activation that the named weights were trained with.
        preprocess_cfg: open_clip's, complete.
        weights_path: a local file; None for random weights.
        weights: where they come from, as text without local paths.
        configured: whether the configuration came with the weights, and so has their activation.
    """

    name: str
    typed: str
    role: Role
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]
    weights_path: str | None
    weights: str
    configured: bool


def names_its_weights(name: str) -> bool:
    """Whether a model's name alone names its weights."""
    return name.startswith((LOCAL_PREFIX, HUB_PREFIX))


def resolve_clip(name: str, pretrained: str | None, *, role: Role) -> ClipSource:
    """Find the configuration and the weights; downloads what is on a hub.

    Args:
        name: `ViT-L-14` (or `ViT-L/14`), `hf-hub:ORG/REPO`, `local-dir:FOLDER`.
        pretrained: a tag of that model, a weights file, `random`, or None for the weights that the name brings.
        role: whose model it is.

    Raises:
        InputError: no such model, no such weights, none where there should be some, or no way to them.
    """
    if name.startswith(LOCAL_PREFIX):
        config, found, label = _local_folder(name, role)
    elif name.startswith(HUB_PREFIX):
        config, found, label = _hub_repository(name, role, weights_wanted=pretrained is None)
    else:
        return _built_in(name, pretrained, role)
    path, weights = found, f"those of {label}"
    if pretrained == RANDOM:
        path, weights = None, RANDOM
    elif pretrained is not None:
        path, weights = pretrained, weights_file(pretrained, role, f"{label} brings its own weights")
    elif path is None:
        raise InputError(
            "no weights beside the model's configuration",
            code="weights-missing",
            where=name,
            hint=f"put them there, or add --{role}-pretrained FILE, or --{role}-pretrained {RANDOM} to try things out",
        )
    return ClipSource(
        name=label,
        typed=name,
        role=role,
        model_cfg=config["model_cfg"],
        preprocess_cfg=_preprocess(config.get("preprocess_cfg", {})),
        weights_path=path,
        weights=weights,
        configured=pretrained is None,
    )


def _built_in(typed: str, pretrained: str | None, role: Role) -> ClipSource:
    import open_clip
    import timm
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    name = typed.replace("/", "-")
    model_cfg = None if ":" in name else open_clip.get_model_config(name)
    if model_cfg is None:
        if timm.is_model(name.partition(".")[0]):
            raise InputError(
                "open_clip has no such model",
                code="model-unknown",
                where=name,
                hint=f"did you mean {TIMM_PREFIX}{name}?",
            )
        hint = f"`teachonce models --{role}` lists all of them; timm models are named timm:NAME"
        raise without_prefix_error(typed, open_clip.list_models(), hint, role=role)
    tags = list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise InputError(
            f"a {role} needs weights",
            code="weights-needed",
            where=name,
            hint=f"add --{role}-pretrained: {one_of(tags)}; `{RANDOM}` gives seeded random weights for trying things out",
        )
    tag = {} if pretrained == RANDOM else get_pretrained_cfg(name, pretrained)
    path: str | None
    if tag:
        # Weights were trained with one of two activations; open_clip builds that of the model's name, whatever the
        # tag has, and only warns.
        model_cfg["quick_gelu"] = bool(model_cfg.get("quick_gelu") or tag.get("quick_gelu"))
        with hub_access(f"{name}, {pretrained}", f"check the network, or give a file with --{role}-pretrained"):
            path = download_pretrained(tag)
        weights = pretrained
    elif pretrained == RANDOM:
        path, weights = None, RANDOM
    elif looks_like_path(pretrained):
        path, weights = pretrained, weights_file(pretrained, role, one_of(tags))
    else:
        raise unknown_name(f"{name} has no such weights", pretrained, tags, one_of(tags), code="weights-tag-unknown")
    return ClipSource(
        name=name,
        typed=name,
        role=role,
        model_cfg=model_cfg,
        preprocess_cfg=_preprocess(tag),
        weights_path=path,
        weights=weights,
        configured=bool(tag),
    )


def _preprocess(config: Mapping[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged: dict[str, Any] = merge_preprocess_dict(asdict(PreprocessCfg()), dict(config))
    return merged


def _local_folder(name: str, role: Role) -> tuple[dict[str, Any], str | None, str]:
    from open_clip.factory import _find_checkpoint_in_dir

    folder = UserFile.of(name.removeprefix(LOCAL_PREFIX))
    file = folder / _CONFIG
    if not file.exists():
        raise InputError(
            "no open_clip model in this folder",
            code="model-config-missing",
            where=folder,
            expected=f"{_CONFIG} and weights",
            found=f"no {_CONFIG}",
            hint=f"--{role} {LOCAL_PREFIX}FOLDER takes a folder that open_clip wrote, or a downloaded hub repository",
        )
    with quiet_libraries():
        weights: str | None = _find_checkpoint_in_dir(folder.path)
    files = [n for n in folder.names() if n.endswith((".safetensors", ".bin", ".pth"))]
    if weights is not None and len(files) > 1 and UserFile.of(weights).name not in _PREFERRED:
        raise InputError(
            "several weights files beside the model's configuration",
            code="weights-several",
            where=name,
            expected=f"one, or {_PREFERRED[0]}",
            found=", ".join(sorted(files)),
            hint=f"add --{role}-pretrained FILE",
        )
    return _parse(file.read_bytes(), where=file), weights, f"{LOCAL_PREFIX}{folder.name}"


def _hub_repository(name: str, role: Role, *, weights_wanted: bool) -> tuple[dict[str, Any], str | None, str]:
    from open_clip.pretrained import download_pretrained_from_hf

    repository = name.removeprefix(HUB_PREFIX)
    hint = f"check the name and the network, or download the repository and give --{role} {LOCAL_PREFIX}FOLDER"
    with hub_access(name, hint):
        path = download_pretrained_from_hf(repository, filename=_CONFIG)
        weights = download_pretrained_from_hf(repository) if weights_wanted else None
    return _parse(UserFile.of(path).read_bytes(), where=name), weights, name


def _parse(data: bytes, where: object) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(data)
        config["model_cfg"]["vision_cfg"], config["model_cfg"]["embed_dim"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            "not an open_clip configuration",
            code="model-config-malformed",
            where=where,
            expected="model_cfg with vision_cfg and embed_dim",
            found=f"{type(error).__name__}: {error}",
        ) from error
    try:
        check_vision_config(config["model_cfg"]["vision_cfg"], where=where, hint="choose another model")
    except DamagedError as error:
        raise InputError(
            error.what, code=error.code, where=error.where, expected=error.expected, found=error.found, hint=error.hint
        ) from error
    return config
