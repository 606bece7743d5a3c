"""Owns a task to compare trainings on: teacher, images without labels, held-out images, students; and its stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.names import RANDOM
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec

#: Images (views) in one of the teacher's batches, the command's default.
BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a recipe is used on a task.

    Attributes:
        student: what it starts from.
        options: the recipe's settings that differ from its defaults.
    """

    student: StudentConfig
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What students are compared on, prepared in a folder.

    Attributes:
        folder: `images` (no labels), `held-out` (class folders) and `classes.txt` are there; the rest is made here.
        teacher: the one that is distilled.
        teacher_compute, student_compute: how they run.
        views: how boxes are drawn.
        trainings: by recipe.
        base: `base-classes.txt` is there too: accuracy is split into base and novel classes.
    """

    name: str
    folder: Path
    teacher: TeacherConfig
    teacher_compute: Compute
    student_compute: Compute
    views: ViewSpec
    trainings: Mapping[str, Training]
    base: bool = False

    def adjusted(
        self,
        *,
        batch_size: int,
        from_scratch: Sequence[str] = (),
        as_published: bool = False,
        precision: str = "fp32",
    ) -> Task:
        """The same with other batches and another precision of the teacher.

        Students of the recipes in `from_scratch` start at random; `as_published` means the recipes' own settings.
        """

        def adjust(recipe: str, training: Training) -> Training:
            start = {"pretrained": RANDOM} if recipe in from_scratch else {}
            options = {} if as_published else training.options
            return Training(student=replace(training.student, **start), options={**options, "batch_size": batch_size})

        return replace(
            self,
            teacher_compute=replace(self.teacher_compute, precision=precision),
            trainings={recipe: adjust(recipe, training) for recipe, training in self.trainings.items()},
        )

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def held_out_shards(self) -> Path:
        return self.folder / "held-out-shards"

    @property
    def held_out_store(self) -> Path:
        """The teacher's outputs for the centre views of the held-out images, in fp32."""
        return self.folder / "held-out-targets"

    def store(self, encoding: str) -> Path:
        """All views of the images, in an encoding."""
        return self.folder / f"targets-{encoding}"

    def make_store(self, encoding: str) -> Path:
        """Shards, class vectors and targets, or what is left of that. Returns the store."""
        self._shard("images", self.shards)
        self._ask(self.shards, self.store(encoding), self.views, encoding)
        return self.store(encoding)

    def make_held_out(self) -> None:
        """The same of the held-out images."""
        self._shard("held-out", self.held_out_shards)
        self._ask(self.held_out_shards, self.held_out_store, None, "fp32")

    def _shard(self, images: str, out: Path) -> None:
        stage = plan_shard([str(self.folder / images)], out=str(out), settings=ShardSettings(shard_size=500))
        run_stage(stage, stage.out, SerialExecutor(), progress=False)

    def _ask(self, shards: Path, store: Path, views: ViewSpec | None, encoding: str) -> None:
        named = plan_vectors(
            self.teacher,
            out=str(store),
            settings=VectorsSettings(classes=str(self.folder / "classes.txt")),
            compute=Compute(device="cpu", precision="fp32", threads=self.teacher_compute.threads),
        )
        run_stage(named, named.store, SerialExecutor(), progress=False)
        stage = plan_cache(
            str(shards),
            self.teacher,
            out=str(store),
            views=views,
            settings=CacheSettings(targets="logits", encoding=encoding, batch_size=BATCH_SIZE),
            compute=self.teacher_compute,
        )
        run_stage(stage, stage.store, SerialExecutor(), progress=False)
