"""Owns the page of trainings: curves, validation, settings and provenance of one, or of several beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...pipeline.contents import kind_of
from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, RUN, BundleConfig
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from . import charts
from .page import Block, Chart, Charts, Facts, Page, Section, Table, Tile, shown

#: Points of a curve; longer logs are thinned, evenly.
_POINTS = 400

#: Curves that have titles of their own, in this order; others follow by their names.
_TITLES = {"loss": "Loss", "validation_accuracy": "Validation accuracy", "lr": "Learning rate"}
_TITLES |= {"samples_per_second": "Samples a second", "wait_share": "Share of the time spent waiting for batches"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training, finished or not.

    Attributes:
        name: of its folder.
        config: of its bundle; None where it is not finished.
        settings: what its ledger's plan fixed, by name.
        log: the lines of its log.
    """

    name: str
    location: Location
    config: BundleConfig | None
    settings: dict[str, Json]
    log: list[dict[str, float]]

    @staticmethod
    def open(folder: Location | str) -> Run:
        """Read a student bundle, or the folder of a training that has not finished.

        Raises:
            InputError: neither.
            DamagedError: the bundle's config changed.
        """
        location = Location.of(folder)
        if location.name == RUN and (location.folder / CONFIG).exists():
            location = location.folder
        has_config, log = (location / CONFIG).exists(), location / RUN / "log.jsonl"
        if not has_config and not log.exists():
            raise InputError(
                "no training here",
                code="run-missing",
                where=location,
                expected="a student bundle, or the output of a training that has begun",
                found=kind_of(location),
                hint="name the folder that `teachonce distill` was given as --out",
            )
        config = BundleConfig.from_bytes((location / CONFIG).read_bytes(), location / CONFIG) if has_config else None
        plan = next((found for stage in ("distill", "pretrain") if (found := Ledger(location, stage).plan())), None)
        return Run(
            name=location.name,
            location=location,
            config=config,
            settings={} if plan is None else dict(plan.fingerprint.fields),
            log=_read_log(log),
        )


def is_run(location: Location) -> bool:
    """Whether this is a bundle or the output of a training."""
    return not (location / "zarr.json").exists() and (
        (location / CONFIG).exists() or (location / RUN / "log.jsonl").exists()
    )


def _read_log(location: Location) -> list[dict[str, float]]:
    if not location.exists():
        return []
    lines = []
    for line in location.read_bytes().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append({name: value for name, value in found.items() if isinstance(value, int | float)})
    return lines


def run_page(
    runs: Sequence[Run],
    more: Sequence[Section] = (),
    data: dict[str, Any] | None = None,
    tiles: Sequence[Tile] = (),
) -> Page:
    """The page of one training, or of several compared.

    Args:
        more: sections that go before the curves, with their `data` and `tiles`.
    """
    names = _names(runs)
    several = len(runs) > 1
    sections = [*more, _curves(runs, names)]
    if several:
        sections.append(_differences(runs, names))
    sections += [_about(run, name, i, several) for i, (run, name) in enumerate(zip(runs, names, strict=True))]
    notes = [
        f"{name} is not finished: the training has begun, and its bundle is not there yet."
        for run, name in zip(runs, names, strict=True)
        if run.config is None
    ]
    return Page(
        kicker="Students compared" if several else "Training",
        title=" and ".join(names),
        lead="; ".join(_lead(run) for run in runs),
        tiles=[
            *tiles,
            *(tile for run, name in zip(runs, names, strict=True) for tile in _tiles(run, name if several else "")),
        ],
        notes=notes,
        sections=sections,
        data=data or {},
    )


def _names(runs: Sequence[Run]) -> list[str]:
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.location) for run in runs]


def _lead(run: Run) -> str:
    if run.config is None:
        return f"A training of {counted(int(run.log[-1]['step']), 'step')} so far"
    origin, student = run.config.origin, run.config.student
    store = origin.get("store")
    teacher = store.get("teacher") if isinstance(store, dict) else None
    taught = f" from stored outputs of {shown(teacher.get('model'))}" if isinstance(teacher, dict) else ""
    classes = f", {counted(len(run.config.class_names), 'class')}" if run.config.class_names else ""
    return f"{shown(student.get('name'))}, trained with the recipe {shown(origin.get('recipe'))}{taught}{classes}"


def _tiles(run: Run, name: str) -> list[Tile]:
    if not run.log:
        return []
    losses = [line["loss"] for line in run.log if "loss" in line]
    accuracies = [line["validation_accuracy"] for line in run.log if "validation_accuracy" in line]
    of = f" of {name}" if name else ""
    tiles = [Tile(value=f"{int(run.log[-1]['step']):,}", name=f"steps{of}")]
    tiles += [Tile(value=f"{losses[-1]:.4g}", name=f"last loss{of}")] if losses else []
    tiles += [Tile(value=f"{max(accuracies):.1%}", name=f"best validation{of}")] if accuracies else []
    return tiles


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Section:
    logged = {name for run in runs for line in run.log for name in line} - {"step", "epoch"}
    order = [*(name for name in _TITLES if name in logged), *sorted(logged - set(_TITLES))]
    found = []
    for i, figure in enumerate(order):
        values: list[Json] = []
        for run, name in zip(runs, names, strict=True):
            lines = [line for line in run.log if figure in line]
            thinned = lines[:: -(-len(lines) // _POINTS) or 1]
            values += [{"step": x["step"], "epoch": x.get("epoch"), "value": x[figure], "run": name} for x in thinned]
        spec = charts.lines(values, _TITLES.get(figure, figure), by_run=len(runs) > 1)
        found.append(
            Chart(id=f"curve{i}", title=_TITLES.get(figure, figure), spec=spec, wide=figure == "loss", height=250)
        )
    words = [] if found else ["No log: this bundle came without its training."]
    blocks: list[Block] = [Charts(charts=found)] if found else []
    return Section(id="curves", title="Curves", words=words, blocks=blocks)


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Section:
    flat = [
        _flat({**run.settings, **({} if run.config is None else {"origin": dict(run.config.origin)})}) for run in runs
    ]
    every = dict.fromkeys(name for one in flat for name in one)
    rows = [[name, *(one.get(name, "") for one in flat)] for name in every if len({one.get(name) for one in flat}) > 1]
    head = [("setting", "l"), *((name, "l") for name in names)]
    words = [] if rows else ["Their settings and their data are the same."]
    blocks: list[Block] = [Table(title="What differs", head=head, rows=rows, open=True)] if rows else []
    return Section(id="differences", title="Settings that differ", words=words, blocks=blocks)


def _about(run: Run, name: str, place: int, several: bool) -> Section:
    blocks: list[Block] = []
    if run.config is not None:
        origin = _flat(dict(run.config.origin))
        blocks.append(
            Facts(
                rows=[
                    ("student", shown(dict(run.config.student))),
                    ("head", shown(dict(run.config.head))),
                    ("preprocess", shown(dict(run.config.preprocess))),
                    *origin.items(),
                ]
            )
        )
    if run.settings:
        rows = [[field, value] for field, value in _flat(run.settings).items()]
        blocks.append(
            Table(
                title="Settings that decide its bytes", head=[("setting", "l"), ("value", "l")], rows=rows, filter=True
            )
        )
    title = f"Settings and provenance of {name}" if several else "Settings and provenance"
    return Section(id=f"about-{place}", title=title, blocks=blocks)


def _flat(fields: dict[str, Any], above: str = "") -> dict[str, str]:
    """Names with dots for what lies in objects, and values as text."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = shown(value)
    return found
