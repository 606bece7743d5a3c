"""Owns the check of stored captions by the teacher itself: its text tower embeds the texts of some rows again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...storage_schemas.caption_store import DTYPES
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.plain_text import counted
from ..models.compute import Compute, resolve_compute
from ..models.settings import ComputeSettings
from ..models.teacher_config import TeacherConfig
from ..pairs.caption_store import OpenCaptions
from ..teachers import load_teacher
from .captions_whole import CaptionsWhole, texts_of
from .differences import Apart, apart
from .finding import Finding, Findings
from .measured import Measured
from .repair_hint import repair_command
from .sampled_rows import rows_per_shard
from .settled import Settled, compute_here, notes_on
from .stored_loss import LostBefore
from .teacher_check import summary
from .tolerance import Tolerance, other_precision, rounding_share, tolerances

#: What the embeddings are called in reports.
_NAME = "caption"


@dataclass(frozen=True, kw_only=True)
class CaptionTeacherPlan:
    """Which teacher runs again, and on how many rows of each shard; small, and picklable.

    Attributes:
        same_weights: whether they are those that the store records.
        compute: how it runs.
        batch_size: texts in a forward pass.
        rows: how many of each shard.
        seed: of the draw.
    """

    config: TeacherConfig
    same_weights: bool
    compute: Compute
    batch_size: int
    rows: tuple[int, ...]
    seed: int

    def open(self, whole: CaptionsWhole) -> CaptionTeacherCheck:
        """Loads the teacher."""
        return CaptionTeacherCheck(whole, self)


def settle_caption_teacher(
    whole: CaptionsWhole,
    config: TeacherConfig,
    findings: Findings,
    *,
    rows: int,
    seed: int,
    compute: ComputeSettings,
    elsewhere: bool,
) -> Settled[CaptionTeacherPlan]:
    """Load the teacher, and compare its tokenizer and logit scale with what the store says.

    Args:
        findings: takes what differs.
        rows, seed, compute, elsewhere: as in `teacher_plan.settle_teacher`.

    Raises:
        InputError: the teacher cannot be loaded, or embeds no text.
    """
    spec = whole.spec
    teacher = load_teacher(config)
    tower = teacher.text_tower()
    recorded_weights = str(spec.teacher["weights_digest"])
    same_weights = teacher.spec.weights_digest == recorded_weights
    notes = notes_on(teacher.loaded, recorded=recorded_weights, is_recorded=same_weights)
    if same_weights and not np.isclose(tower.logit_scale, spec.logit_scale, rtol=1e-4):
        findings.note(
            MismatchError(
                "the logit scale of the captions is not the teacher's",
                code="logit-scale-other",
                where=whole.store,
                expected=f"{tower.logit_scale:.6g} (the teacher)",
                found=f"{spec.logit_scale:.6g} (the captions)",
                hint="restore zarr.json from a copy, or make the captions again with another --out",
            )
        )
    if tower.facts() != spec.tokenizer:
        findings.note(
            MismatchError(
                "the teacher's tokenizer is not the one that the captions went through",
                code="captions-other-tokenizer",
                where=whole.store,
                expected=f"{spec.tokenizer} (the captions)",
                found=f"{tower.facts()} (the teacher here)",
                hint="give the teacher its own tokenizer: the same folder, and the same versions of open_clip and transformers",
            )
        )
    return Settled(
        plan=CaptionTeacherPlan(
            config=config,
            same_weights=same_weights,
            compute=resolve_compute(compute_here(compute, whole.recorded_compute), elsewhere=elsewhere),
            batch_size=int(whole.recorded.get("batch_size", 64)),
            rows=tuple(rows_per_shard(rows, whole.num_shards, seed)),
            seed=seed,
        ),
        notes=tuple(notes),
    )


class CaptionTeacherCheck:
    """Looks at one shard after another with a loaded teacher; one at a time."""

    def __init__(self, whole: CaptionsWhole, plan: CaptionTeacherPlan) -> None:
        self._whole, self._plan, self._recorded = whole, plan, whole.recorded_compute
        self._teacher = load_teacher(plan.config).to(torch.device(plan.compute.device))
        self._tower = self._teacher.text_tower()
        self._texts = texts_of(whole.store)
        self._captions = OpenCaptions(location=whole.store, spec=whole.spec, fingerprint="")
        self._root = self._captions.open()

    def look_at(self, shard: int, findings: Findings) -> Measured:
        """What differs in one shard is noted in `findings`.

        Raises:
            DamagedError: a chunk or the texts are not those that were written.
        """
        count = self._plan.rows[shard]
        found = self._texts.shard(shard)
        order = np.random.default_rng([self._plan.seed, shard]).permutation(np.unique(found.rows_T))
        rows = np.sort(order[:count])
        if not len(rows):
            return Measured()
        taken_T = np.isin(found.rows_T, rows)
        rows_T, texts = found.rows_T[taken_T], [found.texts[i] for i in np.flatnonzero(taken_T)]
        start = self._whole.rows(shard).start
        embedding_RKD, count_R = self._captions.read(self._root, shard)
        stored = np.nan_to_num(np.concatenate([embedding_RKD[row - start, : count_R[row - start]] for row in rows]))
        if len(stored) != len(texts):
            return Measured()  # that counts are wrong is what --full finds
        given = self._embed(texts, self._plan.compute)
        allowed = self._allowed(texts, given)
        apart_T = apart(_NAME, stored, given)
        if not allowed.allows(apart_T):
            findings.append(self._finding(shard, rows_T, apart_T, allowed))
        return Measured(rows=len(rows), by_target={_NAME: apart_T}, allowed={_NAME: allowed})

    def _embed(self, texts: Sequence[str], compute: Compute) -> NDArray[np.float32]:
        """fp32 (caption, channel)."""
        step = self._plan.batch_size
        with compute.inference():
            parts = [self._tower.embed(texts[i : i + step]).cpu().numpy() for i in range(0, len(texts), step)]
        return np.concatenate(parts)

    def _allowed(self, texts: Sequence[str], given: NDArray[np.float32]) -> Tolerance:
        """As for targets: what lies between the two precisions, where either side may have it, and what the stored type loses."""
        compute = self._plan.compute
        kept = given.astype(DTYPES[self._whole.spec.encoding]).astype(np.float32)
        return tolerances(
            {_NAME: apart(_NAME, given, self._embed(texts, other_precision(compute)))},
            {_NAME: apart(_NAME, given, kept)},
            {_NAME: LostBefore()},
            {_NAME: rounding_share(self._recorded, compute)},
        )[_NAME]

    def _finding(self, shard: int, rows_T: NDArray[np.int64], found: Apart, allowed: Tolerance) -> Finding:
        off_T = allowed.off(found)
        off = sorted(set(rows_T[off_T].tolist())) or sorted(set(rows_T.tolist()))
        where = f"{self._whole.store}, shard {shard} ({counted(len(off), 'row')} of {len(set(rows_T.tolist()))} that were drawn)"
        recorded, here = self._whole.spec.teacher, self._teacher.spec
        error = (
            MismatchError(
                "the stored captions are not what this teacher gives",
                code="values-not-of-teacher",
                where=where,
                expected=f"1 - cosine of {allowed.cosine:.2g} at most (median)",
                found=f"{float(np.median(found.cosine_M)):.2g}, at most {float(found.cosine_M.max()):.2g}",
                hint=f"restore it from a copy, or {repair_command(self._whole.shards, self._whole.store)} with the same options",
            )
            if self._plan.same_weights
            else MismatchError(
                "the values are another teacher's",
                code="another-teacher",
                where=where,
                expected=f"{recorded['model']} {recorded['weights_digest']} (the store)",
                found=f"{here.model} {here.weights_digest} (the teacher that ran)",
                hint="name the captions' own teacher with --teacher-model and --teacher-pretrained; or make captions with this one, with another --out",
            )
        )
        return Finding(
            error=error,
            shard=shard,
            mendable=self._plan.same_weights,
            rows=off,
            facts={_NAME: summary(found, allowed)},
        )
