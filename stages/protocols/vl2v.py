"""Owns the run of a benchmark of VL2V-ADiP: one domain after the other left out, every stage by its own command, then the results.

A student that fails does not stop the others; what failed is reported at the end.
"""

from __future__ import annotations

import json
from typing import Any

from ...pipeline.command_runner import Runner
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, BundleConfig
from ...storage_schemas.errors import DamagedError, IncompleteError, TeachonceError
from ...storage_schemas.fingerprint import Json
from ..corpora.shards import ShardSet
from ..evaluate import evaluate
from ..measures.evaluation import Evaluation
from ..models.compute import resolve_compute
from ..models.settings import ComputeSettings
from ..settings.evaluate import EvaluateSettings
from ..students.registry import family_of
from ..teachers import load_teacher
from .domain_request import TEMPLATE, DomainRequest, Run
from .folders import PAGE, RESULTS, claim, keep
from .measured import measured_once
from .results import Failure
from .vl2v_results import DomainRun, facts_of
from .vl2v_table import page

#: The protocol, as the note in the folder has it.
_PROTOCOL = "leave one domain out"


def run_vl2v(request: DomainRequest, runner: Runner) -> dict[str, Json]:
    """Run the benchmark in its folder, or what is left of it; return and save the results.

    Raises:
        InputError, MismatchError: something is wrong before the first stage: data, names, options, folder.
        TeachonceError: the teacher's outputs cannot be made.
    """
    for command in request.all_commands(runner.where):
        runner.check(command)
    student = request.student
    bundles = [request.bundle(run, stage) for run in request.runs() for stage in (1, 2)]
    if any(_trained(bundle) is None for bundle in bundles):  # so that the teacher does not work for one that cannot be
        family_of(student.name).create(student.name, student.pretrained, seed=0, size=None)
    models = (request.teacher.name, request.teacher.pretrained, student.name, student.pretrained)
    claim(request.out, _PROTOCOL, (request.data.folder,), models, benchmark="vl2v")
    keep(request.templates, f"{TEMPLATE}\n")
    runner.say(f"\n{request.dataset}: one teacher, run once for {len(bundles)} trainings.")
    try:
        for command in request.teacher_commands(runner.where):
            runner.do(command)
    finally:
        runner.leave()
        load_teacher.cache_clear()  # students train without it
    work = _Work(request, runner)
    runs = [done for run in request.runs() if (done := work.run(run)) is not None]
    facts = facts_of(request, runs, work.failures)
    keep(request.out / RESULTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    keep(request.out / PAGE, page(facts))
    return facts


class _Work:
    """Trains and measures one student after another, and keeps what failed."""

    def __init__(self, request: DomainRequest, runner: Runner) -> None:
        self._request, self._runner = request, runner
        self._corpus = ShardSet.open(request.shards).corpus.corpus_id
        self.failures: list[Failure] = []

    def run(self, run: Run) -> DomainRun | None:
        """Both stages, and the accuracy on the domain that was left out; None where a user can act on the error."""
        try:
            for command in self._request.student_commands(run):
                self._runner.do(command)
            return self._measure(run)
        except TeachonceError as error:
            what = f"{run.domain}, seed {run.seed}"
            self.failures.append(Failure(dataset=self._request.dataset, what=what, error=str(error), code=error.code))
            self._runner.say(f"benchmark: {what} failed: {error.line}")
            return None

    def _measure(self, run: Run) -> DomainRun:
        request = self._request
        bundle = request.bundle(run, 2)
        digest = _trained(bundle)
        if digest is None:
            raise IncompleteError("the student is not trained", code="student-unfinished", where=bundle)

        def measure() -> Evaluation:
            self._runner.say(f"$ {self._runner.line(*request.evaluate_command(run))}")
            return self._evaluate(run, bundle)

        true_of = {"student": digest, "images": f"{run.domain} of {self._corpus}"}
        measured: Any = measured_once(request.measured(run), true_of, measure)
        if measured["accuracy"] is None:
            raise DamagedError(
                "no image with a label that is a class was measured", code="results-without-labels", where=run.domain
            )
        origins = tuple(_config(request.bundle(run, stage)).origin for stage in (1, 2))
        return DomainRun(
            run=run,
            bundle=str(bundle),
            accuracy=measured["accuracy"]["top1"]["rate"],
            images=measured["images"]["labelled"],
            unusable=len(measured["images"]["unusable"]),
            origins=origins,
        )

    def _evaluate(self, run: Run, bundle: Location) -> Evaluation:
        settled: Any = {name: value for name, value in self._request.compute.items() if value is not None}
        compute = resolve_compute(ComputeSettings(**{**settled, "precision": "fp32"}))
        images = self._request.data.domain(run.domain)
        return evaluate(str(bundle), images, compute=compute, settings=EvaluateSettings())


def _trained(bundle: Location) -> str | None:
    """The digest of a finished student."""
    receipt = Ledger(bundle, "distill").receipt("student")
    return None if receipt is None else receipt.digest


def _config(bundle: Location) -> BundleConfig:
    return BundleConfig.from_bytes((bundle / CONFIG).read_bytes(), where=bundle / CONFIG)
