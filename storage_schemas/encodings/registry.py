"""Owns which encodings there are, and finds the one that a store's description names."""

from __future__ import annotations

from typing import Any

from .encoding import Encoding
from .floats import ENCODINGS


def encoding_from_json(found: Any) -> Encoding:
    """What `Encoding.to_json` gave.

    Raises:
        ValueError: something else, or an encoding of a later version.
    """
    if isinstance(found, str) and found in ENCODINGS:
        return ENCODINGS[found]
    raise ValueError(found)
