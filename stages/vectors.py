"""`teachonce vectors`: computes class vectors once and stores them; the text tower is never needed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.class_vectors import ClassVectors
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.formats import CLASS_VECTORS
from ..storage_schemas.receipt import Output, Receipt
from ..storage_schemas.target_store import check_version, open_root
from .growth.class_arrays import write_vectors
from .inputs.class_match import base_classes
from .inputs.classes import read_classes, read_templates
from .models.compute import Compute, resolve_compute
from .models.settings import ComputeSettings
from .models.teacher_config import TeacherConfig
from .pairs.store_root import refuse_lost_root
from .settings.vectors import VectorsSettings
from .teachers import Teacher, TeacherSpec, load_teacher
from .teachers.base import refuse_templates
from .teachers.class_check import Checked, check_accuracy, check_spread


@dataclass(frozen=True, kw_only=True)
class VectorsStage:
    """One unit: the class vectors of one teacher for one class list.

    Attributes:
        base_C: bool (class,): which to mark as base classes; None leaves that to the teacher.
        check: labelled images to try the vectors on before they are written; None for none.
        notes: lines that a person should see before it starts.
    """

    store: Location
    config: TeacherConfig
    teacher: TeacherSpec
    names: tuple[str, ...]
    templates: tuple[str, ...]
    base_C: NDArray[np.bool_] | None
    check: str | None
    compute: Compute
    notes: tuple[str, ...] = ()

    name = "vectors"

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    @property
    def fingerprint(self) -> Fingerprint:
        fields: dict[str, Json] = {
            "schema_version": CLASS_VECTORS.version,
            "teacher": {
                "model": self.teacher.model,
                "architecture": self.teacher.architecture,
                "weights": self.teacher.weights_digest,
            },
            "classes": list(self.names),
            "compute": self.compute.to_json(),
        }
        if self.teacher.takes_templates:
            fields["templates"] = list(self.templates)
        if self.base_C is not None:
            fields["base_classes"] = np.array(self.names, object)[self.base_C].tolist()
        return Fingerprint(fields=fields)

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="class_vectors", rows=len(self.names))

    def open(self) -> RunUnit:
        import torch

        teacher = load_teacher(self.config).to(torch.device(self.compute.device))

        return _Computing(self, teacher)

    def _write(self, vectors: ClassVectors, checked: Checked | None) -> tuple[Output, ...]:
        root = open_root(self.store.zarr_store(), mode="a", where=self.store)
        templates = list(self.templates) if self.teacher.takes_templates else []
        origin = {"teacher": self.teacher.to_json(), "templates": templates}
        if checked is not None:
            origin["check"] = checked.to_json()
        return write_vectors(self.store, root, vectors, origin)


@dataclass(frozen=True)
class _Computing:
    """Computes class vectors and writes them."""

    stage: VectorsStage
    teacher: Teacher

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        with timer("forward"), self.stage.compute.inference():
            vectors = self.teacher.class_vectors(self.stage.names, self.stage.templates)
        if self.stage.base_C is not None:
            vectors = replace(vectors, base_C=self.stage.base_C)
        check_spread(vectors, where=self.stage.teacher.model)
        checked = None
        if self.stage.check is not None:
            with timer("check"):
                checked = check_accuracy(
                    self.teacher,
                    vectors,
                    self.stage.check,
                    self.stage.compute,
                    where=self.stage.teacher.model,
                )
        with timer("write"):
            outputs = self.stage._write(vectors, checked)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=vectors.num_classes,
            invalid_rows=(),
            digest=vectors.digest,
            fingerprint=self.stage.fingerprint.digest,
        )


def plan_vectors(
    config: TeacherConfig,
    *,
    out: Location | str,
    settings: VectorsSettings | None = None,
    compute: Compute | None = None,
) -> VectorsStage:
    """The stage that computes class vectors.

    Args:
        config: the teacher.
        out: the target store; made if it is not there.
        settings: None for the teacher's own classes.
        compute: default: as `resolve_compute` settles it, but in fp32: it is done once.

    Raises:
        InputError: see the readers; a teacher without classes of its own and no list.
        MismatchError: `out` is no target store of this version.
    """
    settings = settings or VectorsSettings()
    check(config, "teacher")
    store, classes, base = Location.of(out), settings.classes, settings.base_classes
    check_output(
        store,
        VectorsStage.name,
        inputs=(settings.check,),
        names=(classes, settings.templates, base, config.model, config.pretrained, config.backbone),
    )
    refuse_lost_root(store)
    names = read_classes(classes) if classes is not None else None
    refuse_templates(config, settings.templates)
    texts = read_templates(settings.templates)
    teacher = load_teacher(config)
    names = teacher.class_names(names)
    base_C = None if base is None else base_classes(base, names)
    # A missing tokenizer is an error before anything is written.
    notes = teacher.name_notes(names, texts)
    claim_output(store, VectorsStage.name)
    check_version(open_root(store.zarr_store(), mode="a", where=store), where=store)
    return VectorsStage(
        store=store,
        config=config,
        teacher=teacher.spec,
        names=names,
        templates=texts,
        base_C=base_C,
        check=settings.check,
        compute=compute or resolve_compute(ComputeSettings(precision="fp32")),
        notes=(f"teacher {teacher.loaded}", *notes),
    )
