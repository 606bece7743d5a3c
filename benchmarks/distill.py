"""`distill`'s steps against the same steps on one batch in memory: what the loader costs the trainer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from corpora import take
from harness import Bench, Cost, Line, pairs, speeds
from stores import fresh, make_shards, make_store

SIZE, CLASSES = 224, 1000

#: timm models by counted steps of a run and images of a batch; each far slower than the loader.
STUDENTS = {"vit_tiny_patch16_224": (8, 8), "vit_base_patch32_224": (5, 4)}

#: Steps that are not counted: the first ones wait for the process that prepares batches to start.
WARM_UP = 3

MOST_IMAGES = max(batch * (WARM_UP + steps + 1) for steps, batch in STUDENTS.values())


def run(bench: Bench) -> Iterator[Line]:
    """Recipe kd in fp32 with AdamW, one process that prepares batches."""
    import torch

    torch.set_num_threads(bench.threads)
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        make_shards(take(corpus, MOST_IMAGES, own / "images"), own / "shards", shard_size=256)
        make_store(own / "shards", own / "store", views=1, threads=bench.threads)
        for student, (steps, batch) in STUDENTS.items():
            plain = PlainSteps(student, batch, steps)
            waiting: list[float] = []
            found = pairs(
                lambda own=own, m=student, n=steps, b=batch, t=bench.threads, w=waiting: _distill(own, m, n, b, t, w),
                plain,
                bench.repeats,
            )
            wall, cpu = speeds(found)
            shares = [seconds / ours.wall for seconds, (ours, _) in zip(waiting[1:], found, strict=True)]
            rates = [f"{batch * steps / np.median([c[i].wall for c in found]):.1f}" for i in (0, 1)]
            note = f"{rates[0]} images/s, one batch in memory {rates[1]}"
            yield Line(
                what=f"distill, steps of {student}",
                corpus=name,
                ratios=wall,
                cpu_ratios=cpu,
                at_least=0.95,
                note=note,
            )
            yield Line(
                what=f"distill, share of time waiting for pairs, {student}",
                corpus=name,
                ratios=shares,
                at_most=0.03,
                note="one process that prepares batches",
            )


def _distill(own: Path, student: str, steps: int, batch: int, threads: int, waiting: list[float]) -> Cost:
    """The stage as the command runs it; counted are the steps behind the warm-up. Seconds of waiting go to `waiting`."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.models.student_config import StudentConfig
    from teachonce.stages.pairs.stream import TargetStream

    asked: list[tuple[float, float]] = []
    got: list[float] = []
    original = TargetStream.batches

    def epoch(self: TargetStream, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        pairs_of_epoch = original(self, *arguments, **keywords)
        while True:
            # The trainer requests a batch: the step before it is done.
            asked.append((time.perf_counter(), time.process_time()))
            if (item := next(pairs_of_epoch, None)) is None:
                return
            got.append(time.perf_counter())
            yield item

    stage = plan_distill(
        str(own / "shards"),
        str(own / "store"),
        StudentConfig(model=f"timm:{student}"),
        out=str(fresh(own / "bundle")),
        recipe="kd",
        options={"epochs": 1, "batch_size": batch, "warmup_epochs": 0},
        compute=Compute(device="cpu", precision="fp32", threads=threads, decode_workers=1),
        show_progress=False,
    )
    with mock.patch.object(TargetStream, "batches", epoch):
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    first, last = asked[WARM_UP], asked[WARM_UP + steps]
    counted = range(WARM_UP, WARM_UP + steps)
    waiting.append(sum(got[step] - asked[step][0] for step in counted))
    return Cost(last[0] - first[0], last[1] - first[1])


class PlainSteps:
    """Forward, KL divergence to given logits, backward, AdamW: written out, on one batch."""

    def __init__(self, student: str, batch: int, steps: int) -> None:
        import timm
        import torch

        torch.manual_seed(0)
        self._steps = steps
        backbone = timm.create_model(student, pretrained=False, num_classes=0)
        projector = torch.nn.Linear(backbone.num_features, 64)
        self._student = torch.nn.Sequential(backbone, projector).train()
        self._head = torch.nn.Linear(64, CLASSES).requires_grad_(False)
        parameters = list(self._student.parameters())
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=1e-3,
        )
        self._images_NCHW = torch.randint(0, 256, (batch, 3, SIZE, SIZE), dtype=torch.uint8)
        self._logits_NC = torch.randn(batch, CLASSES)
        self._mean, self._std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.5)

    def __call__(self) -> Cost:
        for _ in range(2):
            self._step()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self._steps):
            self._step()
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    def _step(self) -> None:
        from torch.nn import functional as F

        pixels = (self._images_NCHW.float() / 255 - self._mean) / self._std
        logits_NC = self._head(self._student(pixels))
        loss = F.kl_div(
            F.log_softmax(logits_NC, dim=1),
            F.log_softmax(self._logits_NC, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
