"""No alarm on clean stores of all kinds: makes small ones by the real stages, and verifies each with every byte and with its teacher.

    python benchmarks/verify_clean.py [--count 200] [--folder FOLDER]

Teachers (open_clip and timm, several seeds of random weights), targets, views, colours, encodings, precisions, batch sizes and corpora (sizes, formats,
shard sizes, orders, unusable files) are drawn anew for each; some stores are recoded, some grow by views. Prints one line of JSON: how many were made, and what was found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.looking import look
from teachonce.pipeline.runner import run_stage
from teachonce.stages.cache import plan_cache
from teachonce.stages.grow import plan_growth
from teachonce.stages.models.compute import Compute
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.settings.verify import VerifySettings, VerifyTeacherSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.verify import plan_verify
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import MismatchError

TIMM = ("timm:test_resnet", "timm:test_vit", "timm:test_convnext")


def clip_model(folder: Path, seed: int) -> str:
    """A tiny CLIP with seeded weights, as a folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return f"local-dir:{folder}"


def pictures(folder: Path, rng: np.random.Generator) -> None:
    """Photos of noise of several sizes and formats; now and then one of one colour, a copy, or a broken file."""
    for index in range(int(rng.integers(3, 40))):
        width, height = (int(n) for n in rng.integers(24, 90, 2))
        pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        if index % 9 == 7:
            pixels[:] = pixels[0, 0]
        path = folder / f"class {index % 3}" / f"{index:03d}.{rng.choice(['jpg', 'png', 'webp'])}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)
        if index % 11 == 5:
            path.with_name(f"copy {path.name}").write_bytes(path.read_bytes())
        if index % 13 == 8:
            path.with_name(f"broken {path.name}").write_bytes(path.read_bytes()[:40])


def run(stage: Any) -> None:
    run_stage(stage, stage.out if hasattr(stage, "out") else stage.store, SerialExecutor(), progress=False)


def one(folder: Path, clips: list[str], rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """A store of some kind: what it is, and the codes of all findings."""
    pictures(folder / "pictures", rng)
    shards, store = str(folder / "shards"), str(folder / "store.zarr")
    order = str(rng.choice(["hash", "source"]))
    resize = None if rng.random() < 0.7 else 30
    run(
        plan_shard(
            [str(folder / "pictures")],
            out=shards,
            settings=ShardSettings(shard_size=int(rng.integers(3, 20)), order=order, resize=resize),  # type: ignore[arg-type]
        )
    )
    model = str(rng.choice([*clips, *TIMM]))
    is_timm = model.startswith("timm:")
    teacher = TeacherConfig(model=model, pretrained="random" if is_timm else None, size=32 if is_timm else None)
    targets = str(rng.choice(["embedding"] if is_timm else ["auto", "both", "embedding", "logits", "embedding,tokens"]))
    compute = Compute(device="cpu", precision=str(rng.choice(["fp32", "fp32", "bf16"])), threads=1)
    if not is_timm:
        run(
            plan_vectors(
                teacher,
                out=store,
                settings=VectorsSettings(classes=shards),
                compute=Compute(device="cpu", precision="fp32", threads=1),
            )
        )
    views = None
    if rng.random() < 0.8:
        jitter = (0.4, 0.4, 0.2, 0.1) if rng.random() < 0.3 else (0.0, 0.0, 0.0, 0.0)
        views = ViewSpec(
            kind="random_resized_crop", count=int(rng.integers(1, 6)), seed=int(rng.integers(100)), jitter=jitter
        )
    encoding, batch = str(rng.choice(["fp32", "fp16", "int8"])), int(rng.integers(3, 70))
    if targets == "both" and rng.random() < 0.6:
        encoding = str(rng.choice(["logits=adaptive", "logits=pca:0.5,embedding=int8", "logits=sampled:20"]))
    settings = CacheSettings(targets=targets, encoding=encoding, batch_size=batch)
    run(plan_cache(shards, teacher, out=store, views=views, settings=settings, compute=compute))
    change = str(rng.choice(["none", "none", "recoded", "grown"]))
    if change == "recoded":
        made, store = store, str(folder / "recoded.zarr")
        run(plan_recode(made, out=store, settings=RecodeSettings(encoding=str(rng.choice(["fp32", "fp16"])))))
    elif change == "grown" and views is None:
        change = "none"
    elif change == "grown":
        wider = replace(views, count=2 * views.count)
        try:
            for step in plan_growth(shards, teacher, out=store, views=wider, settings=settings, compute=compute):
                run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        except MismatchError:  # views that do not fill their chunks
            change = "not grown"
    stage, findings = plan_verify(
        shards,
        store,
        settings=VerifySettings(full=True),
        teacher=VerifyTeacherSettings(rows=12, model=model, pretrained=teacher.pretrained),
    )
    codes = [found.code for found in findings]
    assert stage is not None, codes
    for outcome in look(stage, SerialExecutor(), stage.whole.store):
        codes += [f"{found.code}: {found.error}" for found in outcome.seen.findings]
    kind = {
        "teacher": model.rpartition("/")[2],
        "targets": targets,
        "encoding": encoding,
        "precision": compute.precision,
        "views": "center" if views is None else views.count,
        "order": order,
        "resize": resize,
        "then": change,
    }
    return kind, codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kinds: Counter[str] = Counter()
    alarms: list[Any] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as top:
        clips = [clip_model(Path(top) / f"clip-{seed}", seed) for seed in range(3)]
        for number in range(given.count):
            folder = Path(top) / str(number)
            kind, codes = one(folder, clips, np.random.default_rng([given.seed, number]))
            kinds.update(f"{name} {value}" for name, value in kind.items())
            if codes:
                alarms.append({**kind, "number": number, "found": codes})
    seconds = round(time.perf_counter() - start)
    print(json.dumps({"stores": given.count, "alarms": alarms, "kinds": dict(kinds), "seconds": seconds}, indent=1))


if __name__ == "__main__":
    main()
