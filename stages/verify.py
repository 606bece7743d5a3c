"""`teachonce verify`: whether shards and a target store are whole, belong together, and hold what the teacher gives."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..pipeline.cores import usable_cores
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Seen, Timer, Unit
from ..storage_schemas.errors import DamagedError, TeachonceError
from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.samples import shard_name
from .models.settings import ComputeSettings
from .models.teacher_config import TeacherConfig
from .samples.pixel_sample import PixelSample
from .settings.verify import VerifyComputeSettings, VerifySettings, VerifyTeacherSettings
from .verifying.manifest_check import manifest_errors
from .verifying.shard_check import ShardCheck, ShardSeen
from .verifying.whole import Findings, Whole, look_at_whole

if TYPE_CHECKING:
    from .verifying.teacher_check import TeacherCheck, TeacherPlan

#: The unit that is no shard: the manifest as a whole.
_MANIFEST = "manifest"


@dataclass(frozen=True, kw_only=True)
class VerifyStage:
    """Shard *i* of the corpus and row block *i* of the store are looked at together. Nothing is written.

    Attributes:
        whole: what belongs together.
        full: whether every byte is read.
        renders: whether this machine's rendering of views is compared with the store's: not where its description is in doubt.
        units_at_once: that a worker looks at: as many as it has cores for their digests.
        teacher: which one runs again, and on what; None for none.
        notes: lines that a person should see before it starts.
        only: shards to look at; None for all of them.
    """

    whole: Whole
    full: bool
    renders: bool = True
    units_at_once: int = 1
    teacher: TeacherPlan | None = None
    notes: tuple[str, ...] = ()
    only: tuple[int, ...] | None = None

    name = "verify"

    @property
    def resources(self) -> Resources:
        if self.teacher is None:
            return Resources(cpus=self.units_at_once, units_at_once=self.units_at_once)
        compute = self.teacher.compute
        return Resources(
            cpus=max(compute.threads, self.units_at_once),
            gpus=float(compute.device == "cuda"),
            units_at_once=self.units_at_once,
        )

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields={"full": self.full, "teacher": self.teacher is not None})

    def plan(self) -> Iterator[Unit]:
        if self.full and self.only is None:
            yield Unit(key=_MANIFEST, rows=0)
        for shard in range(self.whole.description.spec.num_shards) if self.only is None else self.only:
            rows = self.whole.description.spec.rows(shard)
            yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})

    def open(self) -> RunUnit:
        return _Looking(self)


class _Looking:
    """Looks at one unit after another."""

    def __init__(self, stage: VerifyStage) -> None:
        self._whole, self._renders = stage.whole, stage.renders
        self._shards = ShardCheck(whole=stage.whole, full=stage.full)
        self._teacher = _teacher_check(stage)
        self._in_model = threading.Lock()

    def __call__(self, unit: Unit, timer: Timer) -> Seen:
        if unit.key != _MANIFEST:
            with timer("check"):
                seen = self._shards.look_at(unit.inputs["shard"])
            if self._teacher is not None and not seen.findings:
                self._ask_teacher(seen, timer)
            timer.advance(unit.rows)
            return Seen(key=unit.key, rows=unit.rows, content=seen)
        findings = Findings()
        try:
            findings.note_all(manifest_errors(self._whole.shards))
            if self._renders:
                self._check_pixels()
        except TeachonceError as error:
            findings.note(error)
        return Seen(key=unit.key, rows=0, content=ShardSeen(-1, list(findings)))

    def _check_pixels(self) -> None:
        """This machine must render the views that the store keeps digests of as the teacher saw them."""
        whole = self._whole
        sample = PixelSample.of_store(whole.description, whole.store)
        if sample is not None:
            hint = "look at it where it was made; or cache again into a new store"
            with contextlib.suppress(DamagedError):  # whatever is wrong with a tar is found with its shard
                sample.check(whole.shards, whole.views, where=whole.store, hint=hint)

    def _ask_teacher(self, seen: ShardSeen, timer: Timer) -> None:
        """Compare a shard in which nothing else is wrong with what the teacher gives."""
        assert self._teacher is not None
        findings = Findings()
        try:
            with self._in_model, timer("forward"):
                seen.measured = self._teacher.look_at(seen.shard, findings)
        except TeachonceError as error:
            findings.note(error, shard=seen.shard)
        seen.findings += findings

    def close(self) -> None:
        self._shards.close()


def _teacher_check(stage: VerifyStage) -> TeacherCheck | None:
    """Loads the teacher, if it is to run again. Nothing else imports its library."""
    if stage.teacher is None:
        return None
    from .verifying.teacher_check import TeacherCheck

    return TeacherCheck(stage.whole, stage.teacher)


def plan_verify(
    shards: Location | str,
    store: Location | str,
    *,
    settings: VerifySettings | None = None,
    teacher: VerifyTeacherSettings | None = None,
    compute: ComputeSettings | None = None,
    elsewhere: bool = False,
) -> tuple[VerifyStage | None, Findings]:
    """The stage that looks at every shard, and what is wrong with what describes them.

    Args:
        shards: folder of shards.
        store: target store.
        settings: None for the defaults.
        teacher: whether it runs again, and its name; None for not.
        compute: how it does; None for as the store records.
        elsewhere: whether the work runs on other machines, with several workers each.

    Raises:
        InputError: nothing there; an impossible setting.
    """
    settings, teacher = settings or VerifySettings(), teacher or VerifyTeacherSettings()
    check(settings)
    check(teacher, "teacher")
    full = settings.is_full(with_teacher=teacher.rows is not None)
    whole, findings = look_at_whole(shards, store, settings.generation)
    if whole is None:
        return None, findings
    at_once = 1 if elsewhere else usable_cores()
    renders = not any(found.code == "description-contradicts-fingerprint" for found in findings)
    stage = VerifyStage(whole=whole, full=full, renders=renders, units_at_once=at_once)
    if teacher.rows is None:
        return stage, findings
    from .verifying.teacher_plan import settle_teacher

    settled = settle_teacher(
        whole,
        config_of(whole, teacher),
        findings,
        rows=teacher.rows,
        seed=teacher.seed,
        compute=compute or VerifyComputeSettings(),
        elsewhere=elsewhere,
    )
    return replace(stage, teacher=settled.plan, notes=settled.notes), findings


def config_of(whole: Whole, teacher: VerifyTeacherSettings) -> TeacherConfig:
    """The store's teacher as `cache` would be given it.

    Raises:
        InputError: the store does not say where it is, and no option does.
    """
    from .verifying.teacher_name import teacher_config

    return teacher_config(
        whole.description,
        whole.store,
        model=teacher.model,
        pretrained=teacher.pretrained,
        backbone=teacher.backbone,
        rehash=teacher.rehash,
    )
