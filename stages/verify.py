"""`teachonce verify`: whether shards and a store of targets or captions are whole, belong together, and hold what the teacher gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..pipeline.contents import Kind, kind_of
from ..pipeline.cores import usable_cores
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Seen, Timer, Unit
from ..storage_schemas.errors import InputError, TeachonceError
from ..storage_schemas.fingerprint import Fingerprint
from ..storage_schemas.samples import shard_name
from .models.settings import ComputeSettings
from .models.teacher_config import TeacherConfig
from .pairs.caption_store import CAPTIONS
from .settings.verify import VerifyComputeSettings, VerifySettings, VerifyTeacherSettings
from .verifying.caption_check import CaptionCheck
from .verifying.captions_whole import CaptionsWhole, look_at_captions
from .verifying.finding import Findings
from .verifying.manifest_check import manifest_errors
from .verifying.measured import Measured
from .verifying.shard_check import ShardCheck
from .verifying.shard_seen import ShardSeen
from .verifying.whole import Whole, look_at_whole

if TYPE_CHECKING:
    from .models.compute import Compute
    from .verifying.settled import Settled

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

    whole: Whole | CaptionsWhole
    full: bool
    renders: bool = True
    units_at_once: int = 1
    teacher: AgainPlan | None = None
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
        for shard in range(self.whole.num_shards) if self.only is None else self.only:
            yield Unit(key=shard_name(shard), rows=len(self.whole.rows(shard)), inputs={"shard": shard})

    def open(self) -> RunUnit:
        return _Looking(self)


class Check(Protocol):
    """Looks at one shard after another, beside a store of one kind."""

    def look_at(self, shard: int) -> ShardSeen:
        """Everything that is wrong with one shard; nothing is raised."""

    def of_whole(self) -> Iterator[TeachonceError]:
        """What is wrong with that of which each byte is read once for all shards."""

    def close(self) -> None:
        """End its threads."""


class Again(Protocol):
    """A loaded teacher that runs again."""

    def look_at(self, shard: int, findings: Findings) -> Measured:
        """What differs in one shard is noted in `findings`."""


class AgainPlan(Protocol):
    """Which teacher runs again; small, and picklable."""

    @property
    def compute(self) -> Compute:
        """How."""

    def open(self, whole: Any) -> Again:
        """Loads the teacher. Nothing else imports its library."""


class _Looking:
    """Looks at one unit after another."""

    def __init__(self, stage: VerifyStage) -> None:
        whole, self._check = stage.whole, _check(stage)
        self._shards = whole.shards
        self._teacher = None if stage.teacher is None else stage.teacher.open(whole)
        self._in_model = threading.Lock()

    def __call__(self, unit: Unit, timer: Timer) -> Seen:
        if unit.key != _MANIFEST:
            with timer("check"):
                seen = self._check.look_at(unit.inputs["shard"])
            if self._teacher is not None and not seen.findings:
                self._ask_teacher(seen, timer)
            timer.advance(unit.rows)
            return Seen(key=unit.key, rows=unit.rows, content=seen)
        findings = Findings()
        try:
            findings.note_all(manifest_errors(self._shards))
            findings.note_all(self._check.of_whole())
        except TeachonceError as error:
            findings.note(error)
        return Seen(key=unit.key, rows=0, content=ShardSeen(-1, list(findings)))

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
        self._check.close()


def _check(stage: VerifyStage) -> Check:
    whole = stage.whole
    if isinstance(whole, CaptionsWhole):
        return CaptionCheck(whole=whole, full=stage.full)
    return ShardCheck(whole=whole, full=stage.full, renders=stage.renders)


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
        store: target store, or caption store.
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
    whole, findings = _looked_at(shards, Location.of(store), settings.generation)
    if whole is None:
        return None, findings
    at_once = 1 if elsewhere else usable_cores()
    renders = not any(found.code == "description-contradicts-fingerprint" for found in findings)
    stage = VerifyStage(whole=whole, full=full, renders=renders, units_at_once=at_once)
    if teacher.rows is None:
        return stage, findings
    settled = _settled(whole, teacher, findings, compute or VerifyComputeSettings(), elsewhere)
    return replace(stage, teacher=settled.plan, notes=settled.notes), findings


def _looked_at(
    shards: Location | str, store: Location, generation: str | None
) -> tuple[Whole | CaptionsWhole | None, Findings]:
    if kind_of(store) != Kind.CAPTIONS:
        return look_at_whole(shards, store, generation)
    if generation is not None:
        raise InputError(
            "captions have no generations",
            code="captions-without-generations",
            where=f"--generation {generation}",
            expected=Kind.STORE,
            found=f"{Kind.CAPTIONS} ({store})",
            hint="leave out --generation",
        )
    return look_at_captions(shards, store)


def _settled(
    whole: Whole | CaptionsWhole,
    teacher: VerifyTeacherSettings,
    findings: Findings,
    compute: ComputeSettings,
    elsewhere: bool,
) -> Settled[AgainPlan]:
    """The teacher, loaded: nothing else imports its library."""
    assert teacher.rows is not None
    config = config_of(whole, teacher)
    more: Any = {"rows": teacher.rows, "seed": teacher.seed, "compute": compute, "elsewhere": elsewhere}
    if isinstance(whole, CaptionsWhole):
        from .verifying.caption_teacher import settle_caption_teacher

        return settle_caption_teacher(whole, config, findings, **more)
    from .verifying.teacher_plan import settle_teacher

    return settle_teacher(whole, config, findings, **more)


def config_of(whole: Whole | CaptionsWhole, teacher: VerifyTeacherSettings) -> TeacherConfig:
    """The store's teacher as the command that made the store would be given it.

    Raises:
        InputError: the store does not say where it is, and no option does.
    """
    from .verifying.teacher_name import recorded_model, teacher_config

    if isinstance(whole, CaptionsWhole):
        model = teacher.model or recorded_model(whole.spec.teacher, whole.store, CAPTIONS)
        return TeacherConfig.of(model, teacher.pretrained, backbone=teacher.backbone, rehash=teacher.rehash)
    return teacher_config(
        whole.description,
        whole.store,
        model=teacher.model,
        pretrained=teacher.pretrained,
        backbone=teacher.backbone,
        rehash=teacher.rehash,
    )
