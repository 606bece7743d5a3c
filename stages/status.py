"""`teachonce status PATH`: how far each stage got under a folder, how fast, and where its time went."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import asdict
from typing import Any

from ..pipeline.contents import Kind, is_target_store, kind_of
from ..pipeline.driver import drivers_of
from ..pipeline.kinds_of_time import bottleneck_of, unit_seconds_of
from ..pipeline.ledger import Ledger, noun_of
from ..pipeline.storage import Location
from ..pipeline.tables import bar, seconds_text, section, table
from ..storage_schemas.errors import DamagedError, InputError, with_code
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.json_file import read_json
from ..storage_schemas.plain_text import counted, plural, printable, typed
from ..storage_schemas.receipt import InvalidRow
from .measures.failed import by_kind
from .measures.grown import Grown
from .pairs.beside import teachers_beside
from .pairs.store_root import refuse_lost_root
from .reports.running import running_json, running_text

#: Exit codes of `status`, beside 1 for an error and 2 for wrong usage.
EXIT_UNITS_LEFT, EXIT_UNITS_FAILED = 3, 4

#: What some kinds of time mean.
_NOTES = {"wait": "for the next images"}

#: Unusable images that are named for each kind of reason; `--json` names all.
_EXAMPLES = 3

#: Stages in the order in which they follow each other.
_ORDER = ("shard", "retry-failed", "import", "pretrain", "vectors", "cache", "labels", "captions", "distill")

#: The stage that makes each kind of folder, and what comes after it.
_MAKERS = {"shards": ("shard",), "target store": ("cache",)}
_FOLLOW = {
    "shards": "teachonce cache {path} --teacher … --out STORE",
    "target store": "teachonce distill SHARDS {path} --student … --recipe … --out BUNDLE",
    "labels": "teachonce distill SHARDS STORE --student … --recipe s3a --labels {path} --out BUNDLE",
    "captions": "teachonce distill SHARDS STORE --student … --recipe affinity --captions {path} --out BUNDLE",
    "student bundle": "teachonce evaluate {path} IMAGES",
    "folder of students": "teachonce evaluate {path}/NAME IMAGES",
    "prompts": "teachonce vectors --teacher teachonce:{path} --out STORE",
}
_MISSING = {
    "shard": "run the same `teachonce shard` command again",
    "cache": "teachonce cache SHARDS --teacher … --out {path}",
}


#: What a folder is called in the report.
_KINDS = {
    Kind.SHARDS: "shards",
    Kind.STORE: "target store",
    Kind.LABELS: "labels",
    Kind.CAPTIONS: "captions",
    Kind.BUNDLE: "student bundle",
    Kind.PROMPTS: "prompts",
    Kind.STUDENTS: "folder of students",
}


def folder_status(path: Location | str, *, examples: int = 5, now: datetime.datetime | None = None) -> dict[str, Json]:
    """What `status` reports, as JSON: `kind`, `stages`, `state`, `running`, `next`. A stage's `unusable` names all of them.

    Args:
        path: a folder of shards, of prompts, of students, a target store, a student bundle, or a run folder that holds some of
            these.
        examples: how many failures to name for each stage; all are counted.
        now: with its offset; None for this moment. Times in `running` are relative to it.

    Raises:
        InputError: nothing there, or nothing that a stage of teachonce started.
        DamagedError: a plan or receipt cannot be read, or a store has lost its root.
    """
    location = Location.of(path)
    if not location.is_dir():
        raise InputError(
            "no such folder",
            code="folder-missing",
            where=location,
            hint="give a folder of shards, a store, a bundle or a run",
        )
    inside = [] if is_target_store(location) else location.folders()  # a store's own are its arrays
    folders = [location, *inside, *teachers_beside(location).values()]
    for folder in folders:
        refuse_lost_root(folder)
    ledgers = [Ledger(folder, stage) for folder in folders for stage in Ledger.stages(folder)]
    grown = {folder: Grown.of(folder) for folder in folders}
    stages = [_stage(ledger, examples, grown[ledger.out]) for ledger in sorted(ledgers, key=_place)]
    kind = _KINDS.get(kind_of(location))
    drivers = [(folder, driver) for folder in folders for driver in drivers_of(folder)]
    if not stages and kind is None and not drivers:
        raise InputError(
            "no stage of teachonce has started here",
            code="nothing-started",
            where=location,
            hint="give a folder of shards, a store, a bundle or a run",
        )
    names = {stage["stage"] for stage in stages}
    missing = [stage for stage in _MAKERS.get(kind or "", ()) if stage not in names]
    if any(stage["failed"] for stage in stages):
        state = "failed units"
    elif missing or not stages or any(stage["left"] for stage in stages):
        state = "units left"
    else:
        state = "complete"
    follow = _FOLLOW.get(kind or "") if state == "complete" else _MISSING.get(missing[0]) if missing else None
    return {
        "path": str(location),
        "kind": kind or "run folder",
        "running": {
            f"{folder} (slice {driver.slice})" if driver.slice else str(folder): running_json(
                driver, folder, _training(folder), now=now or _this_moment()
            )
            for folder, driver in drivers
        },
        "state": state,
        "stages": stages,
        "next": follow.format(path=typed(location)) if follow and not drivers else None,
    }


def exit_code(facts: dict[str, Json]) -> int:
    """0 where everything is done, `EXIT_UNITS_LEFT`, or `EXIT_UNITS_FAILED` (which wins)."""
    return {"complete": 0, "units left": EXIT_UNITS_LEFT, "failed units": EXIT_UNITS_FAILED}[facts["state"]]


def _place(ledger: Ledger) -> tuple[int, str, int]:
    """Stages come in the order in which they follow each other, of several outputs by name, then by generation."""
    place = _ORDER.index(ledger.command) if ledger.command in _ORDER else len(_ORDER)
    return place, str(ledger.out), ledger.generation


def _this_moment() -> datetime.datetime:
    return datetime.datetime.now().astimezone()


def _stage(ledger: Ledger, examples: int, grown: Grown) -> dict[str, Json]:
    """One stage's ledger. A unit whose files are gone or cut is left to do, as the runner sees it."""
    plan = ledger.plan()
    assert plan is not None  # `Ledger.stages` lists those that have one
    done = damaged = rows_done = 0
    invalid: list[InvalidRow] = []
    superseded, told_later = ledger.superseded(), grown.mended_since(ledger.stage)
    there, sums = ledger.files_there(), Counter[str]()
    for receipt, spent in ledger.done():
        sums.update(spent)
        if receipt.key in superseded:  # a later ledger has what is unusable in it now
            done, rows_done = done + 1, rows_done + receipt.rows
        elif ledger.is_intact(receipt, there):
            done, rows_done = done + 1, rows_done + receipt.rows
            invalid += () if receipt.key in told_later else receipt.invalid_rows
        else:
            damaged += 1
    failures = ledger.failures()
    seconds = dict(sums.most_common())
    training = _training(ledger.out)  # None for stages that train nothing
    unit_seconds = unit_seconds_of(seconds)
    return {
        "stage": plan.stage,
        "command": plan.done_by,
        "generation": grown.facts(ledger.stage),
        "folder": str(ledger.out),
        "fingerprint": plan.fingerprint.digest,
        "units": plan.units,
        "done": done,
        "failed": len(failures),
        "left": max(plan.units - done - len(failures), 0),
        "damaged": damaged,
        "rows": plan.rows,
        "rows_done": rows_done,
        "invalid_rows": len(invalid),
        "unusable": _by_kind(invalid),
        "seconds": seconds,
        "unit_seconds": unit_seconds,
        "rows_per_second": training["samples_per_second"] if training else _rate(rows_done, unit_seconds),
        "training": training,
        "bottleneck": bottleneck_of(seconds),
        "failures": [_failure(key, failures[key]) for key in list(failures)[:examples]],
    }


def _failure(key: str, note: dict[str, Json]) -> dict[str, Json]:
    """Bugs have no code, nor had notes of early versions."""
    failure = {"unit": key, "reason": note["reason"]}
    return {**failure, "code": note["code"]} if "code" in note else failure


def _by_kind(invalid: list[InvalidRow]) -> list[dict[str, Json]]:
    """Unusable images by kind of reason."""
    return [
        {"kind": kind, "count": len(images), "images": [asdict(bad) for bad in images]}
        for kind, images in by_kind(invalid)
    ]


def _training(out: Location) -> dict[str, Json] | None:
    """The last line of a training run's log, or None where there is none."""
    location = out / "run" / "log.jsonl"
    if not location.exists():
        return None
    for line in reversed(location.read_bytes().splitlines()):
        try:
            return read_json(
                line,
                dict[str, Any],
                what="not a line of a training log",
                code="training-log-malformed",
                where=location,
                hint="",
            )
        except DamagedError:
            continue  # the last line of a killed run
    return None


def _rate(rows: int, seconds: float) -> float | None:
    return rows / seconds if seconds > 0 else None


def status_text(facts: dict[str, Json]) -> str:
    """`folder_status` for a terminal."""
    now = _this_moment()
    running = [running_text(driver, folder, now=now) for folder, driver in facts["running"].items()]
    parts = ["\n".join([f"{facts['path']}: {facts['kind']}, {facts['state']}", *running])]
    parts += [_stage_text(stage, facts["path"]) for stage in facts["stages"]]
    if facts["next"]:
        parts.append(f"Next: {facts['next']}")
    return "\n\n".join(parts)


def _stage_text(stage: dict[str, Any], path: str) -> str:
    things = plural(noun_of(stage["stage"]))
    state = f"{stage['done']} of {counted(stage['units'], 'unit')} done"
    state += "".join(f", {stage[word]} {word}" for word in ("failed", "left") if stage[word])
    invalid = f", {stage['invalid_rows']} of them invalid" if stage["invalid_rows"] else ""
    rows = [
        *([["generation", _generation(stage["generation"])]] if stage["generation"] else []),
        ["units", state],
        [things, f"{stage['rows_done']} done{invalid}"],
        ["fingerprint", stage["fingerprint"]],
    ]
    if stage["damaged"]:
        rows.append(["damaged", f"{counted(stage['damaged'], 'unit')}: a receipt is there, but files are gone or cut"])
    if stage["training"] is not None:
        last = stage["training"]
        rows.append(["training", f"step {last['step']}, epoch {last['epoch'] + 1}, loss {last['loss']:.4g}"])
    if stage["rows_per_second"] is not None:
        rows.append(["rate", f"{stage['rows_per_second']:.1f} {things}/s in each worker"])
    title = stage["stage"] + (f" in {stage['folder']}" if stage["folder"] != path else "")
    return section(title, table(rows), _times(stage), _unusable(stage), _failures(stage), _next(stage))


def _generation(facts: dict[str, Any]) -> str:
    added = f"{facts['added']}; " if facts["added"] else "what the store began with; "
    return f"{facts['name']}: {added}{facts['state']}{', what readers get' if facts['current'] else ''}"


def _times(stage: dict[str, Any]) -> str:
    total = sum(stage["seconds"].values())
    if total <= 0:
        return ""
    rows = [
        ["", kind, seconds_text(value), f"{value / total:.0%}", bar(value / total)]
        + ([note] if (note := "the bottleneck" if kind == stage["bottleneck"] else _NOTES.get(kind)) else [])
        for kind, value in stage["seconds"].items()
    ]
    return "  time, summed over units and threads\n" + table(rows, align="llrr")


def _unusable(stage: dict[str, Any]) -> str:
    lines = []
    for kind in stage["unusable"]:
        lines.append(f"    {kind['count']} × {printable(kind['kind'])}")
        named = kind["images"][:_EXAMPLES]
        rows = [
            [f"row {bad['row']}", bad["path"], bad["reason"].removeprefix(kind["kind"]).removeprefix(": ")]
            for bad in named
        ]
        lines.append(table(rows, indent=6))
        if kind["count"] > len(named):
            lines.append(f"      and {kind['count'] - len(named)} more (`teachonce status --json` names all)")
    return "\n".join(["  unusable images", *lines]) if lines else ""


def _failures(stage: dict[str, Any]) -> str:
    rows = [[f["unit"], with_code(f["reason"], f["code"]) if "code" in f else f["reason"]] for f in stage["failures"]]
    more = stage["failed"] - len(rows)
    if not rows:
        return ""
    return "  failed\n" + table(rows, indent=4) + (f"\n    and {more} more" if more > 0 else "")


def _next(stage: dict[str, Any]) -> str:
    command = stage["command"].partition(".")[0]
    again = f"run the same `teachonce {printable(command)}` command again; finished units are kept"
    if stage["failed"]:
        return f"  Next: mend the cause, then {again}"
    return f"  Next: {again}" if stage["left"] else ""
