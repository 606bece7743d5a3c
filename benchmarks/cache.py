"""`cache` against decoding and rendering, then the teacher's forward pass, each measured alone and added.

Twice: with the forward pass as open_clip's documentation writes it, and with that of teachonce's own teacher,
whose attention is faster (`stages/models/attention.py`), so that nothing else can hide behind it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from corpora import take
from harness import Bench, Cost, Line, cost, pairs, rate, speeds
from numpy.typing import NDArray
from stores import Sample, decode_and_render, fresh, make_shards, samples_of

MODEL, SIZE, BATCH = "ViT-B-32", 224, 64

#: Images for each number of views: as many forward passes for both.
IMAGES = {1: 256, 4: 64}


def run(bench: Bench) -> Iterator[Line]:
    """1 and 4 views of ViT-B/32 in bf16 with random weights; embeddings only."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.models.compute import teacher_compute
    from teachonce.stages.models.settings import ComputeSettings
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.views.spec import ViewSpec

    plain, own_teacher = Forward(bench.threads), OwnForward(bench.threads)
    for name, corpus in bench.corpora:
        for views, images in IMAGES.items():
            own = bench.scratch / f"{name.replace('/', '-')}-{views}"
            make_shards(take(corpus, images, own / "images"), own / "shards", shard_size=images // 2)
            numbers = count()

            def plan(own: Path = own, views: int = views, numbers: Iterator[int] = numbers) -> Any:
                return plan_cache(
                    str(own / "shards"),
                    TeacherConfig(model=MODEL, pretrained="random"),
                    out=str(fresh(own / f"store{next(numbers)}")),
                    views=ViewSpec(kind="random_resized_crop", count=views),
                    settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=BATCH),
                    compute=teacher_compute(ComputeSettings(device="cpu", precision="bf16", threads=bench.threads)),
                )

            def ours(stages: Any = plan) -> Cost:
                stage = stages()
                return cost(lambda: run_stage(stage, stage.store, SerialExecutor(), progress=False))

            stage = plan()
            run_stage(stage, stage.store, SerialExecutor(), progress=False)
            samples = samples_of(own / "shards", stage.store.path)
            for whose, forward in (("open_clip's", plain), ("its own", own_teacher)):
                decoding: list[Cost] = []

                def floor(
                    samples: list[Sample] = samples,
                    views: int = views,
                    decoding: list[Cost] = decoding,
                    forward: Forward = forward,
                ) -> Cost:
                    batches: list[NDArray[np.uint8]] = []
                    decoding.append(cost(lambda: batches.extend(rendered(samples, views, bench.threads))))
                    return decoding[-1] + cost(lambda: forward(batches))

                found = pairs(ours, floor, bench.repeats)
                wall, cpu = speeds(found)
                share = sum(d.cpu for d in decoding[1:]) / sum(f.cpu for _, f in found)
                ours_rate, parts_rate = (rate(images * views, [c[i] for c in found]) for i in (0, 1))
                note = f"views: {ours_rate}, parts {parts_rate}; decoding, rendering: {share:.0%} of their CPU"
                what = f"cache, {views} view{'s' if views > 1 else ''}, to parts with {whose} forward"
                yield Line(what=what, corpus=name, ratios=wall, cpu_ratios=cpu, at_least=0.9, note=note)


def rendered(samples: list[Sample], views: int, threads: int) -> Iterator[NDArray[np.uint8]]:
    """All views in batches of whole samples, decoded by so many threads."""
    per_batch = BATCH // views
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), per_batch):
            batch = samples[start : start + per_batch]
            room_NVCHW = np.empty((len(batch), views, 3, SIZE, SIZE), np.uint8)
            list(pool.map(lambda s, r: decode_and_render(s, list(range(views)), r), batch, room_NVCHW))
            yield room_NVCHW.reshape(-1, 3, SIZE, SIZE)


class Forward:
    """The model on its own, as open_clip's documentation runs it."""

    def __init__(self, threads: int) -> None:
        import open_clip
        import torch

        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = open_clip.create_model(MODEL, pretrained=None, load_weights=False).eval()
        self._threads = threads
        self._mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        self._std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)

    def __call__(self, batches: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        import torch

        torch.set_num_threads(self._threads)
        outputs = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for images_NCHW in batches:
                pixels = (torch.from_numpy(images_NCHW).float() / 255 - self._mean) / self._std
                embedding_ND = self._model.encode_image(pixels)
                outputs.append(torch.nn.functional.normalize(embedding_ND.float(), dim=-1).numpy())
        return outputs


class OwnForward(Forward):
    """The same pass by teachonce's teacher."""

    def __init__(self, threads: int) -> None:
        from teachonce.stages.models.compute import teacher_compute
        from teachonce.stages.models.settings import ComputeSettings
        from teachonce.stages.teachers import TeacherConfig, load_teacher
        from teachonce.stages.teachers.placing import place

        self._compute = teacher_compute(ComputeSettings(device="cpu", precision="bf16", threads=threads))
        self._teacher = place(load_teacher(TeacherConfig(model=MODEL, pretrained="random")), self._compute)

    def __call__(self, batches: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        import torch

        with self._compute.inference():
            return [self._teacher.embed(torch.from_numpy(images_NCHW)).numpy() for images_NCHW in batches]
