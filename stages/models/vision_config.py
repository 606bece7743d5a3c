"""Owns what an image tower's configuration may hold: an allow-list of open_clip's `vision_cfg`, with types and ranges.

A configuration comes with a model or a student, perhaps from an untrusted source, and the libraries build what it holds: timm's
`create_model` takes `hf-hub:` and `local-dir:` for a name, and both libraries make room for whatever sizes are given.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import as_schema

#: Pixels of an image's side, at most.
MOST_PIXELS = 4096

Pixels = Annotated[int, msgspec.Meta(ge=1, le=MOST_PIXELS)]
Width = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
_Layers = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
_Factor = Annotated[float, msgspec.Meta(gt=0, le=64)]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]*\Z", max_length=32)]

#: A name of timm's registry, with or without a tag of its weights: nothing that is looked for elsewhere.
TimmName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?\Z", max_length=200)]


class NormOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of torch's `LayerNorm`."""

    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-5
    elementwise_affine: bool = True
    bias: bool = True


class ActivationOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of torch's `GELU`."""

    approximate: Literal["none", "tanh"] = "none"


class VisionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """open_clip's `vision_cfg`: every field of its `CLIPVisionCfg`, by its name, and no other."""

    # Lists, not tuples of fixed length: msgspec 0.22 crashes on a union of those and of numbers in a range.
    layers: _Layers | Annotated[list[_Layers], msgspec.Meta(min_length=4, max_length=4)] = 12
    width: Width = 768
    head_width: Width = 64
    mlp_ratio: _Factor = 4.0
    patch_size: Pixels | Annotated[list[Pixels], msgspec.Meta(min_length=2, max_length=2)] | None = 16
    image_size: Pixels | Annotated[list[Pixels], msgspec.Meta(min_length=2, max_length=2)] = 224
    ls_init_value: float | None = None
    patch_dropout: _Share = 0.0
    attentional_pool: bool | Literal["parallel", "cascade"] = False
    attn_pooler_queries: Width = 256
    attn_pooler_heads: Width = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    final_ln_after_pool: bool = False
    pool_type: Literal["tok", "avg", "none"] = "tok"
    output_tokens: bool = False
    act_kwargs: ActivationOptions | None = None
    norm_kwargs: NormOptions | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False
    timm_model_name: TimmName | None = None
    timm_model_pretrained: bool = False
    timm_pool: _Word = "avg"
    timm_proj: Literal["linear", "mlp", "none", ""] | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: _Share = 0.0
    timm_drop_path: _Share | None = None


def check_vision_config(fields: Json, *, where: object, hint: str) -> VisionConfig:
    """`vision_cfg`, checked; nothing is built, opened or fetched.

    Raises:
        DamagedError: a field that is not known, or another type or a number out of range; `found` names it.
    """
    config = as_schema(
        fields,
        VisionConfig,
        what="not a configuration of an image tower",
        code="vision-config-malformed",
        where=where,
        hint=hint,
    )
    if config.timm_model_name is not None:
        check_timm_name(config.timm_model_name, where=where)
    return config


def check_timm_name(name: str, *, where: object) -> None:
    """Whether timm's registry has a model and the tag of its weights, if one is named.

    Raises:
        DamagedError: it does not.
    """
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and name not in timm.models.get_arch_pretrained_cfgs(architecture)):
        raise DamagedError(
            "timm has no such model",
            code="bundle-model-unknown",
            where=where,
            expected="a model of timm's registry",
            found=name,
            hint="a newer timm may have it: pip install --upgrade timm",
        )
