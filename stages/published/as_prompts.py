"""Owns turning a PromptSRC checkpoint into a folder of prompts."""

from __future__ import annotations

from ...pipeline.storage import Location
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.formats import PROMPTS_FOLDER
from ...storage_schemas.prompts import PromptsConfig
from ..models.teacher_config import TeacherConfig
from ..models.weights import WeightsFile
from ..prompts.folder import write_prompts
from ..prompts.text import context_embedding
from ..teachers.base import require_open_clip
from ..teachers.open_clip import OpenClipTeacher
from .class_texts import learned_classes, read_class_texts
from .layout import CheckpointLayout
from .promptsrc import take_teacher
from .report import Import, activation_note, describe, prompt_sizes


def import_teacher(
    location: UserFile,
    file: WeightsFile,
    layout: CheckpointLayout,
    config: TeacherConfig,
    *,
    names: tuple[str, ...],
    base: str | None,
    context: str,
    use_backbone: bool,
) -> Import:
    """What to write of a PromptSRC checkpoint.

    Args:
        location, file, layout: the checkpoint.
        config: the open_clip model that it was trained with.
        names: all classes, base and novel.
        base: see `learned_classes`.
        context: the words that text prompts stand in for.
        use_backbone: whether the file's frozen weights are left out, if it has some.

    Raises:
        InputError: as `take_teacher`, `read_class_texts` and `learned_classes`; a context that is too short.
        MismatchError: as `learned_classes`.
    """
    where = location.name
    require_open_clip(config.model)
    backbone = OpenClipTeacher.load(config)
    taken = take_teacher(layout, file.weights, backbone.model, config.model, where=where)
    length = taken.shape.text_length
    try:
        context_embedding(backbone.model, backbone.tokenizer, context, length)
    except InputError as error:
        hint = "give the words that the prompts were learned from"
        raise InputError(
            error.what, code=error.code, where=error.where, expected=error.expected, found=error.found, hint=hint
        ) from error
    texts = read_class_texts(file.weights, backbone.model, backbone.tokenizer, names, context, length, where=where)
    base_names, notes = learned_classes(base, names, texts, where)
    use_towers = taken.towers is not None and not use_backbone
    found = describe(
        location,
        file,
        layout,
        prompt_sizes(taken.prompts),
        frozen=taken.drift,
        taken="checkpoint" if use_towers else "backbone",
        class_texts=texts,
        notes=(f"teacher {backbone.loaded}", *activation_note(backbone.model, "--teacher", config.model), *notes),
    )
    spec = backbone.spec
    about: dict[str, Json] = {
        "model": config.model,
        "pretrained": config.pretrained,
        "architecture": spec.architecture,
        "weights": spec.weights_digest,
        "preprocess": spec.preprocess.to_json(),
    }
    prompts_config = PromptsConfig(
        backbone=about,
        shape=taken.shape.to_json(),
        context=context,
        class_names=names,
        base_classes=base_names,
        origin={"method": "PromptSRC", "checkpoint": found.facts()},
    )
    identity = {
        "schema_version": PROMPTS_FOLDER.version,
        "checkpoint": found.sha256,
        # Not `pretrained`, which may be a path: the digest of the weights stands for it.
        "teacher": {
            **{field: about[field] for field in ("architecture", "weights", "preprocess")},
            "model": spec.model,
        },
        "classes": list(names),
        "base_classes": list(base_names),
        "context": context,
        "weights": found.taken,
    }

    def write(folder: Location) -> tuple[str, ...]:
        return write_prompts(folder, taken.prompts, prompts_config, taken.towers if use_towers else None)

    return Import(found=found, identity=identity, write=write)
