"""Measures all that needs a GPU in a few minutes, without network and without Ray; writes JSON after each row.

    python benchmarks/gpu.py --minutes 8 --out gpu.json          # photographs of 340×256 are drawn
    python benchmarks/gpu.py --corpus PHOTOS --only cache        # a folder of images
    python benchmarks/gpu.py --device cpu --quick                # whether it runs, on a small model

Each figure is a ratio of two runs of this process, one after the other, on the same images: see docs/performance.md. Rows
start in the order of `ROWS` while there is time left, each at most twice as long as it should be.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from corpora import draw, files
from precision import distance
from stores import make_shards


@dataclass
class Setting:
    """What is measured on.

    Attributes:
        images: photographs in the corpus.
        batch: views in a forward pass.
        repeats: of each run; the median counts.
        found: figures so far, by row.
    """

    device: str
    folder: Path
    shards: Path
    images: int
    batch: int
    repeats: int
    large: str
    small: tuple[str, ...]
    student: str
    workers: int
    found: dict[str, Any] = field(default_factory=dict)

    def fresh(self, name: str) -> str:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return str(self.folder / name)


def synchronize(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def rate(setting: Setting, count: int, work: Callable[[], object]) -> float:
    """What it does a second, by the median of the repeats; not counting a first time."""
    work()
    seconds = []
    for _ in range(setting.repeats):
        synchronize(setting)
        start = time.perf_counter()
        work()
        synchronize(setting)
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def compute(setting: Setting, precision: str = "bf16", workers: int | None = None) -> Any:
    from teachonce.stages.models.compute import teacher_compute
    from teachonce.stages.models.settings import ComputeSettings

    return teacher_compute(
        ComputeSettings(
            device=setting.device, precision=precision, decode_workers=setting.workers if workers is None else workers
        )
    )


# The floors: plain open_clip and Pillow.


def plain_model(name: str, device: str) -> Any:
    import open_clip

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(name, pretrained=None, load_weights=False)
    return model.eval().requires_grad_(False).to(device, torch.bfloat16)


def forward_alone(setting: Setting, name: str) -> float:
    """Images a second of a plain model with weights in bf16, on tensors in the device's memory."""
    model = plain_model(name, setting.device)
    images = torch.rand(setting.batch, 3, 224, 224, device=setting.device, dtype=torch.bfloat16)
    passes = max(2, 2048 // setting.batch) if setting.device == "cuda" else 1

    @torch.inference_mode()
    def work() -> None:
        for _ in range(passes):
            model.encode_image(images)

    found = rate(setting, passes * setting.batch, work)
    setting.found.setdefault("forward alone", {})[name] = round(found, 1)
    return found


def decode_alone(setting: Setting, views: int) -> float:
    """Views a second of making them, with all processes and no model."""
    from teachonce.stages.corpora.shards import ShardSet
    from teachonce.stages.decoding.work import in_order
    from teachonce.stages.samples import shard_views
    from teachonce.stages.samples.shard_views import ShardViews, tasks_of

    shards = ShardSet.open(setting.shards)
    pool = compute(setting).pool(shard_views.__name__)
    opened = pool.open(ShardViews(shards, view_spec(views), 224))
    size = max(1, 64 // views)

    def work() -> None:
        for shard in range(shards.corpus.num_shards):
            rows = list(shards.corpus.rows(shard))
            keys = [entry.key for entry in shards.manifest().shard(shard)]
            for _ in in_order(opened, tasks_of(shard, rows, keys, size), pool.ahead):
                pass

    try:
        return rate(setting, setting.images * views, work)
    finally:
        pool.close()


def view_spec(views: int) -> Any:
    from teachonce.stages.views.spec import ViewSpec

    return ViewSpec(kind="random_resized_crop", count=views)


# teachonce


def run_open(stage: Any, out: Any) -> float:
    """Seconds of a stage's units, its model loaded and its processes started before."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage

    opened = stage.open()
    synchronize_all()

    class Opened:
        name, fingerprint, resources, plan = stage.name, stage.fingerprint, stage.resources, stage.plan

        def open(self) -> Any:
            return opened

    start = time.perf_counter()
    run_stage(Opened(), out, SerialExecutor(), progress=False)
    return time.perf_counter() - start


def synchronize_all() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cache_rate(setting: Setting, name: str, views: int) -> float:
    """Views a second of `cache`: images from shards, targets on the disk, receipts committed."""
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.teachers import TeacherConfig

    seconds = []
    for _ in range(setting.repeats + 1):
        stage = plan_cache(
            str(setting.shards),
            TeacherConfig.of(model=name, pretrained="random"),
            out=setting.fresh("cached"),
            views=view_spec(views),
            settings=CacheSettings(targets="embedding", batch_size=setting.batch),
            compute=compute(setting),
        )
        seconds.append(run_open(stage, stage.store))
    return setting.images * views / statistics.median(seconds[1:])


def row_cache(setting: Setting) -> dict[str, Any]:
    """Rows 1 and 2: `cache` of the large teacher with 1, 4 and 8 views, by forward alone."""
    floor = forward_alone(setting, setting.large)
    found: dict[str, Any] = {"floor": floor}
    for views in (1, 4, 8):
        with cut(setting, views):
            ours = cache_rate(setting, setting.large, views)
        found[f"{views} views"] = {"views/s": ours, "ratio": ours / floor, "to reach": 0.92 if views == 1 else 0.95}
    return found


@contextmanager
def cut(setting: Setting, views: int) -> Iterator[None]:
    """Fewer images where each has more views; never fewer than a shard."""
    from teachonce.stages.corpora.shards import ShardSet

    before = setting.images, setting.shards
    if views > 1:
        count = max(64, setting.images // views)
        target = setting.folder / f"shards-{count}"
        if not target.exists():
            source = setting.folder / f"images-{count}"
            for number, (path, data) in enumerate(files(setting.folder / "images")):
                if number < count:
                    (source / path).parent.mkdir(parents=True, exist_ok=True)
                    (source / path).write_bytes(data)
            make_shards(source, target, shard_size=min(500, count))
        setting.images, setting.shards = ShardSet.open(target).corpus.num_samples, target
    try:
        yield
    finally:
        setting.images, setting.shards = before


def row_embed(setting: Setting) -> dict[str, Any]:
    """Row 3: the teacher's own forward pass by forward alone; its distance to fp32."""
    from teachonce.stages.teachers import TeacherConfig, load_teacher
    from teachonce.stages.teachers.placing import place

    floor = forward_alone(setting, setting.large)
    images = torch.randint(0, 256, (setting.batch, 3, 224, 224), dtype=torch.uint8, device=setting.device)
    found: dict[str, Any] = {"floor": floor, "to reach": 0.98}
    exact = None
    for precision in ("fp32", "amp_bf16", "bf16"):
        how = compute(setting, precision)
        teacher = place(load_teacher(TeacherConfig.of(model=setting.large, pretrained="random")), how)

        def work(teacher: Any = teacher, how: Any = how) -> Any:
            with how.inference():
                for _ in range(4):
                    embedding = teacher.embed(images)
            return embedding

        embedding = work()[:64].double()
        if exact is None:
            exact = embedding
        entry = distance(exact, embedding)
        if precision != "fp32" or setting.device == "cuda":
            ours = rate(setting, 4 * setting.batch, work)
            entry |= {"images/s": ours, "ratio": ours / floor}
        found[precision] = entry
        del teacher
        gc.collect()
    return found


def row_small(setting: Setting) -> dict[str, Any]:
    """Row 4: `cache` of small teachers, by the smaller of forward alone and making views alone."""
    decoding = decode_alone(setting, 1)
    found: dict[str, Any] = {"making views alone": decoding, "to reach": 0.9}
    for name in setting.small:
        floor = min(forward_alone(setting, name), decoding)
        ours = cache_rate(setting, name, 1)
        found[name] = {"images/s": ours, "floor": floor, "ratio": ours / floor}
    return found


def row_plain_loop(setting: Setting) -> dict[str, Any]:
    """Row 11: `cache` by a plain open_clip loop over a DataLoader of as many processes, weights in bf16, results kept in memory."""
    import open_clip
    from PIL import Image

    paths = [setting.folder / "images" / path for path, _ in files(setting.folder / "images")]
    transform = open_clip.image_transform(224, is_train=False)

    class Photographs(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(paths[index]))

    model = plain_model(setting.large, setting.device)

    @torch.inference_mode()
    def loop() -> None:
        loader = torch.utils.data.DataLoader(
            Photographs(), batch_size=setting.batch, num_workers=setting.workers, pin_memory=setting.device == "cuda"
        )
        kept = []
        for images in loader:
            features = model.encode_image(images.to(setting.device, torch.bfloat16, non_blocking=True))
            kept.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu())
        np.save(setting.folder / "kept.npy", torch.cat(kept).half().numpy())

    plain = rate(dataclasses.replace(setting, repeats=1), len(paths), loop)
    ours = cache_rate(setting, setting.large, 1)
    return {"plain loop": plain, "cache": ours, "ratio": ours / plain, "to reach": 1.0}


def prepared_store(setting: Setting) -> Path:
    """A store of logits of 100 classes by a tiny teacher, 2 views, for students."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.settings.vectors import VectorsSettings
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.vectors import plan_vectors

    store = setting.folder / "store"
    if not store.exists():
        config = TeacherConfig.of(model=setting.small[0], pretrained="random")
        names = setting.folder / "classes.txt"
        names.write_text("".join(f"class {i}\n" for i in range(100)))
        vectors = plan_vectors(
            config, out=str(store), settings=VectorsSettings(classes=str(names)), compute=compute(setting)
        )
        run_stage(vectors, vectors.store, SerialExecutor(), progress=False)
        stage = plan_cache(
            str(setting.shards),
            config,
            out=str(store),
            views=view_spec(2),
            settings=CacheSettings(targets="embedding", batch_size=setting.batch),
            compute=compute(setting),
        )
        run_stage(stage, stage.store, SerialExecutor(), progress=False)
    return store


def trained(
    setting: Setting, out: str, recipe: str, batch: int, *, epochs: int = 1, **options: Any
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of `distill`, start included, and the lines of its log."""
    command = [sys.executable, "-m", "teachonce", "distill", str(setting.shards), str(prepared_store(setting))]
    command += [
        "--student",
        setting.student,
        "--student-pretrained",
        "random",
        "--recipe",
        recipe,
        "--batch-size",
        str(batch),
    ]
    command += [
        "--epochs",
        str(epochs),
        "--device",
        setting.device,
        "--executor",
        "serial",
        "--out",
        setting.fresh(out),
    ]
    command += ["--decode-workers", str(setting.workers), "--reuse-views"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-1500:]}")
    return seconds, logged(setting, out)


def logged(setting: Setting, out: str) -> list[dict[str, Any]]:
    logs = sorted((setting.folder / out).rglob("log.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def steady(log: list[dict[str, Any]]) -> float:
    """Images a second of steps, by the median of the log's lines but the first, in which all starts."""
    return statistics.median(line["samples_per_second"] for line in log[1:] or log)


def on_one_batch(setting: Setting, recipe: str, batch: int) -> float:
    """Images a second of the same steps where every batch is the first one: nothing is decoded."""
    from unittest import mock

    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.models.compute import training_compute
    from teachonce.stages.models.settings import ComputeSettings
    from teachonce.stages.models.student_config import StudentConfig
    from teachonce.stages.pairs.stream import TargetStream
    from teachonce.stages.settings.distill import DistillSettings

    original = TargetStream.batches

    def batches(self: TargetStream, epoch: int, first_sample: int = 0) -> Iterator[Any]:
        first = next(original(self, epoch, first_sample))
        for _ in range(self.steps_per_epoch):
            yield first

    stage = plan_distill(
        str(setting.shards),
        str(prepared_store(setting)),
        StudentConfig(model=setting.student, pretrained="random"),
        out=setting.fresh("one-batch"),
        recipe=recipe,
        options={"epochs": 1, "batch_size": batch},
        settings=DistillSettings(reuse_views=True),
        compute=training_compute(ComputeSettings(device=setting.device, decode_workers=1)),
        show_progress=False,
    )
    with mock.patch.object(TargetStream, "batches", batches):
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return steady(logged(setting, "one-batch"))


def row_steps(setting: Setting) -> dict[str, Any]:
    """Rows 6, 7 and 9: steps of promptkd and kd in `distill`, by the same on one batch in memory, and with CUDA graphs."""
    found: dict[str, Any] = {}
    large, losses = setting.batch, {}
    runs: list[tuple[str, str, int, dict[str, Any]]] = [("promptkd", "promptkd", 8, {})]
    if setting.device == "cuda":
        runs.append(("promptkd as CUDA graphs", "promptkd", 8, {"cuda_graphs": True}))
    runs += [("promptkd", "promptkd", large, {}), ("kd", "kd", large, {})]
    for name, recipe, batch, options in runs:
        seconds, log = trained(setting, "student", recipe, batch, **options)
        losses[name, batch] = [line["loss"] for line in log]
        waiting = [line["wait_share"] for line in log[1:] or log]
        found[f"{name}, {batch}"] = {
            "images/s": steady(log),
            "waiting": statistics.median(waiting),
            "whole command, seconds": seconds,
        }
    for recipe in ("promptkd", "kd"):
        entry = found[f"{recipe}, {large}"]
        entry["on one batch"] = floor = on_one_batch(setting, recipe, large)
        entry |= {"ratio": entry["images/s"] / floor, "to reach": 0.97}
    if (graphs := found.get("promptkd as CUDA graphs, 8")) is not None:
        both = zip(losses["promptkd", 8], losses["promptkd as CUDA graphs", 8], strict=True)
        graphs |= {
            "ratio": graphs["images/s"] / found["promptkd, 8"]["images/s"],
            "to reach": 3,
            "losses apart, relative": max(abs(a - b) / abs(a) for a, b in both),
        }
    entry = found[f"promptkd, {large}"]
    teacher, student, ours = (
        1 / rate for rate in (forward_alone(setting, setting.large), entry["on one batch"], entry["images/s"])
    )
    found["teacher in the loop"] = {
        "(T + S) / S": (teacher + student) / student,
        "distill by teacher and student steps in memory": (teacher + student) / ours,
        "ratio": student / ours,
        "to reach": 0.95,
    }
    return found


def row_students(setting: Setting) -> dict[str, Any]:
    """Row 8: three seeds on one pass, by one of them alone: whole commands."""
    one, _ = trained(setting, "one", "promptkd", 64, order_seed=0)
    three, _ = trained(setting, "three", "promptkd", 64, seeds="0,1,2")
    return {"one": one, "three": three, "ratio": three / one, "to reach": 1.6}


def row_evaluate(setting: Setting) -> dict[str, Any]:
    """Row 15: `evaluate` on labelled photographs, by the smaller of forward alone and making views alone.

    The ratio is that of its loop, whose processes start while the student is loaded; beside it the rate of the whole command in
    this process, which finds the images and loads the student too.
    """
    from teachonce.stages import evaluate
    from teachonce.stages.settings.evaluate import EvaluateSettings

    trained(setting, "evaluated", "kd", 64)
    photographs = setting.folder / "labelled"
    for number, path in enumerate(sorted(p for p in (setting.folder / "images").rglob("*") if p.is_file())):
        link = photographs / f"class {number % 100}" / f"{number}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    floor = min(forward_alone(setting, setting.student), decode_alone(setting, 1))
    measure, seconds = evaluate._measure, []

    def timed(*given: Any) -> None:
        start = time.perf_counter()
        measure(*given)
        seconds.append(time.perf_counter() - start)

    def work() -> None:
        settings = EvaluateSettings(batch_size=setting.batch)
        evaluate.evaluate(
            str(setting.folder / "evaluated"), str(photographs), compute=compute(setting), settings=settings
        )

    evaluate._measure = timed
    try:
        whole = rate(setting, setting.images, work)
    finally:
        evaluate._measure = measure
    ours = setting.images / statistics.median(seconds[1:])
    return {"images/s": ours, "whole command": whole, "floor": floor, "ratio": ours / floor, "to reach": 0.85}


def row_same_bytes(setting: Setting) -> dict[str, Any]:
    """`cache` twice, with other numbers of processes: every chunk must be the same."""
    trees = []
    for workers in (setting.workers, 2):
        before, setting.workers = setting.workers, workers
        cache_rate(dataclasses.replace(setting, repeats=1), setting.small[0], 1)
        setting.workers = before
        store = setting.folder / "cached"
        trees.append(
            {
                p.relative_to(store).as_posix(): p.read_bytes()
                for p in store.rglob("*")
                if p.is_file() and "timings" not in p.parts
            }
        )
    return {"files": len(trees[0]), "same": trees[0] == trees[1]}


ROWS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "cache": row_cache,
    "embed": row_embed,
    "small": row_small,
    "steps": row_steps,
    "plain-loop": row_plain_loop,
    "same-bytes": row_same_bytes,
    "evaluate": row_evaluate,
    "students": row_students,
}


@click.command()
@click.option("--minutes", type=float, default=8, show_default=True, help="No row starts later than this.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the JSON, written anew after each row.")
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of images, taken again and again; drawn without it.",
)
@click.option("--images", type=int, default=8000, show_default=True, help="Images to measure on.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="Few images and a small model: does it run?")
@click.option("--only", multiple=True, type=click.Choice(list(ROWS)), help="Only this row (repeat for more).")
def main(
    minutes: float, out: Path | None, corpus: Path | None, images: int, device: str, quick: bool, only: tuple[str, ...]
) -> None:
    """Measure what needs a GPU."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="teachonce-gpu-", dir="/dev/shm" if device == "cuda" else None) as scratch:
        folder = Path(scratch)
        images = 48 if quick else images
        fill(folder / "images", corpus, images)
        make_shards(folder / "images", folder / "shards", shard_size=24 if quick else 1000)
        setting = Setting(
            device=device,
            folder=folder,
            shards=folder / "shards",
            images=images,
            batch=16 if quick else 256,
            repeats=1 if quick else 2,
            large="ViT-B-32" if quick else "ViT-L-14",
            small=("ViT-B-32",) if quick else ("ViT-B-32", "ViT-B-16"),
            student="ViT-B-32" if quick else "ViT-B-16",
            workers=len(os.sched_getaffinity(0)),
        )
        report = {"facts": facts(setting, corpus), "rows": {}}
        for name in only or ROWS:
            if time.monotonic() > end:
                report["rows"][name] = "no time left"
                continue
            start = time.monotonic()
            try:
                report["rows"][name] = ROWS[name](setting)
            except Exception:
                report["rows"][name] = {"error": traceback.format_exc()}
            report["rows"][name]["minutes"] = round((time.monotonic() - start) / 60, 2)
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
            print(f"{name}: {json.dumps(report['rows'][name], indent=1)}", flush=True)
            if out is not None:
                out.write_text(json.dumps(report, indent=1))


def fill(folder: Path, corpus: Path | None, count: int) -> None:
    """`count` images under names of their own: the corpus again and again, or drawn ones."""
    if corpus is None:
        draw(folder, count, width=340, height=256, per_folder=100)
        return
    found = list(files(corpus))
    for number in range(count):
        path, data = found[number % len(found)]
        target = folder / Path(path).parent / f"{number // len(found)}-{Path(path).name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def facts(setting: Setting, corpus: Path | None) -> dict[str, Any]:
    import importlib.metadata

    packages = ("torch", "open_clip_torch", "timm", "pillow", "numpy", "zarr", "teachonce")
    gpu = torch.cuda.get_device_name() if setting.device == "cuda" else "none"
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "GPU": gpu,
        "cores": setting.workers,
        "versions": versions,
        "images": f"{setting.images} of {corpus or 'drawn, 340x256'}",
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
