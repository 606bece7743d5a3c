"""`teachonce verify`, on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ..pipeline.terminal import say, show, starting
from ..stages.settings.verify import VerifyComputeSettings, VerifySettings, VerifyTeacherSettings
from ..storage_schemas.plain_text import counted
from .command import command
from .executor import ExecutorSettings, SlicedSerialByDefault
from .log_option import log_option
from .options import options_of
from .output import json_option, print_json
from .steps import refuse_slices

if TYPE_CHECKING:
    from ..pipeline.types import Stage
    from ..stages.cache import CacheStage
    from ..stages.captions import CaptionsStage
    from ..stages.models.teacher_config import TeacherConfig
    from ..stages.verify import VerifyStage
    from ..stages.verifying.captions_whole import CaptionsWhole
    from ..stages.verifying.report import Report
    from ..stages.verifying.whole import Whole


@command()
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@options_of("settings", VerifySettings)
@options_of("teacher", VerifyTeacherSettings, prefix="teacher")
@json_option
@log_option
@options_of("compute", VerifyComputeSettings)
@options_of("executor", SlicedSerialByDefault, only=("executor", "ray_address", "workers", "slice", "grace"))
def verify(
    shards: str,
    store: str,
    settings: VerifySettings,
    teacher: VerifyTeacherSettings,
    compute: VerifyComputeSettings,
    executor: SlicedSerialByDefault,
    as_json: bool,
) -> None:
    """Check that shards and a store are whole, belong together, and hold what the teacher gives.

    SHARDS is a folder that `teachonce shard` wrote, STORE what `teachonce cache` or `teachonce captions` made of it. Each finding names its cause and
    what to type next. Nothing is written without --repair.

    Exits with 0 where nothing is wrong, 3 where something is damaged, 4 where things do not belong together, and 5
    where it cannot be told, as in a store that is not finished; the first of 3, 4 and 5 that applies.
    """
    from ..pipeline.contents import Kind, refuse_swapped
    from ..pipeline.looking import look
    from ..stages.verify import plan_verify
    from ..stages.verifying.report import Report, report_text

    starting("verify: looking at what describes them")
    for kind in (Kind.STORE, Kind.CAPTIONS):
        refuse_swapped("verify", shards, store, is_first=Kind.SHARDS, is_second=kind)
    stage, findings = plan_verify(
        shards, store, settings=settings, teacher=teacher, compute=compute, elsewhere=executor.elsewhere
    )
    level = "full" if settings.is_full(with_teacher=teacher.rows is not None) else "quick"
    if settings.repair:
        refuse_slices("--repair", executor)
    report = Report(part=executor.slice, shards=shards, store=store, level=level, findings=list(findings))
    if stage is not None:
        report.begin(stage.plan() if executor.part is None else executor.part.of(stage.plan()))
        for note in stage.notes:
            say(f"verify: {note}")
        for outcome in look(stage, executor.make(), stage.whole.store, executor.part):
            report.add(outcome.seen)
        if executor.part is None:
            report.settle()
        if settings.repair:
            _repair(stage, report, teacher, executor)
    if as_json:
        print_json(report.to_json())
    else:
        show(report_text(report))
    click.get_current_context().exit(int(report.verdict))


def _repair(stage: VerifyStage, report: Report, teacher: VerifyTeacherSettings, executor: ExecutorSettings) -> None:
    """Make the shards of the store again that are wrong, and look at them once more."""
    from ..pipeline.driver import only_driver
    from ..pipeline.looking import look
    from ..pipeline.runner import run_stage
    from ..stages.teachers.registry import teacher_for_one_run
    from ..stages.verify import config_of
    from ..stages.verifying.captions_whole import CaptionsWhole
    from ..stages.verifying.repair import damage_of, set_aside

    whole, damage = stage.whole, damage_of(report.findings)
    # Also for nothing: a repair that was killed at its very end has left its lock.
    with only_driver(whole.store, "teachonce verify --repair"), teacher_for_one_run():
        if not damage.shards:
            say("verify: nothing here can be repaired from the tars" if damage.beyond else "verify: nothing to repair")
            return
        config, again = config_of(whole, teacher), counted(len(damage.shards), "shard")
        made: Stage
        if isinstance(whole, CaptionsWhole):
            made, doing = _captions_again(whole, config), f"embedding the captions of {again} again"
            report.repaired_by = "embedded"
        else:
            made, doing = _cache_again(whole, config, damage.shards), f"caching {again} again"
        kept = set_aside(whole.store_ledger, damage.shards)
        say(f"verify: {doing}; {counted(len(kept), 'old receipt')} kept as *.old")
        run_stage(made, whole.store, executor.make())
    report.findings = list(damage.beyond)
    report.repaired = damage.shards
    for outcome in look(replace(stage, only=damage.shards), executor.make(), whole.store):
        report.add(outcome.seen)


def _cache_again(whole: Whole, config: TeacherConfig, shards: Sequence[int]) -> CacheStage:
    """The stage by which a target store was made.

    Raises:
        InputError, MismatchError: it cannot be had here.
    """
    from ..stages.cache import plan_cache
    from ..stages.settings.cache import CacheSettings
    from ..stages.verifying.repair import cache_again, check_same_run, refuse_by_hand

    refuse_by_hand(whole, shards)
    again = cache_again(whole, config)
    cache = plan_cache(
        whole.shards.location,
        again.config,
        out=whole.store,
        views=again.views,
        view_interpolation=again.interpolation,
        settings=CacheSettings(
            targets=again.targets,
            encoding=again.encoding,
            max_kl=again.max_kl,
            max_bytes=again.max_bytes,
            chunk_views=again.chunk_views,
            batch_size=again.batch_size,
            **({} if again.fit_views is None else {"fit_views": again.fit_views}),
            view_params=again.view_params,
        ),
        compute=again.compute,
        dry_run=True,
    )
    check_same_run(whole.store, whole.description.fingerprint, cache.fingerprint)
    return cache


def _captions_again(whole: CaptionsWhole, config: TeacherConfig) -> CaptionsStage:
    """The stage by which a caption store was made.

    Raises:
        InputError, MismatchError, DamagedError: it cannot be had here.
    """
    from ..stages.captions import CaptionsStage
    from ..stages.verifying.caption_repair import captions_again
    from ..stages.verifying.repair import check_same_run

    again = captions_again(whole, config)
    captions = CaptionsStage(
        out=whole.store,
        shards=whole.shards,
        config=config,
        spec=again.spec,
        compute=again.compute,
        batch_size=again.batch_size,
        notes=(),
    )
    check_same_run(whole.store, whole.recorded, captions.fingerprint)
    return captions
