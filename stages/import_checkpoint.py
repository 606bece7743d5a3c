"""`teachonce import`: brings the authors' checkpoints here: a PromptSRC teacher as prompts, a PromptKD student as a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..pipeline.ledger import record_outputs
from ..pipeline.output import check_output
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..pipeline.user_files import UserFile
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Fingerprint, digest_json
from ..storage_schemas.receipt import Receipt
from .inputs.classes import read_classes
from .models.weights import read_weights_file
from .published.as_bundle import import_student
from .published.as_prompts import import_teacher
from .published.layout import STUDENT, TEACHER, classify
from .published.report import Found, Import
from .teachers.base import TeacherConfig

#: Words that the authors' text prompts start from.
CONTEXT = "a photo of a"

#: What each kind of checkpoint needs.
_NEEDS = {TEACHER: ("--teacher", "--classes"), STUDENT: ("--student", "--vectors")}


@dataclass(frozen=True, kw_only=True)
class ImportStage:
    """One unit: one file. Made by `plan_import`, which has read it; so it runs in the process that planned it.

    Attributes:
        content: what the file held, and what is to be written of it.
        tensors: in the file.
    """

    out: Location
    content: Import
    tensors: int

    name = "import"
    resources = Resources()

    @property
    def found(self) -> Found:
        return self.content.found

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.content.identity)

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="checkpoint", rows=self.tensors)

    def open(self) -> RunUnit:
        def run(unit: Unit, timer: Timer) -> Receipt:
            with timer("write"):
                outputs = record_outputs(self.out, list(self.content.write(self.out)))
            return Receipt(
                key=unit.key, outputs=outputs, rows=unit.rows, invalid_rows=(),
                digest=digest_json([output.sha256 for output in outputs]), fingerprint=self.fingerprint.digest,
            )  # fmt: skip

        return run


def plan_import(
    checkpoint: str,
    *,
    out: Location | str,
    teacher: TeacherConfig | None = None,
    classes: str | None = None,
    base: str | None = None,
    context: str | None = None,
    weights: str | None = None,
    student: str | None = None,
    student_pretrained: str | None = None,
    vectors: Location | str | None = None,
) -> ImportStage:
    """Read a checkpoint, and say what is to be written. Which kind it is, its keys tell.

    Args:
        checkpoint: a torch or safetensors file of PromptSRC's or PromptKD's trainer.
        out: folder for the prompts, or for the student bundle.
        teacher: for a teacher: the open_clip model that it was trained with.
        classes: for a teacher: all classes, see `read_classes`.
        base: for a teacher: see `learned_classes`.
        context: for a teacher: the words that text prompts stand in for; None is `CONTEXT`.
        weights: for a teacher: `checkpoint` (None: the same) for the towers that the file has, or `backbone`.
        student, student_pretrained: for a student: the open_clip model that it was trained with.
        vectors: for a student: the store with its teacher's class vectors.

    Raises:
        InputError: not such a file, a key that is unknown or missing, another model, an option too few or too many.
        MismatchError: base classes or class vectors that are not the file's.
        IncompleteError: the store has no class vectors.
    """
    location = UserFile.of(checkpoint)
    models = (student, student_pretrained) if teacher is None else (teacher.model, teacher.pretrained)
    check_output(
        Location.of(out), ImportStage.name, inputs=(location, vectors), names=(classes, base, *models)
    )
    file = read_weights_file(checkpoint)
    layout = classify(file.weights.keys(), where=location.name)
    given: dict[str, dict[str, object]] = {
        TEACHER: {
            "--teacher": teacher, "--classes": classes, "--base-classes": base, "--context": context, "--weights": weights,
        },
        STUDENT: {"--student": student, "--student-pretrained": student_pretrained, "--vectors": vectors},
    }  # fmt: skip
    _check_options(layout.kind, given, location.name)
    if layout.kind == STUDENT:
        assert student is not None
        assert vectors is not None
        content = import_student(
            location, file, layout, student, student_pretrained, store=Location.of(vectors)
        )
    else:
        assert teacher is not None
        assert classes is not None
        content = import_teacher(
            location, file, layout, teacher, names=read_classes(classes), base=base, context=context or CONTEXT,
            use_backbone=weights == "backbone",
        )  # fmt: skip
    return ImportStage(out=Location.of(out), content=content, tensors=len(file.weights))


def _check_options(kind: str, given: Mapping[str, Mapping[str, object]], where: str) -> None:
    """Refuse options that the kind of file needs and lacks, or has no use for."""
    lacking = [option for option in _NEEDS[kind] if given[kind][option] is None]
    if lacking:
        raise InputError(
            f"a {kind} needs {' and '.join(lacking)}",
            where=where,
            hint="teachonce import --help says what for",
        )
    useless = [
        o for other in given if other != kind for o, value in given[other].items() if value is not None
    ]
    if useless:
        raise InputError(f"a {kind} has no use for {', '.join(useless)}", where=where, hint="leave it out")
