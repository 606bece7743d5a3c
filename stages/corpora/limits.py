"""Owns the largest images and files that are read by default."""

from __future__ import annotations

#: Pixels. Pillow warns of bombs from here on.
MAX_PIXELS = 89_478_485

#: Bytes. Longer files are never read into memory.
MAX_BYTES = 1 << 30
