"""Measures the page of `inspect --html`: how planted faults rank on photographs, and how long a page of many rows takes.

    python benchmarks/page.py faults IMAGES WEIGHTS FOLDER [SEED] [VIEWS]    # class folders; weights of efficientnet-lite0; a folder
    python benchmarks/page.py copies IMAGES WEIGHTS FOLDER SEED…    # as faults; copies alone, a draw for each seed
    python benchmarks/page.py draws STORE [SHARDS] [SEED]     # wrong labels and exchanged targets, in a store that is there
    python benchmarks/page.py speed FOLDER [ROWS [CLASSES VIEWS]]    # a made store, of 100,000 rows, 1,000 classes and 2 views
    python benchmarks/page.py pictured FOLDER IMAGES [ROWS [CLASSES VIEWS]]    # the same with photographs, over and over
    python benchmarks/page.py paint PAGE                      # first paint in headless Chromium

`faults`: 1 % of the images are moved into another class's folder, 1 % get a copy (re-encoded, half the size, cropped, mirrored, in
turn), and 1 % of the rows are given each other's targets. Each ranking's average precision is printed. Copies that the corpus had
before (`caltech_duplicates.txt`, by eye) count neither way. Wrong labels and exchanged targets are also planted in memory, in five
draws each. `copies`: several draws of copies in one corpus, so that the teacher sees the other images once; each draw is ranked
alone, with 2 views and with 4, by embeddings and by logits. SEED is of all draws.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.images import image_size
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inspect import inspect_store, write_page
from teachonce.stages.measures.duplicates import Pair, near_pictures, near_vectors, ranked
from teachonce.stages.measures.patch_features import EDGE
from teachonce.stages.measures.picture_likeness import EDGE as GREY_EDGE
from teachonce.stages.measures.picture_likeness import grey
from teachonce.stages.measures.rankings import FeatureSample, normalized
from teachonce.stages.measures.stale_rows import mismatches
from teachonce.stages.measures.stored import Stored
from teachonce.stages.measures.wrong_labels import contradicted_labels
from teachonce.stages.pages.survey import _BY_PICTURES, _BY_VECTORS
from teachonce.stages.samples.thumbnails import Thumbnails
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.view_params import Views

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
    plant_copies([file for file in files if file in copied], out, seed, draw)


def plant_copies(files: list[Path], out: Path, seed: int, draw: random.Random) -> None:
    """Copies beside their originals, of each kind in turn: `copy{seed}_{kind}_…`."""
    for file, kind in zip(files, itertools.cycle(KINDS)):
        image, quality = KINDS[kind](Image.open(file).convert("RGB"), draw)
        image.save(out / file.parent.name / f"copy{seed}_{kind}_{file.name}", quality=quality)


def _cropped(image: Image.Image, draw: random.Random) -> Image.Image:
    """Between 0.7 and 0.95 of each side, anywhere."""
    width, height = (round(side * draw.uniform(0.7, 0.95)) for side in image.size)
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


#: Kinds of copies: (picture, quality as JPEG).
KINDS = {
    "encoded": lambda image, draw: (image, 40),
    "half": lambda image, draw: (image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC), 70),
    "cropped": lambda image, draw: (_cropped(image, draw), 70),
    "mirrored": lambda image, draw: (ImageOps.mirror(image), 70),
}


def faults(images: Path, weights: Path, folder: Path, seed: int = 0, views: int = 4) -> None:
    store = folder / "targets.zarr"
    if not (folder / "planted").exists():
        plant(images, folder / "planted", seed)
    make_targets(folder, weights, views)
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
    paths = [entry.path for entry in entries]
    found = _duplicates(stored, rows, vectors, paths)
    print(f"near duplicates: {found:.3f} ({views} views, seed {seed})")
    _stale(stored, rows, by_view, seed)


def make_targets(folder: Path, weights: Path, views: int) -> None:
    """Shards and a store of `planted`, made where they are not there yet."""
    store, shards = folder / "targets.zarr", folder / "shards"
    teacher = f"--teacher timm:efficientnet_lite0 --teacher-pretrained {weights} {MEAN_STD}"
    for command in (
        f"shard {folder / 'planted'} --out {shards} --shard-size 500",
        f"vectors {teacher} --out {store}",
        f"cache {shards} {teacher} --views {views} --targets both --executor serial --out {store}",
    ):
        subprocess.run([sys.executable, "-m", "teachonce", *command.split()], check=True)


def copies(images: Path, weights: Path, folder: Path, seeds: list[int], views: int = 4) -> None:
    files = sorted(images.glob("*/*.jpg"))
    if not (folder / "planted").exists():
        shutil.copytree(images, folder / "planted")
        for seed in seeds:
            draw = random.Random(seed)
            plant_copies(draw.sample(files, round(SHARE * len(files))), folder / "planted", seed, draw)
    make_targets(folder, weights, views)
    stored = Stored.open(str(folder / "targets.zarr"))
    total = stored.rows.num_samples
    watchers = {target: FeatureSample(total, total, target, views) for target in ("embedding", "logits")}
    inspect_store(stored, watchers=list(watchers.values()))
    for target, watcher in watchers.items():
        rows, vectors = watcher.take()
        paths = [stored.entry(row).path for row in rows.tolist()]
        for count in (2, views):
            mean = normalized(vectors[:, :count].sum(axis=1))
            found = []
            for seed in seeds:
                kept = [i for i, path in enumerate(paths) if f"/copy{seed}_" in path or "/copy" not in path]
                found.append(_duplicates(stored, rows[kept], mean[kept], [paths[i] for i in kept]))
            print(f"near duplicates by {target}, {count} views: {_mean(found)} (seeds {seeds})")


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
    """(rows, their mean directions, those of each view, their entries); by embeddings, or by logits where the store has no others."""
    total, views = stored.rows.num_samples, stored.rows.num_views
    targets = [target.name for target in stored.description.spec.targets]
    target = "embedding" if "embedding" in targets else "logits"
    mean, by_view = FeatureSample(total, total, target), FeatureSample(total, total, target, views)
    inspect_store(stored, watchers=[mean, by_view])
    rows, vectors = mean.take()
    entries = [entry for row in rows.tolist() if (entry := stored.entry(row)) is not None]
    return rows, vectors[:, 0], by_view.take()[1], entries


def _mean(found: list[float]) -> str:
    return f"{np.mean(found):.3f} ({', '.join(f'{f:.3f}' for f in found)})"


def _duplicates(stored, rows, vectors, paths: list[str]) -> float:
    """The average precision of planted copies; each counts once, where it is first beside a picture of the same original."""
    path_of = dict(zip(rows.tolist(), paths, strict=True))
    with Thumbnails(stored.shards, ViewSpec.from_json(stored.description.views)) as thumbnails:
        greys = {row: grey(thumbnails.whole(row, GREY_EDGE)) for row in path_of}
    known = _own_copies()
    planted = [path for path in paths if "/copy" in path]
    seen: set[str] = set()

    def original(row: int) -> str:
        path = re.sub(r"/copy\d+_[a-z]+_", "/", path_of[row])
        return known.get(path, path)

    def copies_in(pair: Pair) -> list[str]:
        both = [path_of[pair.first], path_of[pair.second]]
        return [path for path in both if "/copy" in path and path not in seen]

    hits = []
    for pair in ranked([*near_vectors(rows, vectors, _BY_VECTORS), *near_pictures(greys, _BY_PICTURES)], greys):
        if original(pair.first) != original(pair.second):
            hits.append(False)
        elif new := copies_in(pair):
            hits.append(True)
            seen.update(new)
    return average_precision(hits, len(planted))


def _own_copies() -> dict[str, str]:
    """Each image that the corpus has more than once, with the first of its like."""
    lines = Path(__file__).with_name("caltech_duplicates.txt").read_text().splitlines()
    groups = [line.split() for line in lines if not line.startswith("#")]
    return {path: group[0] for group in groups for path in group}


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


def speed(folder: Path, num_rows: int = 100_000, classes: int = 1000, views: int = 2) -> None:
    """A store of made logits (fp16); its shards are gone."""
    store = folder / f"made-{num_rows}-{classes}-{views}.zarr"
    if not store.exists():
        make_store(store, num_rows, classes=classes, views=views)
    _timed_page(store, folder, num_rows)


def pictured(folder: Path, images: Path, num_rows: int = 100_000, classes: int = 1000, views: int = 2) -> None:
    """A store of made logits of photographs, the same ones over and over until there are so many."""
    store, shards = folder / f"pictured-{num_rows}-{classes}-{views}.zarr", folder / f"pictured-{num_rows}"
    if not store.exists():
        _photographs(folder / "photographs", images, num_rows, shards)
        make_store(store, num_rows, classes=classes, views=views, shards=shards)
    _timed_page(store, folder, num_rows)


def _photographs(many: Path, images: Path, num_rows: int, shards: Path) -> None:
    files = sorted(images.glob("*/*.jpg"))
    for number in range(num_rows):
        file = files[number % len(files)]
        name = many / f"{number // len(files):04d}" / file.parent.name / file.name
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, name)
    command = f"shard {many} --out {shards} --executor serial"
    subprocess.run([sys.executable, "-m", "teachonce", *command.split()], check=True)
    shutil.rmtree(many)


def _timed_page(store: Path, folder: Path, num_rows: int) -> None:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    write_page(Stored.open(str(store)), str(folder / "made.html"))
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    size = (folder / "made.html").stat().st_size
    print(
        f"{num_rows:,} rows: {time.perf_counter() - start:.1f} s, {cpu:.1f} s of CPU, page of {size / 1e6:.2f} MB, "
        f"at most {used.ru_maxrss / 1e6:.2f} GB of memory"
    )


def paint(page: Path, times: int = 3) -> None:
    """Opens the page several times in one headless Chromium, which is driven through pipes (DevTools protocol)."""
    to_read, to_write = os.pipe(), os.pipe()

    def pipes() -> None:  # Chromium reads from 3 and writes to 4
        read, written = os.dup(to_read[0]), os.dup(to_write[1])
        os.dup2(read, 3)
        os.dup2(written, 4)

    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--remote-debugging-pipe"]
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", *options, f"--user-data-dir={profile}", "about:blank"]
        browser = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(to_read[0])
        os.close(to_write[1])
        answers = os.fdopen(to_write[0], "rb")
        numbers = itertools.count(1)

        def call(method: str, session: str | None = None, **parameters) -> dict:
            number = next(numbers)
            request = {"id": number, "method": method, "params": parameters} | (
                {"sessionId": session} if session else {}
            )
            os.write(to_read[1], json.dumps(request).encode() + b"\0")
            while True:
                text = b"".join(iter(lambda: answers.read(1).rstrip(b"\0"), b""))
                if (answer := json.loads(text)).get("id") == number:
                    return answer["result"]

        try:
            target = next(t for t in call("Target.getTargets")["targetInfos"] if t["type"] == "page")
            session = call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for _ in range(times):
                call("Page.navigate", session, url=page.resolve().as_uri())
                time.sleep(5)
                found = call("Runtime.evaluate", session, expression=_PAINT)["result"]["value"]
                print(f"first contentful paint after {found:.0f} ms")
        finally:
            browser.terminate()
            browser.wait()


_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def make_store(
    store: Path, num_rows: int, shard_size: int = 1000, classes: int = 1000, views: int = 2, shards: Path | None = None
) -> None:
    from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
    from teachonce.storage_schemas.encodings import ENCODINGS
    from teachonce.storage_schemas.fingerprint import Fingerprint
    from teachonce.storage_schemas.receipt import Receipt
    from teachonce.storage_schemas.samples import shard_name
    from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
    from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
    from teachonce.storage_schemas.view_params import no_views

    rng, source = np.random.default_rng(0), None if shards is None else ShardSet(Location.of(shards))
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
            "corpus_id": "made" if source is None else source.corpus.corpus_id,
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
            shards="/nowhere/shards" if shards is None else str(shards),
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
        keys, params_NV = [rng.bytes(16).hex() for _ in range(count)], no_views(count, views)
        if source is not None:
            keys, params_NV = _drawn(source, shard, view)
        block = TargetBlock(
            keys=keys,
            valid=np.ones(count, np.bool_),
            view_params=params_NV,
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


def _drawn(source: ShardSet, shard: int, view: ViewSpec) -> tuple[list[str], Views]:
    """Keys of a shard, and the views that `cache` would draw."""
    reader, rows = source.reader(shard), source.corpus.rows(shard)
    sizes_N2 = np.array([image_size(reader.read(row), source.corpus.max_pixels) for row in rows])
    reader.close()
    keys = [entry.key for entry in source.manifest().shard(shard)]
    return keys, view.drawing.params(keys, sizes_N2, range(view.count))


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "faults":
        faults(*map(Path, arguments[:3]), *map(int, arguments[3:]))
    elif what == "copies":
        images, weights, folder = map(Path, arguments[:3])
        copies(images, weights, folder, list(map(int, arguments[3:])))
    elif what == "draws":
        draws(Path(arguments[0]), *arguments[1:2], *map(int, arguments[2:]))
    elif what == "paint":
        paint(Path(arguments[0]))
    elif what == "pictured":
        pictured(*map(Path, arguments[:2]), *map(int, arguments[2:]))
    else:
        speed(Path(arguments[0]), *map(int, arguments[1:]))
