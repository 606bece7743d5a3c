"""Owns the check of a shard's values by the teacher itself: it runs again on some rows, and what differs is explained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import MismatchError, TeachonceError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..models.compute import Compute
from ..models.names import RANDOM
from ..models.preprocess import Preprocess
from ..models.teacher_config import TeacherConfig
from ..teachers import load_teacher
from .cause import Cause, Hypothesis
from .differences import Apart, all_apart, apart
from .explain import Explained, explain
from .finding import Finding, Findings
from .measured import Measured
from .repair_hint import repair_command
from .rerun import Rerun, Values
from .sampled_rows import RowSampler, SampledRows
from .stored_loss import LostBefore, as_distances, is_relative, stored_and_read
from .tolerance import Tolerance, other_precision, rounding_share, tolerances
from .value_causes import Evidence
from .whole import Whole

#: Rows by which a cause is told: more than were drawn of a shard, if need be.
_ROWS_TO_EXPLAIN = 8

#: Shards without an explanation after which a worker looks for none.
_PATIENCE = 2

#: Untrained models give nearly the same for every image: the spread of their values is so many times less.
_UNTRAINED = 10.0


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """Which teacher runs again, and on how many rows of each shard; small, and picklable.

    Attributes:
        config: as it is loaded, prepared as the store records.
        own: the model's own preprocessing.
        same_weights: whether they are those that the store records.
        recorded_random: whether those that the store records are random ones.
        rows: how many of each shard.
        seed: of the draw.
    """

    config: TeacherConfig
    own: Preprocess
    same_weights: bool
    recorded_random: bool
    compute: Compute
    rows: tuple[int, ...]
    seed: int

    def open(self, whole: Whole) -> TeacherCheck:
        """Loads the teacher."""
        return TeacherCheck(whole, self)


class TeacherCheck:
    """Looks at one shard after another with a loaded teacher; one at a time."""

    def __init__(self, whole: Whole, plan: TeacherPlan) -> None:
        self._whole, self._plan = whole, plan
        self._sampler = RowSampler(whole, plan.seed)
        self._rerun = Rerun(
            teacher=load_teacher(plan.config),
            vectors=whole.vectors,
            views=whole.views,
            kind=self._sampler.kind,
            compute=plan.compute,
        )
        self._unexplained = 0

    def look_at(self, shard: int, findings: Findings) -> Measured:
        """What differs in one shard is noted in `findings`.

        Raises:
            DamagedError: the shard is damaged on either side.
        """
        count = self._plan.rows[shard]
        sample = self._sampler.draw(shard, count) if count else None
        if sample is None:
            return Measured()
        evidence = self._evidence(sample)
        found = all_apart(sample.stored, evidence.given)
        if evidence.wrong:
            findings.append(self._finding(shard, count, evidence))
        return Measured(rows=len(sample.rows), by_target=found, allowed=evidence.allowed)

    def _evidence(self, sample: SampledRows) -> Evidence:
        rerun, names = self._rerun, sample.names
        pixels = rerun.pixels(sample)
        given = rerun.values(pixels, names)
        other = other_precision(rerun.compute)
        given, rough = self._comparable(given, sample), self._comparable(rerun.values(pixels, names, other), sample)
        rounding = all_apart(given, rough)
        # What is left of values that are stored already does not change; but a small difference may be a step of the encoding.
        loss = {
            name: rounding[name]
            if is_relative(self._whole.description.spec, name)
            else apart(name, values, self._stored(name, values, sample))
            for name, values in given.items()
        }
        known = {name: as_distances(self._whole.lost[name], self._whole.description.spec, name) for name in rounding}
        # What values had lost before they were stored may not be known.
        recorded = self._whole.recorded_compute
        share = {name: rounding_share(recorded, rerun.compute, known=lost is not None) for name, lost in known.items()}
        before = {name: lost or LostBefore() for name, lost in known.items()}
        return Evidence(
            sample=sample,
            given=given,
            allowed=tolerances(rounding, loss, before, share),
            in_bf16=tolerances(rounding, loss, before, dict.fromkeys(rounding, 1.0)),
            sampler=self._sampler,
            num_shards=self._whole.description.spec.num_shards,
        )

    def _stored(self, name: str, values: NDArray[np.float32], sample: SampledRows) -> NDArray[np.float32]:
        spec = self._whole.description.spec
        return stored_and_read(spec, name, values, keys=sample.keys, views=sample.views)

    def _comparable(self, values: Values, sample: SampledRows) -> dict[str, NDArray[np.float32]]:
        """What the teacher gives, as a store would give it back where nothing else can be compared with what is stored."""
        spec = self._whole.description.spec
        return {
            name: self._stored(name, each, sample) if is_relative(spec, name) else each for name, each in values.items()
        }

    def _finding(self, shard: int, count: int, evidence: Evidence) -> Finding:
        off = _rows_off(evidence)
        explained = self._explained(shard, count, evidence)
        where = f"{self._whole.store}, shard {shard}"
        facts = _facts(evidence) | ({} if explained is None else dict(explained.facts))
        about = (
            f"{counted(len(off), 'row')} of {len(evidence.sample.rows)} that were drawn, {', '.join(evidence.wrong)}"
        )
        error = (
            self._unexplained_error(evidence, where, about)
            if explained is None
            else MismatchError(
                explained.cause.what,
                code=explained.cause.code,
                where=f"{where} ({about})",
                expected=explained.cause.expected or None,
                found=explained.cause.found or None,
                hint=self._hint(explained.cause),
            )
        )
        return Finding(
            error=error,
            shard=shard,
            mendable=self._plan.same_weights,
            of_run=explained is not None and not explained.cause.of_shard,
            rows=off,
            facts=facts,
        )

    def _explained(self, shard: int, count: int, evidence: Evidence) -> Explained | None:
        if not self._plan.same_weights:
            return Explained(cause=self._other_weights(), exactly=True, facts={})
        if self._unexplained >= _PATIENCE:
            return None
        if count < _ROWS_TO_EXPLAIN:
            more = self._sampler.draw(shard, _ROWS_TO_EXPLAIN)
            evidence = evidence if more is None else self._evidence(more)
        evidence = _wrong_rows_alone(evidence)
        if not evidence.wrong:
            return None
        found = explain(evidence, self._rerun, self._plan.own, self._weights(evidence))
        self._unexplained += found is None
        return found

    def _other_weights(self) -> Cause:
        recorded, here = self._whole.description.decided_by.teacher, self._rerun.teacher.spec
        if self._plan.recorded_random:
            return _random_cause()
        return Cause(
            code="another-teacher",
            what="the values are another teacher's",
            hint="name the store's own teacher with --teacher-model and --teacher-pretrained; or cache with this one into a new store",
            expected=f"{recorded.model} {recorded.weights} (the store)",
            found=f"{here.model} {here.weights_digest} (the teacher that ran)",
        )

    def _weights(self, evidence: Evidence) -> Iterator[Hypothesis]:
        """Hypotheses about the weights."""

        def random() -> Values | None:
            try:
                teacher = load_teacher.__wrapped__(replace(self._plan.config, pretrained=RANDOM))
            except TeachonceError:
                return None
            rerun = replace(self._rerun, teacher=teacher)
            return rerun.values(rerun.pixels(evidence.sample), evidence.sample.names)

        yield Hypothesis(cause=_random_cause(), values=random)
        if _looks_untrained(evidence):
            yield Hypothesis(cause=_random_cause(), values=lambda: dict(evidence.sample.stored))

    def _unexplained_error(self, evidence: Evidence, where: str, about: str) -> TeachonceError:
        name = evidence.wrong[0]
        found, allowed = apart(name, evidence.sample.stored[name], evidence.given[name]), evidence.allowed[name]
        kl = "" if found.kl_M is None else f", KL {float(np.median(found.kl_M)):.2g}"
        return MismatchError(
            "the stored values are not what this teacher gives, and no known cause explains them",
            code="values-not-of-teacher",
            where=f"{where} ({about})",
            expected=f"1 - cosine of {allowed.cosine:.2g} at most (median)",
            found=f"{float(np.median(found.cosine_M)):.2g}, at most {float(found.cosine_M.max()):.2g}{kl}",
            hint="cache the shard again, or look at its rows with `teachonce inspect`",
        )

    def _hint(self, cause: Cause) -> str:
        if cause.of_shard:
            return f"restore it from a copy, or {repair_command(self._whole.shards, self._whole.store)} with the same options"
        return cause.hint


def _random_cause() -> Cause:
    return Cause(
        code="teacher-weights-random",
        what="the teacher's weights were not loaded: the values are those of random ones",
        hint="cache into a new store, with --teacher-pretrained",
        expected="trained weights",
        found="random ones",
    )


def _looks_untrained(evidence: Evidence) -> bool:
    """Whether stored values hardly differ between images, where the teacher's do."""
    return len(evidence.sample.rows) > 3 and all(
        _spread(evidence.sample.stored[name]) * _UNTRAINED < _spread(evidence.given[name]) for name in evidence.wrong
    )


def _spread(values: NDArray[np.float32]) -> float:
    """1 - |mean of the unit vectors|²."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    return 1 - float(np.linalg.norm(unit.mean(axis=0)) ** 2)


def _rows_off(evidence: Evidence) -> list[int]:
    """The rows that lie too far away; all of them where only their median does."""
    sample = evidence.sample
    off: NDArray[np.bool_] = np.zeros(len(sample.rows) * len(sample.views), bool)
    for name in evidence.wrong:
        off = off | evidence.allowed[name].off(apart(name, sample.stored[name], evidence.given[name]))
    by_row = [bool(views.any()) for views in off.reshape(len(sample.rows), -1)]
    return [row for row, is_off in zip(sample.rows, by_row, strict=True) if is_off or not any(by_row)]


def _wrong_rows_alone(evidence: Evidence) -> Evidence:
    """Where most rows are right: what is known of the others, by which their cause is told."""
    off, rows = set(_rows_off(evidence)), evidence.sample.rows
    if 2 * len(off) > len(rows):
        return evidence
    sample = evidence.sample.only([place for place, row in enumerate(rows) if row in off])
    views = np.repeat([row in off for row in rows], len(sample.views))
    return replace(evidence, sample=sample, given={name: values[views] for name, values in evidence.given.items()})


def _facts(evidence: Evidence) -> dict[str, Json]:
    facts: dict[str, Json] = {}
    for name in evidence.wrong:
        found = apart(name, evidence.sample.stored[name], evidence.given[name])
        facts[name] = summary(found, evidence.allowed[name])
    return facts


def summary(found: Apart, allowed: Tolerance) -> Mapping[str, Json]:
    """Median and largest value of 1 - cosine and KL, and what is allowed, for programs."""
    facts: dict[str, Json] = {
        "cosine_median": float(np.median(found.cosine_M)),
        "cosine_max": float(found.cosine_M.max()),
        "cosine_allowed": [allowed.cosine, allowed.cosine_single],
        "scale_median": float(np.median(found.scale_M)),
    }
    if found.kl_M is not None:
        facts["kl_median"], facts["kl_max"] = float(np.median(found.kl_M)), float(found.kl_M.max())
        facts["kl_allowed"] = [allowed.kl, allowed.kl_single]
    return facts
