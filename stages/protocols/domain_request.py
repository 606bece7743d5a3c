"""Owns the request for a benchmark of domain generalisation: its folders, and the commands that it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...pipeline.command_runner import to_argv
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.near_names import did_you_mean
from ..teachers.base import require_open_clip
from .domain_sets import DOMAIN_SETS, DomainFolder
from .domain_settings import DOMAIN_STUDENT, DOMAIN_TEACHER, DomainBenchmarkSettings
from .request import Model
from .steps import Command

#: The views of the published method, and the prompt of its class vectors (without a full stop).
VIEWS = {
    "view_scale": (0.7, 1.0),
    "view_flip": 0.5,
    "view_jitter": (0.3, 0.3, 0.3, 0.3),
    "view_grayscale": 0.1,
}
TEMPLATE = "a photo of a {}"

#: ImageNet's, by which students normalise.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student: without a domain, with a seed."""

    domain: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class DomainRequest:
    """A benchmark.

    Attributes:
        dataset: one of `DOMAIN_SETS`.
        data: its folder and domains.
        left_out: the domains to measure on, each without it in training.
        out: folder for all of it.
        epochs, steps_per_epoch: of each training.
        views: of each image that the teacher sees.
        teacher, student: models.
        student_normalization: whether the teacher's images are normalised as the student's are.
        compute: `device`, `precision`, `threads`; None for each command's own default.
        more: options to append to `cache` and `distill`.
    """

    dataset: str
    data: DomainFolder
    left_out: tuple[str, ...]
    out: Location
    seeds: tuple[int, ...]
    epochs: int
    steps_per_epoch: int
    views: int
    teacher: Model
    student: Model
    student_normalization: bool
    compute: Mapping[str, str | int | None]
    more: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(
        settings: DomainBenchmarkSettings,
        out: Location,
        *,
        compute: Mapping[str, str | int | None],
        more: Mapping[str, tuple[str, ...]],
    ) -> DomainRequest:
        """The request that a user's settings make.

        Raises:
            InputError: data, domains, seeds or a teacher that cannot be.
        """
        known, data = DOMAIN_SETS[settings.dataset], DomainFolder.find(settings.data, settings.dataset)
        for domain in settings.domains:
            if domain not in data.domains:
                raise InputError(
                    "no such domain",
                    code="domain-unknown",
                    where="--domain",
                    expected=", ".join(data.domains),
                    found=domain,
                    hint=did_you_mean(domain, data.domains, "") or None,
                )
        if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
            raise InputError(
                "impossible seeds",
                code="setting-impossible",
                where="--seeds",
                expected="numbers, each once",
                found=",".join(map(str, settings.seeds)),
            )
        teacher = Model.of(settings.teacher or DOMAIN_TEACHER, settings.teacher_pretrained)
        require_open_clip(teacher.name, "vl2v needs a teacher of images and text")
        epochs = settings.epochs or known.epochs
        return DomainRequest(
            dataset=settings.dataset,
            data=data,
            left_out=tuple(domain for domain in data.domains if domain in settings.domains or not settings.domains),
            out=out,
            seeds=settings.seeds,
            epochs=epochs,
            steps_per_epoch=settings.steps_per_epoch or known.steps_per_epoch,
            views=settings.views or epochs,
            teacher=teacher,
            student=Model.of(settings.student or DOMAIN_STUDENT, settings.student_pretrained),
            student_normalization=settings.student_normalization,
            compute=compute,
            more=more,
        )

    @property
    def shards(self) -> Location:
        return self.out / "shards"

    @property
    def targets(self) -> Location:
        return self.out / "targets"

    @property
    def templates(self) -> Location:
        """The file of the prompt."""
        return self.out / "templates.txt"

    def runs(self) -> Iterator[Run]:
        """All students, domain after domain."""
        for domain in self.left_out:
            for seed in self.seeds:
                yield Run(domain=domain, seed=seed)

    def bundle(self, run: Run, stage: int) -> Location:
        """Of a student in stage 1 or 2."""
        return self.out / "students" / self.student.folder / run.domain / f"seed-{run.seed}-stage-{stage}"

    def measured(self, run: Run) -> Location:
        """The measured results of a student."""
        return self.out / "measured" / self.student.folder / run.domain / f"seed-{run.seed}.json"

    def teacher_commands(self, where: tuple[str, ...]) -> list[Command]:
        """What makes the targets of all images.

        Args:
            where: options that say where `shard` and `cache` run.
        """
        teacher = {"teacher": self.teacher.name, "teacher_pretrained": self.teacher.pretrained}
        seen = {"teacher_mean": _MEAN, "teacher_std": _STD} if self.student_normalization else {}
        in_fp32 = {name: value for name, value in self.compute.items() if name != "precision"}
        return [
            [*to_argv("shard", self.data.folder, out=self.shards), *where],
            to_argv("vectors", **teacher, classes=self.shards, templates=self.templates, **in_fp32, out=self.targets),
            [
                *to_argv(
                    "cache",
                    self.shards,
                    **teacher,
                    **seen,
                    targets="embedding",
                    views=self.views,
                    **VIEWS,
                    **self.compute,
                    out=self.targets,
                ),
                *where,
                *self.more.get("cache", ()),
            ],
        ]

    def student_commands(self, run: Run) -> list[Command]:
        """What trains one student: both stages."""
        return [
            [
                *to_argv(
                    "distill",
                    self.shards,
                    self.targets,
                    student=self.student.name,
                    student_pretrained=self.student.pretrained if stage == 1 else self.bundle(run, 1),
                    recipe="vl2v",
                    stage=stage,
                    leave_out=run.domain,
                    seed=run.seed,
                    epochs=self.epochs,
                    steps_per_epoch=self.steps_per_epoch,
                    reuse_views=True,
                    **self.compute,
                    out=self.bundle(run, stage),
                ),
                *self.more.get("distill", ()),
            ]
            for stage in (1, 2)
        ]

    def evaluate_command(self, run: Run) -> Command:
        """What measures it; the benchmark does the same and keeps the result."""
        in_fp32 = {name: value for name, value in self.compute.items() if name != "precision"}
        return to_argv("evaluate", self.bundle(run, 2), self.data.domain(run.domain), **in_fp32)

    def all_commands(self, where: tuple[str, ...]) -> list[Command]:
        """Every command of the benchmark, in the order of the work."""
        return [
            *self.teacher_commands(where),
            *(command for run in self.runs() for command in self.student_commands(run)),
        ]
