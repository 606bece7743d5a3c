"""Small real inputs: a folder of pictures, its shards, and a target store whose numbers are known."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.images import decode
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.bundle import BundleConfig
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.kept_views import no_sizes
from teachonce.storage_schemas.receipt import InvalidRow, Receipt
from teachonce.storage_schemas.samples import shard_name
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
from teachonce.storage_schemas.view_params import no_views

PICTURE_CLASSES = ("red fox", "Blue_Jay", "house-cat")


def draw_picture(path: Path, seed: int) -> None:
    """A small picture of its own size and colours."""
    rng = np.random.default_rng(seed)
    width, height = (int(n) for n in rng.integers(24, 60, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="session")
def start(python) -> Callable[..., Any]:
    """`start("shard", …)`: a command in a process of its own, which runs. Ray's processes bring warnings along."""
    return lambda *words: python.start("-W", "ignore", "-m", "teachonce", *words)


@pytest.fixture(scope="session")
def run(start) -> Callable[..., str]:
    """`run("shard", …)`: a command in a process of its own to its end, without an error: what it printed."""

    def one(*words: object) -> str:
        process = start(*words)
        assert process.wait() == 0, process.stderr
        return str(process.stdout)

    return one


@pytest.fixture(scope="module")
def distill_job(python) -> Iterator[Callable[[dict[str, Any]], int]]:
    """`distill_job(job)`: does one of distill_runs.py in a process of its own; its exit code, -9 when it was killed."""
    jobs = python.jobs(Path(__file__).parent / "distill_runs.py")
    yield jobs.do
    jobs.close()


@pytest.fixture(scope="session")
def together(python) -> Iterator[Callable[..., list[int]]]:
    """`together(do, folder, …)`: a job of rank_jobs.py on two ranks; their exit codes."""
    jobs = python.jobs("-W", "ignore", Path(__file__).parent / "training" / "rank_jobs.py")

    def do(name: str, folder: Path, **options: Any) -> list[int]:
        folder.mkdir(exist_ok=True)
        return list(jobs.do({"do": name, "folder": str(folder), **options}))

    yield do
    jobs.close()


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """How many images meet an open_clip teacher from now on, a number for each time."""
    from teachonce.stages.teachers.open_clip import OpenClipTeacher

    counted, outputs = [], OpenClipTeacher.outputs

    def counting(self, images_NCHW, names):
        counted.append(len(images_NCHW))
        return outputs(self, images_NCHW, names)

    monkeypatch.setattr(OpenClipTeacher, "outputs", counting)
    return counted


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """46 JPEG and PNG pictures in three class folders, and two broken files among them."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(46):
        name = f"{index:02d}.{'png' if index % 5 == 0 else 'jpg'}"
        draw_picture(folder / PICTURE_CLASSES[index % 3] / name, index)
    (folder / "red fox" / "07b.jpg").write_bytes(b"")
    whole = (folder / "Blue_Jay" / "01.jpg").read_bytes()
    (folder / "Blue_Jay" / "20b.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def shard_folder(folder: Path, out: Path, *, shard_size: int = 13, name: str = "pictures") -> ShardSet:
    """Shards of a folder, made by the real stage; rows in the order of paths, so that tests can name them."""
    stage = plan_shard(
        [str(folder)], out=str(out), settings=ShardSettings(shard_size=shard_size, name=name, order="source")
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


@pytest.fixture(scope="session")
def revouch():
    """`revouch(store)`: see `revouch_chunks`."""
    return revouch_chunks


@pytest.fixture(scope="session")
def revouch_bundle():
    """`revouch_bundle(folder)` makes a bundle's config vouch for the files that are there now."""

    def revouched(folder: Path) -> None:
        config = BundleConfig.from_bytes((folder / "config.json").read_bytes(), folder)
        files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in config.files or {}}
        (folder / "config.json").write_bytes(replace(config, files=files).to_bytes())

    return revouched


def revouch_chunks(store: Location) -> None:
    """Make the receipts of a store vouch for the chunks that are there now."""
    ledger = Ledger(store, "cache")
    for receipt in ledger.receipts():
        outputs = record_outputs(store, [output.path for output in receipt.outputs])
        ledger.commit(replace(receipt, outputs=outputs), {})


@dataclass(frozen=True, kw_only=True)
class KnownStore:
    """A store whose targets are known: `targets[name]` is fp32 (row, view, width), NaN where not valid."""

    location: Location
    shards: ShardSet
    views: ViewSpec
    targets: dict[str, np.ndarray]
    valid: np.ndarray


#: As `cache` calls the axis of a target.
AXES = {"embedding": "channel"}


def write_known_store(
    shards: ShardSet,
    out: Path,
    *,
    num_views: int = 3,
    widths: dict[str, int] | None = None,
    encoding: str = "fp32",
    views: ViewSpec | None = None,
    vectors: ClassVectors | None = None,
    also_invalid: tuple[int, ...] = (),
    targets: dict[str, np.ndarray] | None = None,
    description: dict[str, Any] | None = None,
    num_shards: int | None = None,
    derived: bool = False,
) -> KnownStore:
    """Write a finished target store with random numbers (or `targets`), without a teacher.

    `description` is what else `cache` would record in the store; `num_shards` leaves the store unfinished; `derived` derives the
    parameters of views.
    """
    corpus, widths = shards.corpus, widths or {"logits": 7, "embedding": 4}
    views = views or ViewSpec(kind="random_resized_crop", count=num_views, seed=5)
    spec = StoreSpec(
        num_samples=corpus.num_samples,
        shard_size=corpus.shard_size,
        num_views=views.count,
        targets=tuple(
            TargetSpec(name=n, axes=("sample", "view", AXES.get(n, n)), shape=(w,)) for n, w in widths.items()
        ),
        encoding=ENCODINGS[encoding],
        colors=views.has_colors,
        parts=corpus.layout.parts,
        drawing=views.drawing if derived else None,
    )
    fields = {
        "corpus_id": corpus.corpus_id,
        "encoding": encoding,
        "teacher": {"model": "T", "weights": "0123"},
    }
    fingerprint = Fingerprint(fields=(description or {}).get("fingerprint", fields))
    root = open_root(str(out), mode="a")
    if vectors is not None:
        write_class_vectors(root, vectors, {"teacher": "none"})
    recorded = {
        "fingerprint": dict(fingerprint.fields),
        "views": views.to_json(),
        "shards": str(shards.location.path),
    }
    create_arrays(root, StoreDescription(spec=spec, **{**recorded, "teacher": {}, **(description or {})}))
    ledger = Ledger(Location.of(out), "cache")
    plan = Plan(stage="cache", fingerprint=fingerprint, units=corpus.num_shards, rows=corpus.num_samples)
    ledger.begin(plan, hint="")
    rng = np.random.default_rng(3)
    known = {
        n: (targets or {}).get(n, rng.normal(0, 5, (corpus.num_rows, views.count, w)).astype(np.float32))
        for n, w in widths.items()
    }
    for values in known.values():
        values[[row for row in range(corpus.num_rows) if not corpus.layout.has_row(row)]] = np.nan
    valid = np.zeros(corpus.num_rows, bool)
    for shard in range(corpus.num_shards if num_shards is None else num_shards):
        reader, rows = shards.reader(shard), corpus.rows(shard)
        params, sizes = no_views(len(rows), views.count), no_sizes(len(rows))
        entries = shards.manifest().shard(shard)
        bad = {row: "no image" for row in rows if row in reader.invalid or row in also_invalid}
        for offset, (row, entry) in enumerate(zip(rows, entries, strict=True)):
            if row not in bad:
                valid[row] = True
                width, height = decode(reader.read(row)).size
                params[offset], sizes[offset] = views.params(entry.key, width, height), (height, width)
        reader.close()
        here = slice(rows.start, rows.stop)
        for values in known.values():
            values[here][~valid[here]] = np.nan
        block = TargetBlock(
            keys=[e.key for e in entries],
            valid=valid[here],
            view_params=params,
            sizes=sizes,
            targets={n: v[here] for n, v in known.items()},
        )
        outputs = record_outputs(Location.of(out), write_block(root, spec, shard, block))
        invalid = tuple(InvalidRow(row=row, path="", reason=reason) for row, reason in bad.items())
        receipt = Receipt(
            key=shard_name(shard),
            outputs=outputs,
            rows=len(rows),
            invalid_rows=invalid,
            digest=block.digest,
            fingerprint=fingerprint.digest,
        )
        ledger.commit(receipt, {})
    return KnownStore(location=Location.of(out), shards=shards, views=views, targets=known, valid=valid)


@pytest.fixture(scope="session")
def picture_shards(pictures, tmp_path_factory) -> ShardSet:
    """The pictures in four shards of 13; the last one is shorter."""
    return shard_folder(pictures, tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="session")
def known_store(picture_shards, tmp_path_factory) -> KnownStore:
    """Three random views, `logits` (7) and `embedding` (4) in fp32; only the teacher could not use row 5."""
    return write_known_store(picture_shards, tmp_path_factory.mktemp("store") / "s.zarr", also_invalid=(5,))


@pytest.fixture(scope="session")
def make_shards():
    """`make_shards(folder, out, shard_size=…, name=…)`."""
    return shard_folder


@pytest.fixture(scope="session")
def make_store():
    """`make_store(shards, out, …)`: see `write_known_store`."""
    return write_known_store


@pytest.fixture(scope="session")
def by_torchvision():
    """`by_torchvision(image, params, size, strengths=…)`: uint8 (size, size, 3), what torchvision's functions make of one
    record of a view's parameters."""
    from torchvision.transforms import functional as tvf

    operations = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    factors = ("brightness", "contrast", "saturation", "hue")

    def render(image: Image.Image, params: np.void, size: int, strengths=(0, 0, 0, 0)) -> np.ndarray:
        top, left, height, width = (int(params[name]) for name in ("top", "left", "height", "width"))
        view = tvf.resized_crop(image, top, left, height, width, [size, size], tvf.InterpolationMode.BICUBIC)
        view = tvf.hflip(view) if params["flip"] else view
        if params["color_order"] >= 0:
            for index in list(itertools.permutations(range(4)))[params["color_order"]]:
                if strengths[index] > 0:  # ColorJitter makes None of the others, and leaves them out
                    view = operations[index](view, float(params[factors[index]]))
        return np.asarray(tvf.to_grayscale(view, 3) if params["grayscale"] else view)

    return render


def unit_rows(values: np.ndarray) -> np.ndarray:
    """fp32 vectors of length 1."""
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def write_centre_store(
    shards: ShardSet, out: Path, embedding_RD: np.ndarray, vectors: ClassVectors, weights: str = "0123"
) -> KnownStore:
    """A finished store with embeddings of the centre view, and class vectors of the same teacher. Row 5 is not usable."""
    teacher = {"model": "T", "weights_digest": weights}
    store = write_known_store(
        shards,
        out,
        widths={"embedding": embedding_RD.shape[-1]},
        also_invalid=(5,),
        targets={"embedding": embedding_RD[:, None]},
        views=ViewSpec(kind="center", count=1),
        description={
            "fingerprint": {"corpus_id": shards.corpus.corpus_id, "teacher": {"model": "T", "weights": weights}},
            "teacher": teacher,
        },
    )
    write_class_vectors(open_root(str(out), mode="a"), vectors, {"teacher": teacher, "templates": []})
    return store


@pytest.fixture(scope="session")
def make_centre_store():
    """`make_centre_store(shards, out, embedding_RD, vectors)`: see `write_centre_store`."""
    return write_centre_store


@pytest.fixture(scope="session")
def vocabulary() -> ClassVectors:
    """Class vectors of 25 names, 5 channels."""
    return ClassVectors(
        names=tuple(f"name {i:02d}" for i in range(25)),
        vectors_CD=unit_rows(np.random.default_rng(2).normal(size=(25, 5))),
        bias_C=None,
        logit_scale=20.0,
        normalized=True,
    )


@pytest.fixture(scope="session")
def centre_store(picture_shards, vocabulary, tmp_path_factory) -> KnownStore:
    """The pictures with embeddings that lie around eight places, and the vocabulary."""
    rng = np.random.default_rng(4)
    places = unit_rows(rng.normal(size=(8, 5)))[rng.integers(0, 8, picture_shards.corpus.num_rows)]
    embedding = unit_rows(places + rng.normal(0, 0.3, places.shape))
    return write_centre_store(picture_shards, tmp_path_factory.mktemp("centre") / "s.zarr", embedding, vocabulary)


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip_teacher(tmp_path_factory) -> Path:
    """A folder for `local-dir:` whose text tower takes CLIP's full vocabulary: 32 pixels, 16 channels, scale 20."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    model = open_clip.CLIP(**TINY_CLIP)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(20.0))
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    preprocess = {
        "size": 32,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def taught_store(picture_shards, tmp_path_factory) -> KnownStore:
    """A store as a teacher leaves it: unit embeddings (6), class vectors of 7 classes, the logits of both, 3 views.

    Its `location` may be copied; nobody changes it.
    """
    return write_taught_store(
        picture_shards, tmp_path_factory.mktemp("taught") / "s.zarr", tuple("abcdefg"), also_invalid=(5,)
    )


def write_taught_store(
    shards: ShardSet, out: Path, names: tuple[str, ...], *, also_invalid: tuple[int, ...] = ()
) -> KnownStore:
    """See `taught_store`, with classes of these names."""
    rng = np.random.default_rng(11)
    embedding_NVD = rng.normal(size=(shards.corpus.num_samples, 3, 6)).astype(np.float32)
    embedding_NVD /= np.linalg.norm(embedding_NVD, axis=-1, keepdims=True)
    vectors_CD = rng.normal(size=(len(names), 6)).astype(np.float32)
    vectors_CD /= np.linalg.norm(vectors_CD, axis=-1, keepdims=True)
    vectors = ClassVectors(names=names, vectors_CD=vectors_CD, bias_C=None, logit_scale=20.0, normalized=True)
    corpus_id = shards.corpus.corpus_id
    store = write_known_store(
        shards,
        out,
        widths={"logits": len(names), "embedding": 6},
        also_invalid=also_invalid,
        targets={"logits": vectors.logits(embedding_NVD), "embedding": embedding_NVD},
        description={
            "fingerprint": {
                "corpus_id": corpus_id,
                "teacher": {"model": "T", "weights": "0123"},
                "class_vectors": vectors.digest,
            },
            "teacher": {"model": "T", "weights_digest": "0123"},
        },
    )
    origin = {"teacher": {"model": "T", "weights_digest": "0123"}, "templates": []}
    write_class_vectors(open_root(str(out), mode="a"), vectors, origin)
    return store


DOMAIN_CLASSES = ("blue jay", "house cat", "red fox")


def draw_domains(folder: Path, domains: dict[str, int], classes: tuple[str, ...] = PICTURE_CLASSES) -> Path:
    """So many pictures of each class in each domain, at DOMAIN/CLASS/IMAGE."""
    seeds = itertools.count()
    for domain, count in domains.items():
        for name, number in itertools.product(classes, range(count)):
            draw_picture(folder / domain / name / f"{number:02d}.png", next(seeds))
    return folder


@pytest.fixture(scope="session")
def domain_pictures(tmp_path_factory) -> Path:
    """Three domains of three classes: 12 of `art`, 21 of `photo`, 6 of `sketch`, and a broken one there."""
    folder = draw_domains(tmp_path_factory.mktemp("domains") / "pictures", {"art": 4, "photo": 7, "sketch": 2})
    (folder / "sketch" / "red fox" / "broken.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="session")
def make_taught_store():
    """`make_taught_store(shards, out)`: see `domain_store`."""

    def make(shards: ShardSet, out: Path) -> KnownStore:
        return write_taught_store(shards, out, DOMAIN_CLASSES)

    return make


@pytest.fixture(scope="session")
def domain_store(domain_pictures, tmp_path_factory) -> KnownStore:
    """These as `taught_store`, in shards of 6 by path, so that no shard has all domains; the teacher could not use row 1."""
    shards = shard_folder(domain_pictures, tmp_path_factory.mktemp("domain-shards") / "out", shard_size=6)
    return write_taught_store(
        shards, tmp_path_factory.mktemp("domain-store") / "s.zarr", DOMAIN_CLASSES, also_invalid=(1,)
    )


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """An open_clip `local-dir:` folder: a seeded CLIP of 32 pixels, 3 vision blocks, 5 channels, logit scale 10."""
    import json

    import open_clip
    import safetensors.torch
    import torch

    config = {
        "embed_dim": 5,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    model.logit_scale.data.fill_(np.log(10.0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="session")
def dropping_clip(tiny_clip, tmp_path_factory) -> Path:
    """The tiny CLIP, training with patches left out at random: torch's random numbers matter."""
    folder = shutil.copytree(tiny_clip, tmp_path_factory.mktemp("dropping") / "tiny")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.5
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
