"""Owns mending a caption store: how its captions are embedded again, from the texts that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...storage_schemas.caption_store import CaptionSpec
from ..models.compute import Compute
from ..models.teacher_config import TeacherConfig
from ..teachers import load_teacher
from ..teachers.caption_facts import caption_facts
from .captions_whole import CaptionsWhole, check_texts, texts_of
from .repair import compute_again


@dataclass(frozen=True, kw_only=True)
class CaptionsAgain:
    """The arguments of `CaptionsStage` by which a caption store was made.

    Attributes:
        spec: the store's, with what the teacher that is loaded says of itself.
    """

    spec: CaptionSpec
    compute: Compute
    batch_size: int


def captions_again(whole: CaptionsWhole, config: TeacherConfig) -> CaptionsAgain:
    """How the store's `captions` ran, as its plan says.

    Args:
        config: of its teacher.

    Raises:
        InputError: the teacher cannot be loaded; or it ran on a device that this machine does not have.
        DamagedError: the texts are gone, or not those that were embedded.
    """
    check_texts(texts_of(whole.store), whole.spec)
    return CaptionsAgain(
        spec=replace(whole.spec, **caption_facts(load_teacher(config))),
        compute=compute_again(whole.recorded_compute, whole.store),
        batch_size=int(whole.recorded.get("batch_size", 1)),
    )
