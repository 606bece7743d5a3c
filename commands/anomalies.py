"""`teachonce anomalies`, on the command line."""

from __future__ import annotations

import click

from ..pipeline.terminal import show
from ..stages.settings.anomalies import AnomalySettings
from ..stages.settings.evaluate import InferenceSettings
from .command import command, option
from .executor import ExecutorSettings
from .log_option import log_option
from .one_driver import one_driver
from .options import options_of
from .output import json_option, report


@command()
@click.argument("shards", type=click.Path())
@click.argument("store", type=click.Path())
@click.argument("bundle", type=click.Path())
@option("--out", required=True, type=click.Path(), help="Folder for maps, scores, figures and pictures.")
@options_of("settings", AnomalySettings)
@json_option
@log_option
@options_of("compute", InferenceSettings)
@options_of("executor", ExecutorSettings)
@one_driver
def anomalies(
    shards: str,
    store: str,
    bundle: str,
    out: str,
    settings: AnomalySettings,
    compute: InferenceSettings,
    executor: ExecutorSettings,
    as_json: bool,
) -> None:
    """Find what images show that a student of reverse distillation has not learned: maps, scores and figures.

    SHARDS and STORE are of the images to look at, made and cached as those that the student learned from; BUNDLE is that
    student. No teacher is loaded, and images are opened for pictures alone.

    An image labelled `good` has no defect, and any other label is the kind of its defect. Figures: AUROC of images; with
    --masks also AUROC of pixels, and AUPRO up to a false positive rate of 0.3.
    """
    from ..pipeline.runner import run_stage
    from ..stages.anomalies import finish_anomalies, plan_anomalies
    from ..stages.anomaly.results import results_text
    from ..stages.models.compute import resolve_compute

    settled = resolve_compute(compute, elsewhere=executor.elsewhere)
    stage = plan_anomalies(shards, store, bundle, out=out, compute=settled, settings=settings)
    summary = run_stage(stage, stage.out, executor.make())
    if summary.part is not None:
        report(summary, stage.out, as_json)
        return
    facts = finish_anomalies(stage, settings)
    report(summary, stage.out, as_json, results=facts)
    if not as_json:
        show(results_text(facts))
