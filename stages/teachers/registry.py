"""Owns the table of teacher families: which one a name belongs to. Installed packages add theirs (entry points `teachonce.teachers`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import cast

from ...pipeline.lean_imports import complete_open_clip
from ...storage_schemas.errors import InputError
from ..models.names import BUNDLE_PREFIX, PROMPTS_PREFIX, PYTHON_PREFIX, TIMM_PREFIX, TRANSFORMERS_PREFIX
from ..models.teacher_config import TeacherConfig
from .base import Teacher

#: An entry point NAME of this group loads the teachers whose models are spelled `NAME:…`: a function from `TeacherConfig`.
GROUP = "teachonce.teachers"


@contextlib.contextmanager
def teacher_for_one_run() -> Iterator[Callable[[], None]]:
    """Inside, planning and working in this process share one teacher; at the end it is let go, with its memory.

    Yields:
        A function that lets it go before: where others do the work.
    """
    try:
        yield load_teacher.cache_clear
    finally:
        load_teacher.cache_clear()


@functools.lru_cache(maxsize=1)
def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher on the CPU, frozen, in eval mode and fp32. The last one stays loaded in this process, see `teacher_for_one_run`.

    Raises:
        InputError: unknown model, missing or unfitting weights; another package's family that cannot be loaded.
    """
    if config.model.startswith(TIMM_PREFIX):
        from .timm import TimmTeacher

        return TimmTeacher.load(config)
    if config.model.startswith(TRANSFORMERS_PREFIX):
        from .transformers import TransformersTeacher

        return TransformersTeacher.load(config)
    if config.model.startswith(PYTHON_PREFIX):
        from .function import FunctionTeacher

        return FunctionTeacher.load(config)
    if config.model.startswith(PROMPTS_PREFIX):
        from .prompted import PromptedTeacher

        return PromptedTeacher.load(config)
    if config.model.startswith(BUNDLE_PREFIX):
        from .bundle import BundleTeacher

        return BundleTeacher.load(config)
    prefix, colon, _ = config.model.partition(":")
    for point in entry_points(group=GROUP, name=prefix) if colon else ():
        complete_open_clip()
        try:
            load = cast("Callable[[TeacherConfig], Teacher]", point.load())
        except Exception as error:  # whatever another package raises while it is imported
            raise InputError(
                "a package's teachers cannot be loaded",
                code="plugin-unloadable",
                where=config.model,
                expected=point.value,
                found=f"{type(error).__name__}: {error}",
                hint="mend the package, or uninstall it",
            ) from error
        return load(config)
    from .open_clip import OpenClipTeacher

    return OpenClipTeacher.load(config)
