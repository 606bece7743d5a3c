"""Owns the names of projectors. Imports no library, since options are made of them."""

from __future__ import annotations

#: What may stand between a student's features and the teacher's; see `head.Head`.
PROJECTORS = ("linear", "mlp", "none")

#: In place of one: a layer of the student's own for the classes; see `head.Head.classes`.
CLASSES = "classes"
