"""Owns what is settled before a teacher runs again: which one it is, whether it is the store's, and how it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...storage_schemas.errors import InputError, TeachonceError
from ..models.compute import teacher_compute
from ..models.names import RANDOM
from ..models.preprocess import Preprocess
from ..models.settings import ComputeSettings
from ..models.teacher_config import TeacherConfig
from ..pairs.store import open_store
from ..teachers import Teacher, load_teacher
from ..teachers.placing import settle_precision
from .finding import Findings
from .sampled_rows import rows_per_shard
from .settled import Settled, compute_here, notes_on
from .stored_loss import is_comparable
from .teacher_check import TeacherPlan
from .vectors_check import cannot_check, vectors_errors
from .whole import Whole


def settle_teacher(
    whole: Whole,
    config: TeacherConfig,
    findings: Findings,
    *,
    rows: int,
    seed: int,
    compute: ComputeSettings,
    elsewhere: bool,
) -> Settled[TeacherPlan]:
    """Load the teacher, compare it with what the store says, and its class vectors with the store's.

    Args:
        config: see `teacher_name.teacher_config`.
        findings: takes what is wrong with the class vectors.
        rows: how many it runs on again.
        seed: of their draw.
        compute: how; `auto` as the store records.
        elsewhere: whether it runs on other machines.

    Raises:
        InputError: the teacher cannot be loaded.
    """
    teacher, config, own = _loaded(config, whole)
    recorded = whole.description.decided_by.teacher
    same_weights = teacher.spec.weights_digest == recorded.weights
    notes = notes_on(teacher.loaded, recorded=recorded.weights, is_recorded=same_weights)
    if (own.mean, own.std) != (teacher.spec.preprocess.mean, teacher.spec.preprocess.std):
        notes.append("the store's mean or std is not the model's own")
    fields = whole.description.fingerprint
    compute = compute_here(compute, whole.recorded_compute)
    resolved, _ = settle_precision(teacher, teacher_compute(compute, elsewhere=elsewhere), fields)
    if left := [name for name, lost in whole.lost.items() if not is_comparable(lost)]:
        notes.append(
            f"the store's {' and '.join(left)} had been drawn, or lost too much, before: not compared with the teacher"
        )
    if whole.vectors is not None and same_weights:
        notes += _check_vectors(teacher, whole, findings, resolved)
    plan = TeacherPlan(
        config=config,
        own=own,
        same_weights=same_weights,
        recorded_random=not same_weights and _random_digest(config) == recorded.weights,
        compute=resolved,
        rows=tuple(rows_per_shard(rows, whole.description.spec.num_shards, seed)),
        seed=seed,
    )
    return Settled(plan=plan, notes=tuple(notes))


def _loaded(config: TeacherConfig, whole: Whole) -> tuple[Teacher, TeacherConfig, Preprocess]:
    """The teacher at the store's size; how it is loaded; and the model's own preprocessing."""
    recorded = Preprocess.from_json(whole.description.teacher.get("preprocess"), where=whole.store)
    plain = replace(config, mean=None, std=None, interpolation=None, crop_pct=None, crop_mode=None)
    own = load_teacher(plain).spec.preprocess
    if own.size != recorded.size:
        config = replace(config, size=recorded.size)
    return load_teacher(config), config, own


def _check_vectors(teacher: Teacher, whole: Whole, findings: Findings, compute: Any) -> list[str]:
    assert whole.vectors is not None
    try:
        with replace(compute, device="cpu", precision="fp32").inference():
            root = open_store(whole.store, whole.generation)
            findings.note_all(vectors_errors(teacher, whole.vectors, root, whole.store))
    except InputError as error:
        return [cannot_check(error)]
    return []


def _random_digest(config: TeacherConfig) -> str | None:
    """The digest of the same model's random weights, which depend on a fixed seed."""
    try:
        with torch.inference_mode():
            return load_teacher.__wrapped__(replace(config, pretrained=RANDOM)).spec.weights_digest
    except TeachonceError:
        return None
