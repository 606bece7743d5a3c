"""Training a decoder from a store of maps, against images decoded and a teacher in the loop. Ratios of CPU time in one run.

    python benchmarks/reverse_distillation.py [--batch 16] [--steps 2] [--threads 2]

All train the same decoder, of WideResNet50-2's three levels at 256 pixels, with the recipe's loss and optimiser, on pictures of woven fabric of
1024 pixels, as large as MVTec AD's. The teacher is in the loop twice. As in the authors' `main.py` (github.com/hq-deng/RD4AD): all four of
its stages run, of which three are used, and the loss goes backward through it too, because nothing there holds its gradients back
(no optimiser uses them). And with care: three stages, no gradients. Both compute in fp32. Weights are random: they decide no time.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute, keep_freed_memory
from teachonce.stages.models.teacher_config import TeacherConfig
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recipes.recipe import LossInputs
from teachonce.stages.recipes.registry import recipe_named
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.students.decoder import DECODERS, Decoder
from teachonce.stages.students.head import Head, Level
from teachonce.stages.students.map_student import new_map_student
from woven_textures import write

LEVELS = ("features.layer1", "features.layer2", "features.layer3")


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """(CPU, clock) seconds."""
    start, clock = cpu(), time.perf_counter()
    work()
    return cpu() - start, time.perf_counter() - clock


class Ours:
    """Steps from the store."""

    def __init__(self, shards: Path, store: Path, batch: int, precision: str, seed: int) -> None:
        self._stream = TargetStream(shards, store, image_size=None, batch_size=batch, targets=LEVELS)
        self._batches: Iterator[dict[str, torch.Tensor]] = self._forever()
        levels = tuple(
            Level(target=t.name, layer=t.name, width=t.shape[0], shape=list(t.shape), projector="none")
            for t in self._stream.store.spec.targets
        )
        torch.manual_seed(seed)
        head = Head(width=1, embed_dim=1, projector="none", normalized=False, levels=levels)
        self._student = new_map_student("wide_resnet50_2", head).train()
        self._optimizer = torch.optim.Adam(self._student.parameters(), lr=0.005, betas=(0.5, 0.999))
        self._recipe, self._bf16 = recipe_named("reverse-distillation"), precision == "bf16"

    def _forever(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch = 0
        while True:
            for batch in self._stream.batches(epoch):
                yield batch.targets
            epoch += 1

    def step(self) -> None:
        maps = next(self._batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            student = self._student.outputs(maps)
        loss = self._recipe.loss(LossInputs(student=student, teacher=maps), self._recipe.defaults)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


class InTheLoop:
    """Steps with the teacher in the loop: as the authors' `main.py` has them, or with care."""

    def __init__(self, images: list[Path], batch: int, seed: int, *, careful: bool) -> None:
        self._images, self._batch, self._at, self._careful = images, batch, 0, careful
        stages = (1, 2, 3) if careful else (1, 2, 3, 4)
        self._encoder = timm.create_model("wide_resnet50_2", features_only=True, out_indices=stages).eval()
        torch.manual_seed(seed)
        self._decoder = Decoder(DECODERS["wide_resnet50_2"], ((256, 64, 64), (512, 32, 32), (1024, 16, 16))).train()
        self._optimizer = torch.optim.Adam(self._decoder.parameters(), lr=0.005, betas=(0.5, 0.999))
        self._mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        self._std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)

    def step(self) -> None:
        pixels = []
        for _ in range(self._batch):
            with Image.open(self._images[self._at % len(self._images)]) as image:
                small = image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
            self._at += 1
            plain = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
            pixels.append((plain - self._mean) / self._std)
        with torch.set_grad_enabled(not self._careful):
            maps = self._encoder(torch.stack(pixels))[:3]
        loss = torch.zeros(())
        for a, b in zip(maps, self._decoder(maps), strict=True):
            loss = loss + (1 - F.cosine_similarity(a.flatten(1), b.flatten(1))).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    compute = Compute(device="cpu", precision="fp32", threads=given.threads)
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        write(room, 1024, given.batch, 1, 0)
        corpus = f"mvtec:fabric/train={room}"
        shard = plan_shard([corpus], out=str(room / "shards"), settings=ShardSettings())
        run_stage(shard, shard.out, SerialExecutor(), progress=False)
        teacher = TeacherConfig(
            model="timm:wide_resnet50_2", pretrained="random", size=256, crop_mode="squash", crop_pct=1.0
        )
        cache = plan_cache(
            str(room / "shards"),
            teacher,
            out=str(room / "maps.zarr"),
            views=None,
            settings=CacheSettings(targets=",".join(LEVELS), encoding="fp16", batch_size=8),
            compute=compute,
        )
        run_stage(cache, cache.store, SerialExecutor(), progress=False)
        images = sorted((room / "fabric/train/good").iterdir())
        ways = {
            "as published, fp32": InTheLoop(images, given.batch, 0, careful=False),
            "with care, fp32": InTheLoop(images, given.batch, 0, careful=True),
            "from the store, fp32": Ours(room / "shards", room / "maps.zarr", given.batch, "fp32", 0),
            "from the store, bf16": Ours(room / "shards", room / "maps.zarr", given.batch, "bf16", 0),
        }
        spent = dict.fromkeys(ways, 0.0)
        for turn in range(given.steps + 1):
            for name, way in ways.items():
                used, _ = measured(way.step)
                spent[name] += used if turn else 0.0  # the first step of each chooses kernels and fills caches
        published, careful = list(spent.values())[:2]
        print(f"{'CPU of a step of ' + str(given.batch):24} {'seconds':>8}   as published   with care")
        for name, seconds in spent.items():
            each = seconds / given.steps
            print(f"{name:24} {each:8.2f} {published / seconds:12.2f} × {careful / seconds:9.2f} ×")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, all together")


if __name__ == "__main__":
    main()
