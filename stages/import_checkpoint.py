"""`teachonce import`: converts the authors' checkpoints: a PromptSRC teacher as prompts, a PromptKD student as a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..pipeline.ledger import record_outputs
from ..pipeline.output import check_output
from ..pipeline.settings import check, option_name, settings_of
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..pipeline.user_files import UserFile
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Fingerprint, digest_json
from ..storage_schemas.receipt import Receipt
from .inputs.classes import read_classes
from .models.teacher_config import TeacherConfig
from .models.weights import read_weights_file
from .published.as_bundle import import_student
from .published.as_prompts import import_teacher
from .published.layout import STUDENT, TEACHER, classify
from .published.report import CheckpointContents, Import
from .settings.import_checkpoint import CONTEXT, ImportSettings

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
    def found(self) -> CheckpointContents:
        return self.content.found

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.content.identity)

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="checkpoint", rows=self.tensors)

    def open(self) -> RunUnit:
        return _Writing(self)


@dataclass(frozen=True)
class _Writing:
    """Writes what was read."""

    stage: ImportStage

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        with timer("write"):
            outputs = record_outputs(self.stage.out, list(self.stage.content.write(self.stage.out)))
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=(),
            digest=digest_json([output.sha256 for output in outputs]),
            fingerprint=self.stage.fingerprint.digest,
        )


def plan_import(
    checkpoint: str,
    *,
    out: Location | str,
    settings: ImportSettings,
) -> ImportStage:
    """Read a checkpoint, and plan what is to be written. Its keys decide which kind it is.

    Args:
        checkpoint: a torch or safetensors file of PromptSRC's or PromptKD's trainer.
        out: folder for the prompts, or for the student bundle.
        settings: what it does not hold itself; those of the other kind stay None.

    Raises:
        InputError: not such a file, a key that is unknown or missing, another model, an option too few or too many.
        MismatchError: base classes or class vectors that are not the file's.
        IncompleteError: the store has no class vectors.
    """
    check(settings)
    location = UserFile.of(checkpoint)
    teacher = None if settings.teacher is None else TeacherConfig.of(settings.teacher, settings.teacher_pretrained)
    models = (settings.student, settings.student_pretrained) if teacher is None else (teacher.model, teacher.pretrained)
    check_output(
        Location.of(out),
        ImportStage.name,
        inputs=(location, settings.vectors),
        names=(settings.classes, settings.base_classes, *models),
    )
    file = read_weights_file(checkpoint)
    layout = classify(file.weights.keys(), where=location.name)
    _check_options(layout.kind, settings, location.name)
    if layout.kind == STUDENT:
        assert settings.student is not None
        assert settings.vectors is not None
        content = import_student(
            location,
            file,
            layout,
            settings.student,
            settings.student_pretrained,
            store=Location.of(settings.vectors),
        )
    else:
        assert teacher is not None
        assert settings.classes is not None
        content = import_teacher(
            location,
            file,
            layout,
            teacher,
            names=read_classes(settings.classes),
            base=settings.base_classes,
            context=settings.context or CONTEXT,
            use_backbone=settings.weights == "backbone",
        )
    return ImportStage(out=Location.of(out), content=content, tensors=len(file.weights))


def _check_options(kind: str, settings: ImportSettings, where: str) -> None:
    """Refuse missing options that the kind of file needs, and options that do not apply to it."""
    given = {
        (setting.group, option_name(field.name)): getattr(settings, field.name) is not None
        for field, setting in settings_of(settings)
    }
    lacking = [option for option in _NEEDS[kind] if not given[kind, option]]
    if lacking:
        raise InputError(
            f"a {kind} needs {' and '.join(lacking)}",
            code="import-option-missing",
            where=where,
            hint="teachonce import --help says what for",
        )
    useless = [option for (of, option), is_given in given.items() if of != kind and is_given]
    if useless:
        raise InputError(
            f"a {kind} has no use for {', '.join(useless)}",
            code="import-option-useless",
            where=where,
            hint="leave it out",
        )
