"""Owns the table of student families: which one a name, or a bundle's configuration, belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...storage_schemas.fingerprint import Json
from ..models.names import DECODER_PREFIX, TIMM_PREFIX
from .described import check_backbone
from .family import Family


def family_of(name: str) -> Family:
    """The family that `--student NAME` belongs to: `timm:NAME`, `decoder:NAME`, or open_clip's spelling."""
    if name.startswith(DECODER_PREFIX):
        return _family("decoder")
    return _family("timm" if name.startswith(TIMM_PREFIX) else "open_clip")


def rebuild_backbone(config: Mapping[str, Json], *, where: object = None) -> nn.Module:
    """The module that a bundle's `student` entry describes; no file is opened, nothing fetched.

    Raises:
        DamagedError: it holds what is not allowed, see `check_backbone`.
    """
    return _family(check_backbone(config, where=where).family).rebuild(config)


def _family(name: str) -> Family:
    # Each family imports its library on first use: both take seconds.
    if name == "timm":
        from .timm import TimmFamily

        return TimmFamily()
    if name == "decoder":
        from .decoders import DecoderFamily

        return DecoderFamily()
    from .open_clip import OpenClipFamily

    return OpenClipFamily()
