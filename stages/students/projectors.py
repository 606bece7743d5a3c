"""Owns the names of projectors. Imports no library, since options are made of them."""

from __future__ import annotations

#: What may stand between a student's features and the teacher's; see `head.Head`.
PROJECTORS = ("linear", "mlp", "none")
