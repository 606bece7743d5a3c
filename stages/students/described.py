"""Owns what a bundle may hold of its student's backbone: an allow-list, since libraries build whatever a description holds.

Of the two libraries timm's `create_model` alone would open `checkpoint_path`, fetch what `pretrained_cfg` names, and take
a name for a repository. The same list is looked at when a student is created: what training writes can be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.json_file import as_schema
from ..models.vision_config import Pixels, TimmName, VisionConfig, Width, check_timm_name, check_vision_config

_WHAT = "not a description of a student's model"
_HINT = "point to a folder that `teachonce distill` wrote"


class OpenClipBackbone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image tower of open_clip's. `name` is for people only."""

    family: Literal["open_clip"]
    name: str
    embed_dim: Width
    vision_cfg: VisionConfig
    quick_gelu: bool
    trunk_size: Pixels | None


class TimmOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What timm's `create_model` is given beside the name."""

    img_size: Pixels | msgspec.UnsetType = msgspec.UNSET


class TimmBackbone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of timm's registry, without its classifier; `name` is `NAME` or `NAME.TAG`."""

    family: Literal["timm"]
    name: TimmName
    kwargs: TimmOptions


class DecoderBackbone(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder of this program's; `name` is that of the network that it mirrors, and its maps are the head's levels."""

    family: Literal["decoder"]
    name: Literal["resnet18", "resnet34", "resnet50", "wide_resnet50_2"]


def check_backbone(fields: Mapping[str, Json], *, where: object) -> OpenClipBackbone | TimmBackbone | DecoderBackbone:
    """A bundle's `student` entry, checked; nothing is built, opened or fetched.

    Raises:
        DamagedError: no such family, a field that is not known, or another type or a number out of range.
    """
    family = fields.get("family")
    if family == "open_clip":
        about = as_schema(
            dict(fields),
            OpenClipBackbone,
            what=_WHAT,
            code="bundle-student-malformed",
            where=where,
            hint=_HINT,
        )
        check_vision_config(fields["vision_cfg"], where=where, hint=_HINT)
        if about.vision_cfg.timm_model_pretrained:
            raise DamagedError(
                _WHAT,
                code="bundle-student-malformed",
                where=where,
                expected="weights in the bundle",
                found="timm_model_pretrained",
                hint=_HINT,
            )
        return about
    if family == "timm":
        model = as_schema(
            dict(fields), TimmBackbone, what=_WHAT, code="bundle-student-malformed", where=where, hint=_HINT
        )
        check_timm_name(model.name, where=where)
        return model
    if family == "decoder":
        return as_schema(
            dict(fields), DecoderBackbone, what=_WHAT, code="bundle-student-malformed", where=where, hint=_HINT
        )
    raise DamagedError(
        "a bundle of an unknown family of students",
        code="bundle-family-unknown",
        where=where,
        expected="timm, open_clip or decoder",
        found=family,
        hint=_HINT,
    )
