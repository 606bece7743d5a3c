"""Owns the table of forms."""

from __future__ import annotations

from .form import Form


def form_named(name: str) -> Form:
    """The form of that name, one of `settings.export.FORMS`; each imports its library on first use."""
    if name == "onnx":
        from .onnx import Onnx

        return Onnx()
    if name == "torchscript":
        from .torchscript import TorchScript

        return TorchScript()
    if name == "timm":
        from .timm import Timm

        return Timm()
    from .open_clip import OpenClip

    return OpenClip()
