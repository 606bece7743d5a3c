"""Three seeds of two students from one cache, against the authors' way: both towers of the teacher in every step.

Real stages with models of real sizes and random weights; only steps are few. And three seeds on one pass over the pairs, against
one of them: where decoding takes the time, since a small student learns from large photographs.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from corpora import files, take
from harness import Bench, Line, cost, pairs, slownesses

sys.path.append(str(Path(__file__).parent / "equivalence"))

TEACHER, STUDENTS, SEEDS = "ViT-B-16", ("ViT-B-32", "ViT-S-32"), (1, 2, 3)
CLASSES, IMAGES, EPOCHS, BATCH_SIZE = 50, 128, 2, 8

#: Photographs of one pass: so many, with sides so many times those of the corpus. Cameras' are larger still.
PHOTOGRAPHS, ENLARGED = 384, 4


def run(bench: Bench) -> Iterator[Line]:
    yield from _one_pass(bench)
    for name, corpus in bench.corpora[:1]:
        own = bench.scratch / name.replace("/", "-")
        work = Work(own, take(corpus, IMAGES, own / "images"), bench.threads)
        once = cost(work.cache)
        runs = [(student, seed) for student in STUDENTS for seed in SEEDS]
        cached = [cost(partial(work.distill, *run, online=False)) for run in runs]
        online = [cost(partial(work.distill, *run, online=True)) for run in runs]
        count = len(runs)
        for kind in ("cpu", "wall"):
            ours = getattr(once, kind) + sum(getattr(c, kind) for c in cached)
            online_cost = sum(getattr(c, kind) for c in online)
            student_cost = sum(getattr(c, kind) for c in cached) / count
            teacher_cost = online_cost / count - student_cost
            predicted = count * (teacher_cost + student_cost) / (teacher_cost + count * student_cost)
            limit = (teacher_cost + student_cost) / student_cost
            yield Line(
                what=f"teacher in every step by cached, {len(SEEDS)} seeds of {len(STUDENTS)} students, {kind} time",
                corpus=name,
                ratios=[online_cost / ours],
                note=f"predicted {predicted:.2f}; (T + S) / S = {limit:.2f} for ever more students; cache "
                f"{getattr(once, kind):.0f} s, a student {student_cost:.1f} s, with its teacher {online_cost / count:.1f} s",
            )


def _one_pass(bench: Bench) -> Iterator[Line]:
    from stores import make_shards, make_store

    name, corpus = bench.corpora[0]
    own = bench.scratch / "one-pass"
    make_shards(_enlarged(corpus, own / "images"), own / "shards", shard_size=128)
    make_store(own / "shards", own / "store", views=1, threads=bench.threads)
    _write_small_clip(own / "small")
    found = pairs(
        lambda: cost(partial(_seeds, own, SEEDS, bench.threads)),
        lambda: cost(partial(_seeds, own, SEEDS[:1], bench.threads)),
        bench.repeats,
    )
    wall, cpu = slownesses(found)
    one, three = (statistics.median(c[i].wall for c in found) for i in (1, 0))
    yield Line(
        what=f"distill, {len(SEEDS)} seeds on one pass by one of them, where decoding takes the time",
        corpus=f"{name}, {ENLARGED} times as large",
        ratios=wall,
        cpu_ratios=cpu,
        at_most=1.6,
        note=f"whole runs of {PHOTOGRAPHS} images at 224 pixels, one process decodes: {one:.1f} s and {three:.1f} s",
    )


def _enlarged(corpus: Path, folder: Path) -> Path:
    """Photographs as a camera would have taken them: the same, with longer sides."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number, (_, data) in zip(range(PHOTOGRAPHS), files(corpus), strict=False):
        with Image.open(io.BytesIO(data)) as small:
            large = small.convert("RGB").resize([ENLARGED * side for side in small.size], Image.Resampling.BICUBIC)
        large.save(folder / f"{number:06d}.jpg", quality=90)
    return folder


def _write_small_clip(folder: Path) -> None:
    """An open_clip model whose image tower takes 224 pixels in patches of 32, and next to no time."""
    import open_clip
    import safetensors.torch

    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
    }
    folder.mkdir()
    safetensors.torch.save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"size": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))


def _seeds(own: Path, seeds: Sequence[int], threads: int) -> None:
    """`distill --seeds …`, one epoch of recipe kd, with one process that decodes."""
    from stores import fresh
    from teachonce.pipeline.storage import Location
    from teachonce.pipeline.together import run_together
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.many_students import check_common, distill_together
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.models.student_config import StudentConfig
    from teachonce.stages.settings.distill import DistillSettings

    out = fresh(own / "students")
    stages = {
        f"seed-{seed}": plan_distill(
            str(own / "shards"),
            str(own / "store"),
            StudentConfig(model=f"local-dir:{own / 'small'}"),
            out=str(out / f"seed-{seed}"),
            recipe="kd",
            options={"epochs": 1, "batch_size": 64, "warmup_epochs": 0},
            compute=Compute(device="cpu", precision="fp32", threads=threads, decode_workers=1),
            settings=DistillSettings(seed=seed, order_seed=0),
            show_progress=False,
        )
        for seed in seeds
    }
    check_common(stages)
    done = run_together(stages, Location.of(out), distill_together)
    if done.failure is not None:
        raise done.failure


@dataclass
class Work:
    """Prompts, shards, class vectors, targets and students in a folder."""

    folder: Path
    images: Path
    threads: int

    def cache(self) -> None:
        """Everything that the teacher does, once: the text tower, and both views of all images."""
        from stores import fresh, make_shards
        from teachonce.pipeline.executors.serial import SerialExecutor
        from teachonce.pipeline.runner import run_stage
        from teachonce.stages.cache import plan_cache
        from teachonce.stages.settings.cache import CacheSettings
        from teachonce.stages.vectors import plan_vectors
        from teachonce.stages.views.spec import ViewSpec

        fresh(self.folder / "store")
        make_shards(self.images, fresh(self.folder / "shards"), IMAGES)
        self._write_prompts()
        named = plan_vectors(self.teacher, out=str(self.folder / "store"), compute=self.compute)
        run_stage(named, named.store, SerialExecutor(), progress=False)
        stage = plan_cache(
            str(self.folder / "shards"),
            self.teacher,
            out=str(self.folder / "store"),
            settings=CacheSettings(targets="auto", encoding="fp16", batch_size=64),
            views=ViewSpec(kind="random_resized_crop", count=EPOCHS),
            compute=self.compute,
        )
        run_stage(stage, stage.store, SerialExecutor(), progress=False)

    @property
    def teacher(self) -> Any:
        from teachonce.stages.teachers import TeacherConfig

        return TeacherConfig.of(f"teachonce:{self.folder / 'prompts'}")

    @property
    def compute(self) -> Any:
        from teachonce.stages.models.compute import Compute

        return Compute(device="cpu", precision="bf16", threads=self.threads)

    def distill(self, student: str, seed: int, *, online: bool) -> None:
        """One student by the published recipe, from the store or with the teacher's towers in every step."""
        from online import OnlineStage
        from stores import fresh
        from teachonce.pipeline.executors.serial import SerialExecutor
        from teachonce.pipeline.runner import run_stage
        from teachonce.pipeline.storage import Location
        from teachonce.stages.distill import plan_distill
        from teachonce.stages.models.student_config import StudentConfig
        from teachonce.stages.settings.distill import DistillSettings

        out = fresh(self.folder / f"{student}-{seed}-{online}")
        stage = plan_distill(
            str(self.folder / "shards"),
            str(self.folder / "store"),
            StudentConfig(model=student, pretrained="random"),
            out=str(out),
            recipe="promptkd",
            options={"epochs": EPOCHS, "batch_size": BATCH_SIZE},
            compute=self.compute,
            settings=DistillSettings(seed=seed),
            show_progress=False,
        )
        if online:
            stage = _both_towers(OnlineStage).like(
                stage, out=Location.of(out), teacher=self.teacher, compute=self.compute
            )
        run_stage(stage, stage.out, SerialExecutor(), progress=False)

    def _write_prompts(self) -> None:
        """A folder of prompts as they are drawn, 4 + 4 tokens and 9 layers deep."""
        import open_clip
        from teachonce.pipeline.storage import Location
        from teachonce.stages.prompts.clip import PromptedClip, PromptShape
        from teachonce.stages.prompts.folder import write_prompts
        from teachonce.stages.teachers import TeacherConfig
        from teachonce.stages.teachers.open_clip import OpenClipTeacher
        from teachonce.storage_schemas.prompts import PromptsConfig

        backbone = OpenClipTeacher.load(TeacherConfig(model=TEACHER, pretrained="random"))
        shape = PromptShape(vision_length=4, vision_depth=9, text_length=4, text_depth=9)
        clip = PromptedClip(backbone.model, shape)
        clip.start_from("a photo of a", backbone.tokenizer)
        names = tuple(open_clip.IMAGENET_CLASSNAMES[:CLASSES])
        config = PromptsConfig(
            backbone={
                "model": TEACHER,
                "pretrained": "random",
                "architecture": backbone.spec.architecture,
                "weights": backbone.spec.weights_digest,
                "preprocess": backbone.spec.preprocess.to_json(),
            },
            shape=shape.to_json(),
            context="a photo of a",
            class_names=names,
            base_classes=names,
            origin={},
        )
        write_prompts(Location.of(self.folder / "prompts"), clip.prompts(), config)


def _both_towers(online: Any) -> Any:
    """The online stage with the teacher's text tower in every step too, as PromptKD's code has it."""
    from online import OnlineStream
    from teachonce.stages.teachers import load_teacher

    class BothTowers(online):  # type: ignore[misc]
        def open_pairs(self, pairs: Any, built: Any, pool: Any) -> Any:
            stream = super().open_pairs(pairs, built, pool)
            teacher, names = load_teacher(self.teacher), self.vectors.names
            ask = teacher.embed

            class TeacherWithBothTowers:
                spec = teacher.spec

                def embed(self, images_NCHW: Any) -> Any:
                    teacher.class_vectors(names, ())
                    return ask(images_NCHW)

            return OnlineStream(stream._pairs, stream._teacher_stream, TeacherWithBothTowers(), self.teacher_compute)

    return BothTowers
