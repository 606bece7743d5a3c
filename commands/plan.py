"""`teachonce plan`, on the command line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ..pipeline.terminal import show
from ..stages.models.settings import ComputeSettings
from ..stages.models.teacher_config import TeacherConfig
from ..stages.settings.cache import CacheSettings
from ..stages.settings.plan import OptionalTeacher, PlanSettings
from ..stages.settings.shard import ShardSettings
from ..stages.views.settings import FILTERS, RandomViews, ViewCount
from .command import command
from .executor import ExecutorSettings
from .options import options_of
from .output import json_option, print_json

if TYPE_CHECKING:
    from ..stages.planning.plan import CachePlan


def _teacher(*, model: str | None, **fields: Any) -> TeacherConfig | None:
    return None if model is None else TeacherConfig.of(model, **fields)


def show_plan(plan: CachePlan, as_json: bool) -> None:
    """On stdout."""
    from ..stages.planning.text import plan_text

    if as_json:
        print_json(plan.to_json())
    else:
        show(plan_text(plan))


@command()
@click.argument("corpus", nargs=-1, metavar="[CORPUS]…")
@options_of("teacher", OptionalTeacher, prefix="teacher", make=_teacher)
@options_of("count", ViewCount)
@options_of("settings", CacheSettings, only=("targets", "encoding", "max_kl", "batch_size"))
@options_of("shards", ShardSettings, only=("shard_size", "resize", "max_pixels", "max_bytes"))
@json_option
@options_of("planning", PlanSettings)
@options_of("drawn", RandomViews, prefix="view", section="Random views")
@options_of("compute", ComputeSettings)
@options_of("executor", ExecutorSettings, only=("executor", "workers"))
def plan(
    corpus: tuple[str, ...],
    teacher: TeacherConfig | None,
    count: ViewCount,
    settings: CacheSettings,
    shards: ShardSettings,
    planning: PlanSettings,
    drawn: RandomViews,
    compute: ComputeSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Tell what a corpus and a teacher will take, before anything runs: bytes, objects, hours, workers, cost.

    CORPUS is a folder of shards, or what `shard` takes: then some of its images are sharded in a scratch folder. The teacher runs on
    them here for some seconds. Without a corpus, --images says how many there are; without a teacher, --classes and --channels say how
    large its outputs are. Every figure says where it comes from.
    """
    began = time.perf_counter()
    from ..stages.plan import PlanRequest, make_plan
    from ..stages.planning.tried import Hours
    from ..stages.teachers.registry import teacher_for_one_run
    from ..stages.views.spec import ViewSpec

    with teacher_for_one_run():
        request = PlanRequest(
            corpus=corpus,
            teacher=teacher,
            views=None if count.random is None else ViewSpec.random(count.random, drawn, FILTERS[0]),
            view_interpolation=drawn.interpolation,
            settings=settings,
            shards=shards,
            compute=compute,
            planning=planning,
            hours=Hours(workers=executor.workers_here, on_ray=executor.executor == "ray"),
            began=began,
        )
        show_plan(make_plan(request), as_json)
