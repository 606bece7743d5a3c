"""Which images a store's teacher saw: other pictures under the same names, reduced images, other shards, lost shards."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.measures.same_pictures import SamePictures
from teachonce.stages.measures.stored_teacher import StoredTeacher
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.class_vectors import ClassVectors
from teachonce.storage_schemas.errors import InputError, MismatchError

NAMES = ("c0", "c1")


def put_photos(folder: Path, seed: int, number: int = 6) -> Path:
    """Six JPEG photographs of 48x40 pixels in two class folders: the same names for every seed."""
    for i in range(number):
        coarse = np.random.default_rng(seed + i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path = folder / f"c{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def shard(folder: Path, out: Path, **options) -> ShardSet:
    settings = ShardSettings(**{"shard_size": 4, "order": "source", **options})
    stage = plan_shard([str(folder)], out=str(out), settings=settings)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


@pytest.fixture
def photos(tmp_path) -> Path:
    return put_photos(tmp_path / "one" / "photos", 0)


@pytest.fixture
def teacher_of(make_store, tmp_path):
    """The teacher of a store that is made of shards."""
    vectors = ClassVectors(
        names=NAMES, vectors_CD=np.eye(2, 3, dtype=np.float32), bias_C=None, logit_scale=1.0, normalized=True
    )

    def make(shards: ShardSet, **options) -> StoredTeacher:
        store = make_store(shards, tmp_path / "my store", num_views=1, widths={"logits": 2}, vectors=vectors, **options)
        return StoredTeacher(store.location, NAMES)

    return make


def same(teacher: StoredTeacher, images: Path, name: str | None = None) -> SamePictures:
    image_set = open_images(str(images), name=name)
    keys = [picture.key for picture in image_set.pictures()]
    return SamePictures(teacher, image_set, np.array(keys, "S32"))


def same_rows(pictures: SamePictures, images: Path) -> list[int]:
    """Rows of the images, in order, as the measuring walk finds them; -1 where the image is none of them."""
    found = enumerate(open_images(str(images)).pictures())
    return [int(pictures.rows_N[i]) if pictures.is_same(i, p, p.read()) else -1 for i, p in found]


def refusal(kind: type[Exception], teacher: StoredTeacher, images: Path, name: str | None = None) -> str:
    with pytest.raises(kind) as error:
        same(teacher, images, name)
    return str(error.value)


@pytest.mark.parametrize("as_shards", [False, True])
def test_other_pictures_under_the_same_names_are_refused(photos, teacher_of, tmp_path, as_shards):
    teacher = teacher_of(shard(photos, tmp_path / "my shards"))
    other = put_photos(tmp_path / "two" / "photos", 100)
    if as_shards:
        shard(other, tmp_path / "other")
        other = tmp_path / "other"
    text = refusal(MismatchError, teacher, other)
    assert text.startswith(
        f"the images have the store's names, but are other pictures: {tmp_path}/my store: "
        f"expected the files that {tmp_path}/my shards was made of, "
        "found other content in c0/0.jpg and 5 more of 6 that were looked at. Next: "
    )
    command = text.partition("Next: ")[2].removesuffix(", or leave out --store")
    assert shlex.split(command) == [
        "teachonce",
        "evaluate",
        "BUNDLE",
        f"{tmp_path}/my shards",
        "--store",
        f"{tmp_path}/my store",
    ]


@pytest.mark.parametrize("order", ["hash", "source"])
def test_each_shard_is_read_once_whatever_the_order_of_the_images(order, make_store, tmp_path, monkeypatch):
    """Against the store as a whole; a folder's images come in the order of their paths, 12 shards in that of their rows."""
    photos = put_photos(tmp_path / "photos", 0, number=24)
    stage_shards = shard(photos, tmp_path / "shards", shard_size=2, order=order)
    vectors = ClassVectors(
        names=NAMES, vectors_CD=np.eye(2, 3, dtype=np.float32), bias_C=None, logit_scale=1.0, normalized=True
    )
    store = make_store(
        stage_shards, tmp_path / "s", num_views=1, widths={"logits": 2}, vectors=vectors, also_invalid=(5,)
    )
    read: list[tuple[str, int]] = []
    for name, original in (
        ("_read_rows", StoredTeacher._read_rows),
        ("_read_logits", StoredTeacher._read_logits),
    ):

        def counted(self, shard, original=original, name=name):
            read.append((name, shard))
            return original(self, shard)

        monkeypatch.setattr(StoredTeacher, name, counted)
    teacher = StoredTeacher(store.location, NAMES)
    rows_N = same(teacher, photos).rows_N
    teacher.expect(rows_N)
    asked = rows_N[rows_N >= 0].tolist()
    assert (len(asked), asked == sorted(asked)) == (23, order == "source")
    boxes = np.asarray(zarr.open_group(str(tmp_path / "s"), mode="r")["view_params"][:])[:, 0]
    for start in range(0, 23, 5):
        some = asked[start : start + 5]
        np.testing.assert_array_equal(teacher.logits(some), store.targets["logits"][some, 0])
        for row in some:
            box = teacher.box(row)
            assert [box[name] for name in ("top", "left", "height", "width")] == boxes[row][:4].tolist()
    assert sorted(read) == [(name, shard) for name in ("_read_logits", "_read_rows") for shard in range(12)]


def test_the_same_files_are_the_same_pictures_wherever_they_are(photos, teacher_of, tmp_path):
    shards = shard(photos, tmp_path / "shards")
    teacher = teacher_of(shards)
    again = shard(photos, tmp_path / "again", shard_size=5)  # another corpus id, and other rows
    assert again.corpus.corpus_id != shards.corpus.corpus_id
    moved = tmp_path / "else" / "photos"
    shutil.copytree(photos, moved)
    for images in (moved, again.location.path, shards.location.path):
        pictures = same(teacher, images)
        assert same_rows(pictures, images) == list(range(6))
        assert (pictures.others, pictures.note()) == ({}, "")
        assert (pictures.of_the_store is None) == (images != shards.location.path)


def test_one_other_picture_among_them_is_left_out(photos, teacher_of, tmp_path):
    teacher = teacher_of(shard(photos, tmp_path / "shards"))
    shutil.copy(put_photos(tmp_path / "two" / "photos", 100) / "c0" / "2.jpg", photos / "c0" / "2.jpg")
    (photos / "c0" / "new.jpg").write_bytes((photos / "c0" / "0.jpg").read_bytes())
    for images in (photos, shard(photos, tmp_path / "changed").location.path):
        pictures = same(teacher, images)
        assert same_rows(pictures, images) == [0, -1, 2, -1, 3, 4, 5]
        assert pictures.others == {1: "c0/2.jpg"}


def test_originals_are_not_the_reduced_images_that_the_teacher_saw(photos, teacher_of, tmp_path):
    reduced = shard(photos, tmp_path / "reduced", resize=16)
    teacher = teacher_of(reduced)
    originals = shard(photos, tmp_path / "originals")
    assert originals.corpus.corpus_id == reduced.corpus.corpus_id
    for images in (photos, originals.location.path):
        text = refusal(MismatchError, teacher, images)
        assert text.startswith(
            f"the images were not reduced as those were that the store's teacher saw: {tmp_path}/my store: "
            "expected images reduced to 16 pixels"
        )
        assert f"as in {tmp_path}/reduced, found original files. Next: teachonce evaluate BUNDLE " in text
    assert same_rows(same(teacher, reduced.location.path), reduced.location.path) == list(range(6))


def test_reduced_images_are_not_the_originals_that_the_teacher_saw(photos, teacher_of, tmp_path):
    teacher = teacher_of(shard(photos, tmp_path / "originals"))
    text = refusal(MismatchError, teacher, shard(photos, tmp_path / "reduced", resize=16).location.path)
    assert f"expected original files, as in {tmp_path}/originals, found images reduced to 16 pixels. " in text


def test_pictures_that_cannot_be_told_apart_are_refused(photos, teacher_of, tmp_path):
    shards = shard(photos, tmp_path / "shards")
    teacher_of(shards)
    shards.location.path.rename(tmp_path / "moved")
    teacher = StoredTeacher(str(tmp_path / "my store"), NAMES)
    assert refusal(InputError, teacher, photos) == (
        "whether these are the pictures that the store's teacher saw cannot be known: "
        f"{tmp_path}/my store: found {tmp_path}/shards, where the shards were, cannot be used (no shards here). "
        "Next: pass the shards that were cached as IMAGES, or leave out --store"
    )
    assert same_rows(same(teacher, tmp_path / "moved"), tmp_path / "moved") == list(range(6))


@pytest.mark.parametrize("recorded", ["https://host/shards", "pipe:cat x", "~", "/dev/null", ""])
def test_where_a_stranger_says_that_the_shards_are(photos, teacher_of, tmp_path, recorded):
    shards = shard(photos, tmp_path / "shards")
    teacher = teacher_of(shards, description={"shards": recorded})
    assert refusal(InputError, teacher, photos).startswith("whether these are the pictures ")
    assert same_rows(same(teacher, shards.location.path), shards.location.path) == list(range(6))
