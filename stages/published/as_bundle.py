"""Owns turning a PromptKD student's checkpoint into a student bundle."""

from __future__ import annotations

from dataclasses import replace

from ...pipeline.storage import Location
from ...pipeline.user_files import UserFile
from ...storage_schemas.bundle import CONFIG, VECTORS, WEIGHTS, BundleConfig
from ...storage_schemas.class_vectors import read_origin
from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.formats import BUNDLE
from ..models.names import RANDOM
from ..models.weights import WeightsFile, weights_digest
from ..pairs.store import open_store, read_vectors
from ..students.bundle import write_bundle
from ..students.registry import family_of
from .layout import CheckpointLayout
from .promptkd import take_student
from .report import Import, activation_note, describe, prompt_sizes


def import_student(
    location: UserFile,
    file: WeightsFile,
    layout: CheckpointLayout,
    name: str,
    pretrained: str | None,
    *,
    store: Location,
) -> Import:
    """What to write of a PromptKD student's checkpoint.

    Args:
        location, file, layout: the checkpoint.
        name, pretrained: the open_clip model that it was trained from.
        store: holds its teacher's class vectors.

    Raises:
        InputError: as `take_student`; no weights to compare with; no store.
        IncompleteError: the store has no class vectors.
        MismatchError: class vectors of another width, or of a linear head.
    """
    family = family_of(name)
    if pretrained == RANDOM or (pretrained is None and not family.implies_weights(name)):
        raise InputError(
            "a student's weights are compared with those that it was trained from",
            code="import-weights-needed",
            where=name,
            expected="--student-pretrained TAG or PATH",
            found=pretrained or "none",
            hint="add --student-pretrained openai, as the authors have it",
        )
    backbone = family.create(name, pretrained, seed=0, size=None)
    root = open_store(store)
    vectors = read_vectors(root, store)
    taken = take_student(layout, file.weights, backbone, name, where=location.name)
    head = taken.student.head
    if (vectors.embed_dim, vectors.normalized) != (head.embed_dim, True) or vectors.bias_C is not None:
        kind = "text features" if vectors.normalized and vectors.bias_C is None else "rows of a linear head"
        raise MismatchError(
            "these class vectors are not of the student's teacher",
            code="vectors-not-for-student",
            where=store,
            expected=f"text features of {head.embed_dim} channels (the student)",
            found=f"{kind} of {vectors.embed_dim} channels (the store)",
            hint="teachonce import its teacher, then teachonce vectors --teacher teachonce:FOLDER",
        )
    loaded = backbone.to_text(name, weights_digest(backbone.module))
    found = describe(
        location,
        file,
        layout,
        prompt_sizes(taken.student.state_dict()),
        frozen=taken.drift,
        taken="checkpoint",
        projector=len(layout.projector),
        notes=(f"student {loaded}", *activation_note(backbone.module, "--student", name)),
    )
    origin = read_origin(root, store)
    config = BundleConfig(
        student=backbone.config,
        head=head.to_json(),
        preprocess=backbone.preprocess.to_json(),
        class_names=vectors.names,
        base_classes=vectors.base_names,
        logit_scale=taken.logit_scale,
        normalized=True,
        origin={
            "method": "PromptKD",
            "checkpoint": found.facts(),
            "class_vectors": vectors.digest,
            "store": {"teacher": origin["teacher"]},
            "student_weights": backbone.weights,
        },
    )
    identity = {
        "schema_version": BUNDLE.version,
        "checkpoint": found.sha256,
        "student": {"model": dict(backbone.config), "preprocess": backbone.preprocess.to_json()},
        "class_vectors": vectors.digest,
    }

    def write(folder: Location) -> tuple[str, ...]:
        write_bundle(folder, taken.student, replace(vectors, logit_scale=taken.logit_scale), config)
        return (CONFIG, VECTORS, WEIGHTS)

    return Import(found=found, identity=identity, write=write)
