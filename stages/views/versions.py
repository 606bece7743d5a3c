"""Owns the versions of the libraries that decide a store's bytes, and the text on how two machines' differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import metadata

import numpy as np
import PIL
from PIL import features

#: What decodes and renders, beside Pillow itself: its names for the libraries that it was built with.
_IN_PILLOW = ("jpg", "libjpeg_turbo", "mozjpeg", "zlib", "zlib_ng", "webp", "avif", "jpg_2000", "libtiff")

#: Distributions that decide the teacher's outputs for those pixels, and how they are stored.
_BESIDE = ("teachonce", "torch", "open_clip_torch", "timm", "zarr")

#: Names in `pixel_versions` that can be installed.
_PACKAGES = ("Pillow", "numpy")


@functools.cache
def pixel_versions() -> Mapping[str, str]:
    """Versions of the libraries that decide pixels, of those that are there."""
    known = {*features.modules, *features.codecs, *features.features}
    built_in = {name: features.version(name) for name in _IN_PILLOW if name in known}
    versions = {"Pillow": PIL.__version__, "numpy": np.__version__, **built_in}
    return {name: version for name, version in versions.items() if version is not None}


def other_versions() -> dict[str, str]:
    """Versions of the other distributions that decide a store's bytes, of those that are installed."""
    versions = {}
    for name in _BESIDE:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def versions_text(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Which versions differ: `Pillow 12.0.0 there, 13.0.0 here; …`."""
    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not differing:
        return "with the same versions of all libraries"
    return "; ".join(f"{name} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here" for name in differing)


def install_hint(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What to install to render as there, as far as versions can do it: `install Pillow 12.0.0`, or ''."""
    differing = [name for name, version in there.items() if here.get(name) != version]
    packages = [f"{name} {there[name]}" for name in differing if name in _PACKAGES]
    if packages:
        return f"install {' and '.join(packages)}"
    libraries = ", ".join(f"{name} {there[name]}" for name in differing)
    return f"use a Pillow with {libraries}" if libraries else ""
