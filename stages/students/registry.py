"""Owns the table of student families: which one a name, or a bundle's configuration, belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...storage_schemas.fingerprint import Json
from ..models.names import TIMM_PREFIX
from .described import check_backbone
from .family import Family


def family_of(name: str) -> Family:
    """The family that `--student NAME` belongs to: `timm:NAME`, or open_clip's spelling."""
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
    from .open_clip import OpenClipFamily

    return OpenClipFamily()
