"""`verify --full` against reading the same files once and hashing them with sha256: seconds and CPU, in one run.

    python benchmarks/verify_speed.py SHARDS STORE [--repeats N]
    python benchmarks/verify_speed.py --image-kb 25 110 [--megabytes 400] [--repeats N]

With --image-kb it makes corpora of photographs of that size (noise in a comment segment fills each file up) and stores of them:
1 view, embeddings of 512 numbers in fp16, by a teacher of one layer. What is read is the same on both sides: tars, indexes and chunks of
rows. The other side is `hashlib.file_digest`, file after file, as `sha256sum` does it; and several files at once, in as many threads as
there are cores, which is as much as verify gets. `per_byte` leaves out what verify takes for a store as a whole, whatever its size
(its descriptions and receipts, this machine's rendering).
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from teachonce.pipeline.cores import usable_cores
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.looking import look
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.models.compute import Compute
from teachonce.stages.samples.pixel_sample import PixelSample
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


def hashed(file: Path) -> int:
    """Read a file and hash it; its size."""
    with file.open("rb") as opened:
        hashlib.file_digest(opened, "sha256")
        return opened.tell()


def plain(shards: Path, store: Path) -> int:
    """Read every one of them, and hash it."""
    return sum(map(hashed, files(shards, store)))


def plain_at_once(shards: Path, store: Path) -> int:
    """The same, on all cores."""
    with ThreadPoolExecutor(usable_cores()) as threads:
        return sum(threads.map(hashed, files(shards, store)))


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
    """What is done once a store, but for the digest of the manifest's rows."""
    stage, _ = plan_verify(str(shards), str(store))
    assert stage is not None
    sample = PixelSample.of_store(stage.whole.description, stage.whole.store)
    if sample is not None:
        sample.check(stage.whole.shards, stage.whole.views, where=stage.whole.store, hint="")
    return 0


def timed(work: Callable[[Path, Path], int], shards: Path, store: Path) -> tuple[float, float, int]:
    """(seconds, CPU seconds, bytes)."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    total = work(shards, store)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, total


def measured(shards: Path, store: Path, repeats: int) -> dict[str, Any]:
    full(shards, store)  # imports, and the page cache
    works = (plain, plain_at_once, full, whole_alone)
    runs = [[timed(work, shards, store) for work in works] for _ in range(repeats)]
    for loop, at_once, verify, _ in runs:
        assert loop[2] == at_once[2] == verify[2], "not the same bytes"

    def ratios(which: int, what: int) -> dict[str, list[float]]:
        """Of a plain run to verify: of the clock's seconds (0), or of the processor's (1)."""
        whole = [run[which][what] / run[2][what] for run in runs]
        steady = [run[which][what] / max(run[2][what] - run[3][what], 1e-9) for run in runs]
        spread = ((statistics.median(values), min(values), max(values)) for values in (whole, steady))
        return {name: [round(v, 3) for v in s] for name, s in zip(("all", "per_byte"), spread, strict=True)}

    return {
        "bytes": runs[0][0][2],
        "plain_MB_per_s": round(statistics.median(loop[2] / loop[0] / 1e6 for loop, *_ in runs)),
        "speed_beside_plain": ratios(0, 0),
        "speed_beside_plain_on_all_cores": ratios(1, 0),
        "cpu_beside_plain": ratios(0, 1),
        "once_cpu_seconds": round(statistics.median(run[3][1] for run in runs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, metavar="SHARDS STORE")
    parser.add_argument("--image-kb", type=int, nargs="+", default=[])
    parser.add_argument("--megabytes", type=int, default=400, help="of images")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    facts: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}
    if given.places:
        shards, store = given.places
        facts[str(store)] = measured(shards, store, given.repeats)
    for kilobytes in given.image_kb:
        with tempfile.TemporaryDirectory() as top:
            count = given.megabytes * 1000 // kilobytes
            facts[f"{kilobytes} KB, {count} images"] = measured(*make(Path(top), kilobytes, count), given.repeats)
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
