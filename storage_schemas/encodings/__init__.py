"""Encodings: how the values of a target become arrays of the store, and values again. One file each, behind one Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .encoding import EncodedArray, Encoding, Target
from .floats import ENCODINGS, is_exact

if TYPE_CHECKING:  # options are made of the names of encodings, and cost no import of numpy
    from .encoding import Floats

__all__ = ["ENCODINGS", "EncodedArray", "Encoding", "Floats", "Target", "is_exact"]
