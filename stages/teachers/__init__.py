"""Teachers: one file a family, behind one Protocol. Only `vectors`, `cache` and the demo may import it."""

from __future__ import annotations

from ..models.teacher_config import TeacherConfig
from .base import Teacher, TeacherSpec
from .registry import load_teacher

__all__ = ["Teacher", "TeacherConfig", "TeacherSpec", "load_teacher"]
