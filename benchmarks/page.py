"""Measures the page of `inspect --html`: how planted faults rank on photographs, and how long a page of many rows takes.

    python benchmarks/page.py faults IMAGES WEIGHTS FOLDER [SEED] [VIEWS]    # class folders; weights of efficientnet-lite0; a folder
    python benchmarks/page.py draws STORE [SHARDS] [SEED]     # wrong labels and exchanged targets, in a store that is there
    python benchmarks/page.py speed FOLDER [ROWS]             # a made store of 100,000 rows

`faults`: 1 % of the images are moved into another class's folder, 1 % get a copy (nine tenths of the size, JPEG at quality 70), and
1 % of the rows are given each other's targets. Each ranking's average precision is printed; copies that the corpus had before count
neither way. Wrong labels and exchanged targets are also planted in memory, in five draws each. SEED is of all draws.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.storage import Location
from teachonce.stages.inspect import inspect_store, write_page
from teachonce.stages.measures.duplicates import by_pictures, near_vectors
from teachonce.stages.measures.patch_features import EDGE
from teachonce.stages.measures.rankings import FeatureSample
from teachonce.stages.measures.stale_rows import mismatches
from teachonce.stages.measures.stored import Stored
from teachonce.stages.measures.wrong_labels import contradicted_labels
from teachonce.stages.pages.survey import _CANDIDATES
from teachonce.stages.samples.thumbnails import Thumbnails, whole_pictures
from teachonce.stages.views.spec import CENTER, ViewSpec

SHARE, SEEDS = 0.01, 5
MEAN_STD = "--teacher-mean 0.498039,0.498039,0.498039 --teacher-std 0.501961,0.501961,0.501961"


def average_precision(found: list[bool], planted: int) -> float:
    """Of a ranking, given as whether each place is a planted one; those that it lacks count as never found."""
    hits = np.array(found, bool)
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].sum() / planted)


def plant(images: Path, out: Path, seed: int) -> None:
    """A copy of the images with wrong labels (`wrong_…`) and copies (`copy_…`) among them."""
    draw = random.Random(seed)
    files = sorted(images.glob("*/*.jpg"))
    count = round(SHARE * len(files))
    chosen = draw.sample(files, 2 * count)
    moved, copied = set(chosen[:count]), set(chosen[count:])
    classes = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
    for file in files:
        label, name = file.parent.name, file.name
        if file in moved:
            name = f"wrong_{label}_{name}"
            label = draw.choice([other for other in classes if other != label])
        (out / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, out / label / name)
        if file in copied:
            image = Image.open(file).convert("RGB")
            size = (round(image.width * 0.9), round(image.height * 0.9))
            image.resize(size, Image.Resampling.BICUBIC).save(out / label / f"copy_{file.name}", quality=70)


def faults(images: Path, weights: Path, folder: Path, seed: int = 0, views: int = 4) -> None:
    store, shards = folder / "targets.zarr", folder / "shards"
    if not (folder / "planted").exists():
        plant(images, folder / "planted", seed)
    teacher = f"--teacher timm:efficientnet_lite0 --teacher-pretrained {weights} {MEAN_STD}"
    for command in (
        f"shard {folder / 'planted'} --out {shards} --shard-size 500",
        f"vectors {teacher} --out {store}",
        f"cache {shards} {teacher} --views {views} --targets both --out {store}",
    ):
        subprocess.run([sys.executable, "-m", "teachonce", *command.split()], check=True)
    stored = Stored.open(str(store))
    rows, vectors, by_view, entries = _vectors(stored)
    names = [entry.path.rpartition("/")[2] for entry in entries]
    wrong = [name.startswith("wrong_") for name in names]
    scores, _ = contradicted_labels(vectors, [entry.label for entry in entries])
    order = np.argsort(-scores, kind="stable").tolist()
    print(
        f"wrong labels: {average_precision([wrong[i] for i in order], sum(wrong)):.3f} of {sum(wrong)} in {len(rows)} "
        f"({views} views, seed {seed})"
    )
    _duplicates(stored, rows, vectors, entries)
    _stale(stored, rows, by_view, seed)


def draws(store: Path, shards: str | None = None, seed: int = 0) -> None:
    """Labels and targets are exchanged in memory: the store stays as it is."""
    stored = Stored.open(str(store), shards)
    rows, vectors, by_view, entries = _vectors(stored)
    labels = [entry.label for entry in entries]
    names = sorted(set(labels))
    found = []
    for number in range(SEEDS):
        draw = random.Random(f"{seed} {number}")
        chosen = set(draw.sample(range(len(rows)), round(SHARE * len(rows))))
        given = [
            draw.choice([n for n in names if n != label]) if i in chosen else label for i, label in enumerate(labels)
        ]
        order = np.argsort(-contradicted_labels(vectors, given)[0], kind="stable").tolist()
        found.append(average_precision([i in chosen for i in order], len(chosen)))
    print(f"wrong labels: {_mean(found)} of {round(SHARE * len(rows))} in {len(rows)} (seed {seed})")
    _stale(stored, rows, by_view, seed)


def _vectors(stored):
    """(rows, their mean directions, those of each view, their entries)."""
    total, views = stored.rows.num_samples, stored.rows.num_views
    mean, by_view = FeatureSample(total, total, "embedding"), FeatureSample(total, total, "embedding", views)
    inspect_store(stored, watchers=[mean, by_view])
    rows, vectors = mean.take()
    entries = [entry for row in rows.tolist() if (entry := stored.entry(row)) is not None]
    return rows, vectors[:, 0], by_view.take()[1], entries


def _mean(found: list[float]) -> str:
    return f"{np.mean(found):.3f} ({', '.join(f'{f:.3f}' for f in found)})"


def _duplicates(stored, rows, vectors, entries) -> None:
    paths = dict(zip(rows.tolist(), (entry.path for entry in entries), strict=True))

    def original(row: int) -> str:
        return paths[row].replace("copy_", "")

    pairs = near_vectors(rows, vectors, _CANDIDATES)
    with whole_pictures(stored.shards) as pictures:
        ranked = by_pictures(pairs, lambda row: pictures.pixels(row, [CENTER], EDGE)[0])
    planted = sum("/copy_" in path for path in paths.values())
    found = [
        (original(p.first) == original(p.second), p.likeness)
        for p in ranked
        if original(p.first) == original(p.second) or p.likeness < 0.98  # else the corpus's own copies
    ]
    own = sum(original(p.first) != original(p.second) and p.likeness >= 0.98 for p in ranked)
    print(
        f"near duplicates: {average_precision([is_one for is_one, _ in found], planted):.3f} of {planted}; {own} more of the corpus's own"
    )


def _stale(stored, rows, vectors, seed) -> None:
    spec = ViewSpec.from_json(stored.description.views)
    with Thumbnails(stored.shards, spec) as thumbnails:
        pixels = np.stack([thumbnails.pixels(row, stored.view_params(row), EDGE) for row in rows.tolist()])
    found = []
    for number in range(SEEDS):
        stale = np.random.default_rng((seed, number)).choice(len(rows), round(SHARE * len(rows)), replace=False)
        changed, planted = vectors.copy(), np.zeros(len(rows), bool)
        changed[stale], planted[stale] = vectors[np.roll(stale, 1)], True
        scores = mismatches(pixels, changed)
        found.append(average_precision(planted[np.argsort(-scores, kind="stable")].tolist(), len(stale)))
    print(
        f"targets of another image: {_mean(found)} of {round(SHARE * len(rows))} ({vectors.shape[1]} views, seed {seed})"
    )


def speed(folder: Path, num_rows: int) -> None:
    """A store of made logits (1,000 classes, 2 views, fp16); its shards are gone."""
    store = folder / f"made-{num_rows}.zarr"
    if not store.exists():
        make_store(store, num_rows)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    write_page(Stored.open(str(store)), str(folder / "made.html"))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    size = (folder / "made.html").stat().st_size
    print(
        f"{num_rows:,} rows: {time.perf_counter() - start:.1f} s, {cpu:.1f} s of CPU, page of {size / 1e6:.2f} MB, "
        f"at most {used.ru_maxrss / 1e6:.2f} GB of memory"
    )


def make_store(store: Path, num_rows: int, shard_size: int = 1000, classes: int = 1000, views: int = 2) -> None:
    from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
    from teachonce.storage_schemas.encodings import ENCODINGS
    from teachonce.storage_schemas.fingerprint import Fingerprint
    from teachonce.storage_schemas.receipt import Receipt
    from teachonce.storage_schemas.samples import shard_name
    from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
    from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
    from teachonce.storage_schemas.view_params import no_views

    rng = np.random.default_rng(0)
    spec = StoreSpec(
        num_samples=num_rows,
        shard_size=shard_size,
        num_views=views,
        targets=(TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(classes,)),),
        encoding=ENCODINGS["fp16"],
    )
    view = ViewSpec(kind="random_resized_crop", count=views)
    preprocess = {"size": 224, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    teacher = {"family": "timm", "model": "made", "weights_digest": "ab" * 16, "embed_dim": 64, "normalized": True}
    fingerprint = Fingerprint(
        fields={
            "corpus_id": "made",
            "teacher": {"model": "made", "weights": "ab" * 16},
            "views": view.to_json(),
            "targets": ["logits"],
            "encoding": "fp16",
            "compute": {"device": "cpu", "precision": "fp32"},
        }
    )
    root = open_root(str(store), mode="a")
    vectors_CD = rng.normal(size=(classes, 64)).astype(np.float32)
    names = tuple(f"class number {i}" for i in range(classes))
    vectors = ClassVectors(names=names, vectors_CD=vectors_CD, bias_C=None, logit_scale=1.0, normalized=True)
    write_class_vectors(root, vectors, {"teacher": "made"})
    create_arrays(
        root,
        StoreDescription(
            spec=spec,
            fingerprint=dict(fingerprint.fields),
            views=view.to_json(),
            shards="/nowhere/shards",
            teacher=teacher | {"preprocess": preprocess},
        ),
    )
    ledger = Ledger(Location.of(store), "cache")
    ledger.begin(Plan(stage="cache", fingerprint=fingerprint, units=spec.num_shards, rows=num_rows), hint="")
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        count = rows.stop - rows.start
        centre = vectors_CD[rng.integers(0, classes, count)]
        points = centre[:, None] + rng.normal(0, 1.2, (count, views, 64)).astype(np.float32)
        block = TargetBlock(
            keys=[rng.bytes(16).hex() for _ in range(count)],
            valid=np.ones(count, np.bool_),
            view_params=no_views(count, views),
            targets={"logits": (points @ vectors_CD.T).astype(np.float32) / 8},
        )
        paths = write_block(root, spec, shard, block)
        outputs = record_outputs(Location.of(store), paths)
        receipt = Receipt(
            key=shard_name(shard),
            outputs=outputs,
            rows=count,
            invalid_rows=(),
            digest=block.digest,
            fingerprint=fingerprint.digest,
        )
        ledger.commit(receipt, {})


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "faults":
        faults(*map(Path, arguments[:3]), *map(int, arguments[3:]))
    elif what == "draws":
        draws(Path(arguments[0]), *arguments[1:2], *map(int, arguments[2:]))
    else:
        speed(Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 100_000)
