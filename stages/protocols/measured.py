"""Owns the accuracies of a benchmark: the teacher's from its store, students' by `evaluate`; what is measured is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, BundleConfig
from ...storage_schemas.errors import DamagedError, IncompleteError
from ...storage_schemas.fingerprint import Json, canonical_json
from ...storage_schemas.json_file import read_json
from ..corpora.shards import ShardSet
from ..evaluate import evaluate
from ..measures.evaluation import Evaluation
from ..measures.stored_accuracy import stored_accuracy
from ..models.compute import resolve_compute
from ..models.settings import ComputeSettings
from ..reports.evaluate_text import evaluation_json
from ..settings.evaluate import EvaluateSettings
from .folders import DatasetFolders
from .request import Model, Request
from .results import Figures, StudentRun
from .settings import BASE2NOVEL


def measure_teacher(request: Request, dataset: str) -> Figures:
    """The teacher's accuracy on the test images, by its cached outputs.

    Raises:
        IncompleteError: they are not all there.
    """
    folders = DatasetFolders(root=request.out, dataset=dataset)
    evaluation = stored_accuracy(folders.test_shards, folders.test_targets, base=_base(request))
    return _figures(request, evaluation_json(evaluation))


def measure_student(request: Request, dataset: str, student: Model, seed: int, show: Callable[[], None]) -> StudentRun:
    """The result of `evaluate` for a student, kept with the digests of the student and of the images that it holds for.

    Args:
        request: the benchmark.
        dataset: its test images.
        student, seed: which.
        show: called before anything is measured again.

    Raises:
        IncompleteError: the student is not trained.
        TeachonceError: whatever `evaluate` raises.
    """
    folders = DatasetFolders(root=request.out, dataset=dataset, on_test=request.on_test)
    bundle, kept = folders.bundle(student.folder, seed), folders.measured(student.folder, seed)
    receipt = Ledger(bundle, "distill").receipt("student")
    if receipt is None:
        raise IncompleteError("the student is not trained", code="student-unfinished", where=bundle)
    true_of = {"student": receipt.digest, "images": ShardSet.open(folders.test_shards).corpus.corpus_id}

    def measure() -> Evaluation:
        show()
        return _evaluate(request, dataset, str(bundle))

    measured = measured_once(kept, true_of, measure)
    config = BundleConfig.from_bytes((bundle / CONFIG).read_bytes(), where=bundle / CONFIG)
    best = config.origin.get("validation")
    return StudentRun(
        student=student,
        seed=seed,
        bundle=str(bundle),
        figures=_figures(request, measured),
        selected=None if best is None else {"epoch": best["epoch"] + 1, "accuracy": best["accuracy"]},
    )


def measured_once(kept: Location, true_of: Mapping[str, str], measure: Callable[[], Evaluation]) -> Json:
    """What was measured, as `evaluate --json` has it: from the file that keeps it, or by measuring it.

    Args:
        kept: the file.
        true_of: digests of what it holds for.
        measure: measures.
    """
    found = _kept(kept.read_bytes(), true_of) if kept.exists() else None
    if found is None:
        found = evaluation_json(measure())
        kept.write_bytes(canonical_json({**true_of, "measured": found}) + b"\n")
    return found


def _evaluate(request: Request, dataset: str, bundle: str) -> Evaluation:
    compute = {name: value for name, value in request.compute.items() if value is not None}
    settled: Any = {**compute, "precision": "fp32"}
    return evaluate(
        bundle,
        request.split(dataset, "test"),
        compute=resolve_compute(ComputeSettings(**settled)),
        settings=EvaluateSettings(base_classes=_base(request)),
    )


def _kept(data: bytes, true_of: Mapping[str, str]) -> Json | None:
    """What was measured, if it is of this student and these images."""
    try:
        found = read_json(
            data,
            dict[str, Any],
            what="not a note of results",
            code="results-note-malformed",
            where="measured",
            hint="",
        )
    except DamagedError:
        return None  # it is measured again
    return found.get("measured") if all(found.get(name) == value for name, value in true_of.items()) else None


def _base(request: Request) -> str | None:
    return "@half" if request.protocol == BASE2NOVEL else None


def _figures(request: Request, measured: Mapping[str, Any]) -> Figures:
    if measured["accuracy"] is None:
        raise DamagedError("no image with a label that is a class was measured", code="results-without-labels")
    images, unusable = measured["images"]["labelled"], len(measured["images"]["unusable"])
    if request.protocol != BASE2NOVEL:
        values = {"accuracy": measured["accuracy"]["top1"]["rate"]}
    else:
        split = measured["base_novel"]
        values = {
            "base": split["base"]["rate"],
            "novel": split["novel"]["rate"],
            "harmonic_mean": split["harmonic_mean"]["mean"],
        }
    if None in values.values():
        raise DamagedError(
            "there are test images of one side of the split only",
            code="results-one-sided",
            where=str(request.data),
        )
    return Figures(values=values, images=images, unusable=unusable)
