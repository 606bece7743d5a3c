"""Owns the run of a benchmark of reverse distillation: each category by its own commands, from data to figures."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ...pipeline.command_runner import Runner, to_argv
from ...pipeline.storage import Location
from ...pipeline.tables import bytes_text, table
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError, TeachonceError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..anomalies import RESULTS as FIGURES_FILE
from ..corpora.defects.defect_source import GOOD, TEST, TRAIN
from ..corpora.defects.spelled import open_defects
from ..corpora.shards import ShardSet
from ..teachers import load_teacher
from .defect_settings import DefectBenchmarkSettings
from .folders import PAGE, RESULTS, claim

#: Figures of the table's columns.
_FIGURES = ("image_auroc", "pixel_auroc", "aupro")


@dataclass(frozen=True, kw_only=True)
class DefectRequest:
    """A benchmark.

    Attributes:
        parts: categories or fabrics.
        compute: `device`, `precision`, `threads`; what is not at its default.
        more: options to append to `cache` and `distill`.
    """

    settings: DefectBenchmarkSettings
    out: Location
    parts: tuple[str, ...]
    compute: Mapping[str, str | int | None] = field(default_factory=dict)
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def of(
        settings: DefectBenchmarkSettings,
        out: Location,
        *,
        compute: Mapping[str, str | int | None],
        more: Mapping[str, tuple[str, ...]],
    ) -> DefectRequest:
        """
        Raises:
            InputError: no such data, or parts that are not there.
        """
        parts = _parts(settings)
        request = DefectRequest(settings=settings, out=out, parts=parts, compute=compute, more=more)
        for part in parts:
            for split in (TRAIN, TEST):
                open_defects(request.split(part, split))
        return request

    def split(self, part: str, split: str) -> str:
        """A split as commands take it."""
        return f"{self.settings.dataset}:{part}/{split}={self.settings.data}"

    def place(self, part: str, name: str) -> Location:
        """A folder of a part."""
        return self.out / part / name


def run_reverse_distillation(request: DefectRequest, runner: Runner) -> dict[str, Json]:
    """Run the benchmark in its folder, or what is left of it; return and save the results.

    Raises:
        InputError, MismatchError: something is wrong before the first stage.
    """
    settings = request.settings
    for part in request.parts:
        for command in (*teacher_commands(request, part, runner.where), *student_commands(request, part, runner.where)):
            runner.check(command)
    protocol = f"reverse-distillation {settings.dataset}"
    models = (settings.teacher, settings.teacher_pretrained)
    claim(request.out, protocol, (settings.data,), models, benchmark="reverse-distillation")
    rows, failed = [], []
    for part in request.parts:
        runner.say(f"\n{part}: the teacher runs once for {len(settings.seeds)} student(s).")
        try:
            _do(teacher_commands(request, part, runner.where), runner)
            load_teacher.cache_clear()  # students train without it
            _do(student_commands(request, part, runner.where), runner)
            rows.append(_row(request, part))
        except TeachonceError as error:
            failed.append({"part": part, "error": str(error), "code": error.code})
            runner.say(f"benchmark: {part} failed: {error.line}")
    runner.leave()
    facts: dict[str, Json] = {
        "benchmark": "reverse-distillation",
        "dataset": settings.dataset,
        "folder": str(request.out),
        "teacher": settings.teacher,
        "levels": settings.levels,
        "encoding": settings.encoding,
        "student": settings.student,
        "epochs": settings.epochs,
        "seeds": list(settings.seeds),
        "rows": rows,
        "failed": failed,
    }
    _keep(request.out / RESULTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    _keep(request.out / PAGE, defect_table(facts) + "\n")
    return facts


def teacher_commands(request: DefectRequest, part: str, where: tuple[str, ...]) -> list[list[str]]:
    """What makes the maps of a part's images.

    Args:
        where: options that say where units run.
    """
    settings, commands = request.settings, []
    for split in (TRAIN, TEST):
        shards, maps = (request.place(part, f"{split}-{name}") for name in ("shards", "maps"))
        commands += [
            [*to_argv("shard", request.split(part, split), out=shards), *where],
            [
                *to_argv(
                    "cache",
                    shards,
                    teacher=settings.teacher,
                    teacher_pretrained=settings.teacher_pretrained,
                    teacher_size=settings.size,
                    teacher_crop_mode="squash",
                    teacher_crop_pct=1,
                    teacher_interpolation="bilinear",
                    targets=settings.levels,
                    encoding=settings.encoding,
                    **request.compute,
                    out=maps,
                ),
                *where,
                *request.more.get("cache", ()),
            ],
        ]
    return commands


def student_commands(request: DefectRequest, part: str, where: tuple[str, ...]) -> list[list[str]]:
    """What trains a part's students, and looks at the test images with each."""
    settings, commands = request.settings, []
    has_masks = open_defects(request.split(part, TEST)).has_masks
    measuring = {name: value for name, value in request.compute.items() if name != "precision"}
    for seed in settings.seeds:
        student = request.place(part, f"student-{seed}")
        commands += [
            [
                *to_argv(
                    "distill",
                    request.place(part, f"{TRAIN}-shards"),
                    request.place(part, f"{TRAIN}-maps"),
                    student=settings.student,
                    recipe="reverse-distillation",
                    feature_targets=settings.levels,
                    epochs=settings.epochs,
                    reuse_views=True,
                    seed=seed,
                    **request.compute,
                    out=student,
                ),
                *request.more.get("distill", ()),
            ],
            [
                *to_argv(
                    "anomalies",
                    request.place(part, f"{TEST}-shards"),
                    request.place(part, f"{TEST}-maps"),
                    student,
                    masks=request.split(part, TEST) if has_masks else None,
                    **measuring,
                    out=request.place(part, f"anomalies-{seed}"),
                ),
                *where,
            ],
        ]
    return commands


def defect_table(facts: Mapping[str, Any]) -> str:
    """The table for people: means over seeds, and over parts at the end."""

    def shown(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{fmean(known):.2%}" if known else "-"

    rows = [
        [
            row["part"],
            *(shown([run[name] for run in row["runs"]]) for name in _FIGURES),
            str(row["train_images"]),
            bytes_text(row["bytes_per_image"]),
        ]
        for row in facts["rows"]
    ]
    if len(rows) > 1:
        means = [shown([run[name] for row in facts["rows"] for run in row["runs"]]) for name in _FIGURES]
        rows.append(["mean", *means, "", ""])
    head = ("part", "AUROC of images", "AUROC of pixels", "AUPRO", "trained on", "maps an image")
    lines = [
        f"{facts['student']} of {facts['teacher']}, {facts['levels']} in {facts['encoding']}, {counted(facts['epochs'], 'epoch')}",
        "",
        table(rows, head=head, align="lrrrrr"),
    ]
    lines += [f"failed: {failure['part']}: {failure['error']}" for failure in facts["failed"]]
    return "\n".join(lines)


def _parts(settings: DefectBenchmarkSettings) -> tuple[str, ...]:
    root = UserFile.of(settings.data)
    if not root.is_dir():
        raise InputError(
            "no such folder", code="folder-missing", where=root, hint="name the folder that holds the data set"
        )
    if settings.parts is not None:
        names = [name.strip() for name in settings.parts.split(",") if name.strip()]
    elif settings.dataset == "mvtec":
        names = [name for name in root.names() if (root / name / TRAIN / GOOD).is_dir()]
    else:
        names = ["all"]
    if not names:
        raise InputError(
            "no category that can be used",
            code="defects-incomplete",
            where=root,
            expected=f"CATEGORY/{TRAIN}/{GOOD}",
            found=", ".join(root.names()[:8]) or "nothing",
            hint="name the folder that holds the categories",
        )
    return tuple(dict.fromkeys(names))


def _row(request: DefectRequest, part: str) -> dict[str, Any]:
    """The figures of a part's students, and what the maps that they learned from take."""
    runs = []
    for seed in request.settings.seeds:
        found = json.loads((request.place(part, f"anomalies-{seed}") / FIGURES_FILE).read_bytes())
        runs.append({"seed": seed, **found})
    images = ShardSet.open(request.place(part, f"{TRAIN}-shards")).corpus.num_samples
    store = request.place(part, f"{TRAIN}-maps")
    size = sum(stat.size for name, stat in store.listing(deep=True) if not stat.is_folder and "/c/" in name)
    return {"part": part, "runs": runs, "train_images": images, "store_bytes": size, "bytes_per_image": size / images}


def _do(commands: list[list[str]], runner: Runner) -> None:
    """Run commands. What they print is for people here: the benchmark's own data alone goes to stdout."""
    for command in commands:
        with contextlib.redirect_stdout(sys.stderr):
            runner.do(command)


def _keep(location: Location, text: str) -> None:
    """Write a file, unless it is there as it should be."""
    if not location.exists() or location.read_bytes() != text.encode():
        location.write_bytes(text.encode())
