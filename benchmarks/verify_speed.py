"""`verify --full` against a plain loop that reads the same files once and hashes them with sha256: seconds and CPU, in one run.

    python benchmarks/verify_speed.py SHARDS STORE [--repeats N]
    python benchmarks/verify_speed.py --image-kb 25 110 [--images 2000] [--repeats N]

With --image-kb it makes corpora of photographs of that size (noise in a comment segment fills each file up) and stores of them:
1 view, embeddings of 512 numbers in fp16, by a teacher of one layer. What is read is the same on both sides: tars, indexes and chunks of
rows. `per_byte` leaves out what verify takes for a store as a whole, whatever its size (the manifest, this machine's rendering).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.looking import look
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.verify import plan_verify
from teachonce.stages.views.spec import ViewSpec

#: Bytes of a comment segment of a JPEG file.
_SEGMENT = 60_000


def photograph(rng: np.random.Generator, size: int) -> bytes:
    """A JPEG file of about so many bytes."""
    opened = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((160, 120)).save(opened, "jpeg")
    data = opened.getvalue()
    segments = b""
    while (missing := size - len(data) - len(segments)) > 0:
        content = rng.bytes(min(missing, _SEGMENT))
        segments += b"\xff\xfe" + (len(content) + 2).to_bytes(2, "big") + content
    return data[:2] + segments + data[2:]


def teacher(folder: Path) -> TeacherConfig:
    """A CLIP of one layer."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    torch.manual_seed(0)
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.2] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return TeacherConfig(model=f"local-dir:{folder}")


def make(top: Path, kilobytes: int, images: int) -> tuple[Path, Path]:
    """Shards and a store of images of such a size."""
    rng, pictures = np.random.default_rng(kilobytes), top / "pictures"
    pictures.mkdir()
    for number in range(images):
        (pictures / f"{number:06d}.jpg").write_bytes(photograph(rng, kilobytes * 1000))
    shards, store = top / "shards", top / "s.zarr"
    stage = plan_shard([str(pictures)], out=str(shards), settings=ShardSettings(shard_size=1000))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    cached = plan_cache(
        str(shards),
        teacher(top / "teacher"),
        out=str(store),
        views=ViewSpec(kind="random_resized_crop", count=1, seed=0),
        settings=CacheSettings(targets="embedding", encoding="fp16", batch_size=64),
        compute=Compute(device="cpu", precision="fp32", threads=1),
    )
    run_stage(cached, cached.store, SerialExecutor(), progress=False)
    return shards, store


def files(shards: Path, store: Path) -> list[Path]:
    """What `verify --full` reads whole and hashes: tars, indexes, and chunks of rows."""
    chunks = [
        f for f in store.glob("*/c/**/*") if f.is_file() and not f.relative_to(store).parts[0].startswith("class_")
    ]
    return sorted([*shards.glob("*.tar"), *shards.glob("*.index.npy"), *chunks])


def plain(shards: Path, store: Path) -> int:
    """Read every one of them, and hash it."""
    total = 0
    for file in files(shards, store):
        hasher = hashlib.sha256()
        with file.open("rb") as opened:
            while piece := opened.read(4 << 20):
                hasher.update(piece)
                total += len(piece)
        hasher.hexdigest()
    return total


def full(shards: Path, store: Path) -> int:
    stage, findings = plan_verify(str(shards), str(store))
    assert stage is not None
    assert not findings
    total = 0
    for outcome in look(stage, SerialExecutor(), stage.whole.store):
        assert not outcome.seen.findings, outcome.seen.findings
        total += outcome.seen.num_bytes
    return total


def whole_alone(shards: Path, store: Path) -> int:
    """What is done once a store."""
    from teachonce.pipeline.types import Timer

    stage, _ = plan_verify(str(shards), str(store))
    assert stage is not None
    looking = stage.open()
    looking(next(iter(stage.plan())), Timer())
    looking.close()
    return 0


def timed(work: Callable[[Path, Path], int], shards: Path, store: Path) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    total = work(shards, store)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, total


def measured(shards: Path, store: Path, repeats: int) -> dict[str, Any]:
    full(shards, store)  # imports, and the page cache
    runs = [[timed(work, shards, store) for work in (plain, full, whole_alone)] for _ in range(repeats)]
    for loop, verify, _ in runs:
        assert loop[2] == verify[2], "not the same bytes"
    wall = [loop[0] / verify[0] for loop, verify, _ in runs]
    steady = [loop[0] / max(verify[0] - once[0], 1e-9) for loop, verify, once in runs]
    return {
        "bytes": runs[0][0][2],
        "plain_MB_per_s": round(statistics.median(loop[2] / loop[0] / 1e6 for loop, _, _ in runs)),
        "speed_ratio_wall": [round(value, 3) for value in (statistics.median(wall), min(wall), max(wall))],
        "speed_ratio_wall_per_byte": round(statistics.median(steady), 3),
        "cpu_ratio": round(statistics.median(loop[1] / verify[1] for loop, verify, _ in runs), 3),
        "cpu_ratio_per_byte": round(statistics.median(a[1] / max(b[1] - c[1], 1e-9) for a, b, c in runs), 3),
        "once_seconds": round(statistics.median(once[0] for _, _, once in runs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, metavar="SHARDS STORE")
    parser.add_argument("--image-kb", type=int, nargs="+", default=[])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    facts: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    if given.places:
        shards, store = given.places
        facts[str(store)] = measured(shards, store, given.repeats)
    for kilobytes in given.image_kb:
        with tempfile.TemporaryDirectory() as top:
            facts[f"{kilobytes} KB"] = measured(*make(Path(top), kilobytes, given.images), given.repeats)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
