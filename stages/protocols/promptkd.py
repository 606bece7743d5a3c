"""Owns the run of a PromptKD benchmark: every stage of every data set by its own command, then the results.

A data set or a student that fails does not stop the others; what failed is reported at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from ...pipeline.command_runner import Runner
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import TeachonceError
from ...storage_schemas.fingerprint import Json
from ..students.registry import family_of
from ..teachers import load_teacher
from .costs import costs_of
from .folders import PAGE, RESULTS, DatasetFolders, claim, keep
from .measured import measure_student, measure_teacher
from .request import Model, Request
from .results import DatasetResults, Failure, StudentRun, facts_of
from .settings import BASE2NOVEL
from .steps import (
    Command,
    all_commands,
    evaluate_command,
    prompts_commands,
    student_command,
    teacher_commands,
)
from .table import page


def run_promptkd(request: Request, runner: Runner) -> dict[str, Json]:
    """Run the benchmark in its folder, or what is left of it; return and save the results.

    Raises:
        InputError, MismatchError: something is wrong before the first stage: data, names, options, folder.
        TeachonceError: the prompts for all targets of the cross-dataset protocol cannot be learned.
    """
    request.check()
    for command in all_commands(request, runner.where):
        runner.check(command)
    for student in request.students:
        _check_student(request, student)
    claim(request.out, request.protocol, (request.data, request.prompts), request.models)
    if request.protocol != BASE2NOVEL and request.prompts is None:
        runner.say("\nLearn the prompts that teach on all data sets.")
        _do(prompts_commands(request, request.datasets[0]), runner)
    work = _Work(request, runner)
    results = [work.dataset(dataset) for dataset in request.datasets]
    facts = facts_of(request, results, work.failures)
    keep(request.out / RESULTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    keep(request.out / PAGE, page(facts))
    return facts


class _Work:
    """Runs what is left of each data set, and keeps what failed."""

    def __init__(self, request: Request, runner: Runner) -> None:
        self._request, self._runner = request, runner
        self.failures: list[Failure] = []

    def dataset(self, dataset: str) -> DatasetResults:
        """The whole sequence; what could be measured in the end."""
        request, runner, has_teacher = self._request, self._runner, False
        runner.say(f"\n{dataset}: one teacher, run once for {self._runs()}.")

        def teach() -> None:
            nonlocal has_teacher
            if request.protocol == BASE2NOVEL:
                _do(prompts_commands(request, dataset), runner)
            _do(teacher_commands(request, dataset, runner.where), runner)
            has_teacher = True

        try:
            self._attempt(dataset, "teacher", teach)
        finally:
            runner.leave()
            load_teacher.cache_clear()  # students train without it
        if not has_teacher:
            return DatasetResults(dataset=dataset, teacher=None, runs=(), costs=None)
        teacher = self._attempt(dataset, "teacher", lambda: measure_teacher(request, dataset))
        runs = []
        for student in request.students:
            for seed in request.seeds:
                run = self._attempt(dataset, f"{student.folder}, seed {seed}", self._student(dataset, student, seed))
                if run is not None:
                    runs.append(run)
        return DatasetResults(
            dataset=dataset,
            teacher=teacher,
            runs=tuple(runs),
            costs=costs_of(request, dataset, [Location.of(run.bundle) for run in runs]),
        )

    def _student(self, dataset: str, student: Model, seed: int) -> Callable[[], StudentRun]:
        def train_and_measure() -> StudentRun:
            self._runner.do(student_command(self._request, dataset, student, seed))
            shown = evaluate_command(self._request, dataset, student, seed)
            show = f"$ {self._runner.line(*shown)}"
            return measure_student(self._request, dataset, student, seed, lambda: self._runner.say(show))

        return train_and_measure

    def _attempt(self, dataset: str, what: str, work: Callable[[], Any]) -> Any:
        """What the work returns; None, and the failure kept, where a user can act on its error."""
        try:
            return work()
        except TeachonceError as error:
            self.failures.append(Failure(dataset=dataset, what=what, error=str(error), code=error.code))
            self._runner.say(f"benchmark: {dataset} ({what}) failed: {error.line}")
            return None

    def _runs(self) -> str:
        students, seeds = len(self._request.students), len(self._request.seeds)
        return f"{students} student{'s' * (students > 1)} with {seeds} seed{'s' * (seeds > 1)}"


def _do(commands: Iterable[Command], runner: Runner) -> None:
    for command in commands:
        runner.do(command)


def _check_student(request: Request, student: Model) -> None:
    """Build a student that is not trained yet, so that the teacher does not work for one that cannot be.

    Raises:
        InputError: unknown model, or weights that are missing or do not fit.
    """
    bundles = [
        DatasetFolders(root=request.out, dataset=dataset, on_test=request.on_test).bundle(student.folder, seed)
        for dataset in request.datasets
        for seed in request.seeds
    ]
    if any(Ledger(bundle, "distill").receipt("student") is None for bundle in bundles):
        family_of(student.name).create(student.name, student.pretrained, seed=0, size=None)
