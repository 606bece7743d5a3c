"""Owns shards and target stores to measure with, made by teachonce; and what plain loops need of them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: A tiny timm model with 1,000 classes: its targets are as wide as real ones, and cost next to nothing.
SMALL_TEACHER = "timm:test_vit"


def make_shards(corpus: Path, out: Path, shard_size: int) -> None:
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.settings.shard import ShardSettings
    from teachonce.stages.shard import plan_shard

    stage = plan_shard([str(corpus)], out=str(out), settings=ShardSettings(shard_size=shard_size))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)


def make_store(shards: Path, store: Path, *, views: int, threads: int) -> None:
    """1,000 logits for each of `views` random views of every sample."""
    name_classes(store, threads=threads)
    cache_views(shards, store, views=views, threads=threads)


def name_classes(store: Path, *, threads: int) -> None:
    """Class vectors of the tiny teacher in a new store."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.vectors import plan_vectors

    config = TeacherConfig(model=SMALL_TEACHER, pretrained="random")
    named = plan_vectors(config, out=str(store), compute=Compute(device="cpu", precision="fp32", threads=threads))
    run_stage(named, named.store, SerialExecutor(), progress=False)


def cache_views(
    shards: Path, store: Path, *, views: int, threads: int, chunk_views: int | None = None, grow: bool = False
) -> None:
    """Logits of so many views, in a store that has class vectors; with `grow`, of those that a finished store does not have."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.cache import plan_cache
    from teachonce.stages.grow import plan_growth
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.settings.cache import CacheSettings
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.views.spec import ViewSpec

    config = TeacherConfig(model=SMALL_TEACHER, pretrained="random")
    asked: dict[str, Any] = {
        "out": str(store),
        "views": ViewSpec(kind="random_resized_crop", count=views),
        "settings": CacheSettings(targets="logits", encoding="fp16", batch_size=64, chunk_views=chunk_views),
        "compute": Compute(device="cpu", precision="fp32", threads=threads),
    }
    for step in plan_growth(str(shards), config, **asked) if grow else ():
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
    if not grow:
        stage = plan_cache(str(shards), config, **asked)
        run_stage(stage, stage.store, SerialExecutor(), progress=False)


@dataclass(frozen=True)
class Sample:
    """An image's bytes in memory, and the boxes of its views (view, 5): top, left, height, width, flip."""

    data: bytes
    boxes: NDArray[np.int32]


def samples_of(shards: Path, store: Path) -> list[Sample]:
    """Every sample of a store, read with plain tarfile and zarr."""
    import tarfile

    import zarr

    boxes: Any = zarr.open_group(str(store), mode="r")["view_params"]
    found = []
    for tar in sorted(shards.glob("*.tar")):
        with tarfile.open(tar) as members:
            found += [members.extractfile(m).read() for m in members if not m.name.endswith(".json")]  # type: ignore[union-attr]
    assert len(found) == boxes.shape[0], "a corpus with unusable images is nothing to measure on"
    return [Sample(data, box) for data, box in zip(found, np.asarray(boxes[:]), strict=True)]


def decode_and_render(sample: Sample, views: list[int], out_VCHW: NDArray[np.uint8]) -> None:
    """The obvious code with Pillow: decode, crop, resize (bicubic), mirror, channels first."""
    import io

    size = out_VCHW.shape[-1]
    with Image.open(io.BytesIO(sample.data)) as file:
        image = file.convert("RGB")
    for place, view in enumerate(views):
        top, left, height, width, flip = (int(n) for n in sample.boxes[view])
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((size, size), Image.Resampling.BICUBIC)
        if flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out_VCHW[place] = np.asarray(crop).transpose(2, 0, 1)


def fresh(folder: Path) -> Path:
    """The folder, without what was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
