"""Owns the table of teacher families: which one a name belongs to."""

from __future__ import annotations

import functools

from ..models.names import PROMPTS_PREFIX, TIMM_PREFIX
from .base import Teacher, TeacherConfig


@functools.lru_cache(maxsize=1)
def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher on the CPU, frozen, in eval mode and fp32. The last one stays loaded in this process.

    Raises:
        InputError: unknown model, missing or unfitting weights.
    """
    if config.model.startswith(TIMM_PREFIX):
        from .timm import TimmTeacher

        return TimmTeacher.load(config)
    if config.model.startswith(PROMPTS_PREFIX):
        from .prompted import PromptedTeacher

        return PromptedTeacher.load(config)
    from .open_clip import OpenClipTeacher

    return OpenClipTeacher.load(config)
