"""`teachonce cache`, on the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..pipeline.settings import option_name, settings_of
from ..pipeline.terminal import say
from ..stages.models.settings import ComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.settings.cache import CacheSettings
from ..stages.views.settings import FILTERS, RandomViews, ViewCount
from ..storage_schemas.errors import InputError
from .beside import beside_option
from .command import command, option
from .executor import CachingExecutorSettings, caching_executor
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report
from .plan import show_plan
from .steps import refuse_slices, run_or_finish, run_steps

if TYPE_CHECKING:
    from ..pipeline.storage import Location


@command()
@click.argument("shards", type=click.Path())
@options_of("teacher", TeacherConfig, prefix="teacher", make=TeacherConfig.of)
@option("--out", required=True, type=click.Path(), help="Target store (Zarr).")
@options_of("count", ViewCount)
@options_of("settings", CacheSettings)
@option("--dry-run", is_flag=True, help="Tell what this command would take, as `plan` does, and write nothing.")
@option(
    "--grow",
    is_flag=True,
    help="Make the finished store at --out larger: more views, more images, more targets. What is there is not computed again.",
)
@json_option
@log_option
@options_of("drawn", RandomViews, prefix="view", section="Random views")
@options_of("compute", ComputeSettings)
@options_of("executor", CachingExecutorSettings, make=caching_executor)
@beside_option
@one_driver
def cache(
    shards: str,
    out: str,
    teacher: TeacherConfig,
    count: ViewCount,
    settings: CacheSettings,
    drawn: RandomViews,
    compute: ComputeSettings,
    executor: CachingExecutorSettings,
    dry_run: bool,
    grow: bool,
    as_json: bool,
) -> None:
    """Run the teacher once over every view of every sample and store its outputs.

    SHARDS is a folder that `teachonce shard` wrote.
    """
    began = time.perf_counter()
    from ..stages.cache import plan_cache
    from ..stages.grow import plan_growth
    from ..stages.models.compute import teacher_compute
    from ..stages.teachers.registry import teacher_for_one_run
    from ..stages.views.spec import ViewSpec

    if dry_run and grow:
        raise InputError(
            "what a growth takes is not told beforehand",
            code="options-exclude-each-other",
            where="--dry-run, --grow",
            hint="leave one out",
        )
    if count.random is None:
        _refuse_options_of_random_views(click.get_current_context())
    asked: dict[str, Any] = {
        "out": out,
        "settings": settings,
        "views": None if count.random is None else ViewSpec.random(count.random, drawn, FILTERS[0]),
        "view_interpolation": drawn.interpolation,
        "compute": teacher_compute(compute, elsewhere=executor.elsewhere),
    }
    with teacher_for_one_run() as forget:
        if dry_run:
            from ..stages.plan import plan_of_cache
            from ..stages.planning.tried import Hours

            hours = Hours(workers=executor.workers_here, on_ray=executor.executor == "ray")
            show_plan(plan_of_cache(shards, teacher, hours=hours, began=began, **asked), as_json)
            return
        if grow:
            refuse_slices("--grow", executor)
            with _telling_calls(out):
                run_steps("cache", plan_growth(shards, teacher, **asked), executor, as_json)
            return
        stage = plan_cache(shards, teacher, **asked)
        for note in stage.notes:
            say(f"cache: {note}")
        if stage.vectors is None and settings.targets == "auto":
            say("No logits: the store has no class vectors, or more classes than channels; keeping embeddings.")
        if executor.elsewhere:
            forget()
        with _telling_calls(stage.store):
            report(run_or_finish(stage, stage.store, executor), stage.store, as_json)


@contextmanager
def _telling_calls(store: Location | str) -> Iterator[None]:
    """Say in the end what was called so far for a store, whatever becomes of this run."""
    from ..pipeline.storage import Location
    from ..stages.caching.call_costs import calls_text

    try:
        yield
    finally:
        if costs := calls_text(Location.of(store)):
            say(f"cache: {costs}")


def _refuse_options_of_random_views(ctx: click.Context) -> None:
    names = [f"view_{field.name}" for field, _ in settings_of(RandomViews)]
    given = [name for name in names if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        also = "; a centre view's filter is --teacher-interpolation" if "view_interpolation" in given else ""
        raise InputError(
            "these options are for random views",
            code="option-for-random-views",
            where=", ".join(map(option_name, given)),
            expected="--views K",
            found="--views center",
            hint=f"give a number of views, or leave them out{also}",
        )
