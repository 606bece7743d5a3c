"""Owns the results of a benchmark: means and standard deviations over seeds, beside what is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ...storage_schemas.fingerprint import Json
from ..corpora.coop.published import BASE_TO_NOVEL, CROSS_DATASET
from ..measures.costs import Costs
from .costs import pretrain_seconds
from .request import Model, Request
from .settings import BASE2NOVEL, CROSS

#: Figures of each protocol, in the order of the table's columns.
FIGURES = {BASE2NOVEL: ("base", "novel", "harmonic_mean"), CROSS: ("accuracy",)}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Accuracies by name, shares of 1.

    Attributes:
        images: that they were measured on.
        unusable: test images that could not be used.
    """

    values: Mapping[str, float]
    images: int
    unusable: int


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """One student with one seed.

    Attributes:
        selected: epoch, counted from 1, that the best weights are of, and the figure there; None for the last epoch.
    """

    student: Model
    seed: int
    bundle: str
    figures: Figures
    selected: Mapping[str, Json] | None


@dataclass(frozen=True, kw_only=True)
class DatasetResults:
    """What could be measured on a data set."""

    dataset: str
    teacher: Figures | None
    runs: tuple[StudentRun, ...]
    costs: Costs | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What could not be done: `what` is `teacher`, or a student and its seed; `code` is the error's."""

    dataset: str
    what: str
    error: str
    code: str


def harmonic(base: float, novel: float) -> float:
    """2 b n / (b + n); 0 where both are."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def published_of(protocol: str, dataset: str) -> dict[str, float]:
    """PromptKD's figures, shares of 1."""
    percents = BASE_TO_NOVEL[dataset] if protocol == BASE2NOVEL else (CROSS_DATASET[dataset],)
    return {name: round(percent / 100, 4) for name, percent in zip(FIGURES[protocol], percents, strict=True)}


def facts_of(request: Request, results: Sequence[DatasetResults], failures: Sequence[Failure]) -> dict[str, Json]:
    """All results, as JSON. Accuracies are shares of 1; `std` is the sample's, null for one seed."""
    protocol = request.protocol
    rows = [
        {
            "dataset": result.dataset,
            "student": student.folder,
            "seeds": [run.seed for run in runs],
            **_over_seeds(protocol, [run.figures.values for run in runs]),
            "published": published_of(protocol, result.dataset),
            "teacher": None if result.teacher is None else dict(result.teacher.values),
            "test_images": runs[0].figures.images,
            "unusable_test_images": runs[0].figures.unusable,
            "runs": [
                {"seed": run.seed, "bundle": run.bundle, **run.figures.values, "selected": run.selected} for run in runs
            ],
        }
        for result in results
        for student in request.students
        if (runs := [run for run in result.runs if run.student == student])
    ]
    return {
        "benchmark": "promptkd",
        "protocol": protocol,
        "folder": str(request.out),
        "selected_on_test": request.on_test,
        "selection": selection(request),
        "teacher": None if request.teacher is None else request.teacher.folder,
        "prompts": request.prompts,
        "seeds": list(request.seeds),
        "rows": rows,
        "averages": [row for student in request.students if (row := _average(request, student, results))],
        "costs": {r.dataset: r.costs.to_json() for r in results if r.costs is not None},
        "shared_pretrain_seconds": pretrain_seconds(request, "") if protocol == CROSS else None,
        "failed": [failure.__dict__ for failure in failures],
    }


def selection(request: Request) -> str:
    """How each run's weights were chosen among its epochs, as a sentence."""
    if request.on_test:
        by = "harmonic mean" if request.protocol == BASE2NOVEL else "accuracy"
        return (
            f"SELECTED ON THE TEST IMAGES (--select-on-test): the epoch with the best {by} there, as the authors' code "
            "does. This is optimistic; it serves the comparison with the paper only."
        )
    by = "accuracy of base classes" if request.protocol == BASE2NOVEL else "accuracy"
    lacking = [dataset for dataset in request.datasets if request.validation_split(dataset) is None]
    last = f"; the last epoch for {', '.join(lacking)}, without a validation split" if lacking else ""
    return (
        f"Each student is that of the epoch with the best {by} on the validation split{last}. "
        "The paper's were selected on the test images."
    )


def _over_seeds(protocol: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Json]:
    """Mean and sample standard deviation of each figure."""
    return {
        name: {
            "mean": fmean(run[name] for run in runs),
            "std": stdev([run[name] for run in runs]) if len(runs) > 1 else None,
        }
        for name in FIGURES[protocol]
    }


def _average(request: Request, student: Model, results: Sequence[DatasetResults]) -> dict[str, Json] | None:
    """The row of averages over the data sets where this student has all its seeds; None if that is at most one.

    As in the paper, its harmonic mean is that of the average base and novel accuracy; for each seed, then over seeds.
    """
    protocol, names = request.protocol, FIGURES[request.protocol]
    whole: list[tuple[DatasetResults, dict[int, Mapping[str, float]]]] = []
    for result in results:
        runs = {run.seed: run.figures.values for run in result.runs if run.student == student}
        if len(runs) == len(request.seeds):
            whole.append((result, runs))
    if len(whole) < 2:
        return None

    def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        values = {name: fmean(row[name] for row in rows) for name in names}
        if protocol == BASE2NOVEL:
            values["harmonic_mean"] = harmonic(values["base"], values["novel"])
        return values

    teachers = [result.teacher.values for result, _ in whole if result.teacher is not None]
    return {
        "dataset": "average",
        "datasets": len(whole),
        "student": student.folder,
        **_over_seeds(protocol, [mean([runs[seed] for _, runs in whole]) for seed in request.seeds]),
        "published": mean([published_of(protocol, result.dataset) for result, _ in whole]),
        "teacher": mean(teachers) if len(teachers) == len(whole) else None,
    }
