"""Owns which parts of paths tell whose caption a text is. Imports nothing: options are made of it."""

from __future__ import annotations

#: What of a path must be equal: all of it, the name, or the name without its ending.
MATCHES = ("path", "name", "stem")
