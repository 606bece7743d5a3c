"""Pictures decoded ahead: the same batches, views and reasons in processes, in threads, and one by one."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from teachonce.stages.corpora.images import BadImage, decode
from teachonce.stages.corpora.source import SourceFile
from teachonce.stages.decoding.processes import Processes
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.inputs import picture_views
from teachonce.stages.inputs.image_set import ImageSet, open_images
from teachonce.stages.inputs.picture_batches import Batch, picture_batches
from teachonce.stages.inputs.picture_files import SourceFiles
from teachonce.stages.inputs.picture_views import PictureViews, Wanted
from teachonce.stages.inputs.typed_images import TypedImages
from teachonce.stages.samples.images import IMAGES
from teachonce.stages.samples.kind import draw_views
from teachonce.stages.views.settings import RandomViews
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import Unreachable
from teachonce.storage_schemas.samples import content_digest

SIZE = 16
CENTER = ViewSpec()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    pool = Processes(2, (picture_views.__name__,))
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def sets(pictures, picture_shards, tmp_path_factory) -> dict[str, str]:
    """The pictures with the broken ones and a missing one: in a folder, a tar, a list, shards and a split of a data set."""
    folder = tmp_path_factory.mktemp("sets")
    with tarfile.open(folder / "p.tar", "w") as tar:
        tar.add(pictures, arcname=".")
        gone = tarfile.TarInfo("Blue_Jay/gone.jpg")
        gone.type, gone.linkname = tarfile.SYMTYPE, "nothing.jpg"
        tar.addfile(gone)
    files = [p for p in pictures.rglob("*.*") if p.is_file()]
    listed = [*files, pictures / "Blue_Jay" / "gone.jpg"]
    (folder / "list.txt").write_text("".join(f"{p}\t{p.parent.name}\n" for p in listed))
    data = folder / "data" / "oxford_pets"
    (data / "images").mkdir(parents=True)
    for i, file in enumerate(files):
        (data / "images" / f"{i:02d}.jpg").symlink_to(file)
    listed_there = [[f"{i:02d}.jpg", 0, "cat"] for i in range(len(files) + 1)]
    (data / "split_zhou_OxfordPets.json").write_text(json.dumps({"train": listed_there, "val": [], "test": []}))
    return {
        "folder": str(pictures),
        "tar": str(folder / "p.tar"),
        "list": str(folder / "list.txt"),
        "shards": str(picture_shards.location.path),
        "split": f"coop:oxford_pets/train={folder / 'data'}",
    }


def work_on(images: ImageSet, **options) -> PictureViews:
    fields: dict[str, Any] = {
        "files": images.files,
        "kind": images.kind,
        "limit": images.max_pixels,
        "size": SIZE,
        "view": CENTER,
    }
    return PictureViews(**(fields | options))


def flat(batches: Iterable[Batch]) -> list[tuple]:
    """(items, reasons, views, second views) of each batch, with views of their own."""
    none = np.empty((0, 3, SIZE, SIZE), np.uint8)
    return [
        (
            [item for item, _ in batch.usable],
            batch.unusable,
            np.concatenate([none, *batch.views.take()]).tobytes(),
            np.concatenate([none, *batch.others.take()]).tobytes(),
        )
        for batch in batches
    ]


@pytest.mark.parametrize("images", ["folder", "tar", "list", "shards", "split"])
def test_batches_are_those_of_reading_one_by_one(images, sets, processes):
    image_set = open_images(sets[images])
    expected, reasons = [], []
    for picture in image_set.pictures():
        try:
            sample = decode(picture.read())
            box = IMAGES.params(sample, "", CENTER)
            expected.append((picture.path, draw_views(IMAGES, sample, box, SIZE, CENTER).tobytes()))
        except BadImage as bad:
            reasons.append((picture.path, str(bad)))
    assert len(expected) == 46
    assert len(reasons) == (2 if images in ("folder", "shards") else 3)
    work, count = work_on(image_set), 46 + len(reasons)
    for pool in (Threads(0), Threads(3), processes):
        wanted = ((picture.path, Wanted(file=picture.file)) for picture in image_set.pictures())
        batches = flat(picture_batches(pool, work, wanted, total=count, size=7))
        assert [len(items) for items, *_ in batches] == [7] * 6 + [4]
        assert [item for items, *_ in batches for item in items] == [path for path, _ in expected]
        assert b"".join(views for _, _, views, _ in batches) == b"".join(views for _, views in expected)
        assert [bad for _, unusable, *_ in batches for bad in unusable] == reasons


@pytest.mark.parametrize("images", ["folder", "tar", "list", "shards", "split"])
def test_what_reads_pictures_can_be_sent_elsewhere_also_while_it_is_open(images, sets):
    image_set = open_images(sets[images])
    first = next(image_set.pictures())
    data = first.read()
    assert pickle.loads(pickle.dumps(image_set.files)).read(first.file) == data
    image_set.files.close()
    assert first.read() == data


def test_a_second_view_is_drawn_of_what_was_meant(pictures, processes):
    """At the given box, in the other spec; of another picture under the same name there is none."""
    image_set = open_images(str(pictures))
    other = ViewSpec.random(1, RandomViews(seed=3), "bicubic")
    jobs, expected = [], []
    for index, picture in enumerate(image_set.pictures()):
        try:
            sample = decode(picture.read())
        except BadImage:
            jobs.append(
                (
                    picture.path,
                    Wanted(file=picture.file, digest="0" * 32, box=np.zeros(1, CENTER.params("", 9, 9).dtype)[0]),
                )
            )
            continue
        box = IMAGES.params(sample, picture.key, other)[0]
        digest = [None, content_digest(picture.read()), "0" * 32][index % 3]
        with_box = index % 4 != 0
        jobs.append((picture.path, Wanted(file=picture.file, digest=digest, box=box if with_box else None)))
        is_meant = index % 3 != 2
        views = draw_views(IMAGES, sample, [box], SIZE, other).tobytes() if is_meant and with_box else b""
        expected.append((picture.path, is_meant, views))
    for pool in (Threads(2), processes):
        batches = list(picture_batches(pool, work_on(image_set, other=other), jobs, total=len(jobs), size=9))
        meant = [(item, outcome.is_meant) for batch in batches for item, outcome in batch.usable]
        assert meant == [(path, is_meant) for path, is_meant, _ in expected]
        assert b"".join(views for *_, views in flat(batches)) == b"".join(views for _, _, views in expected)


def test_trouble_of_the_moment_is_raised_or_is_the_pictures_own(pictures, processes):
    file = SourceFile(path="far.jpg", size=9, label=None, problem="unreachable: Input/output error")
    files = open_images(str(pictures)).files
    assert isinstance(files, SourceFiles)
    work = PictureViews(files=files, kind=IMAGES, limit=100, size=SIZE, view=CENTER)
    lenient = PictureViews(files=files, kind=IMAGES, limit=100, size=SIZE, view=CENTER, lenient=True)
    for pool in (Threads(1), processes):
        with pytest.raises(Unreachable) as error:
            list(picture_batches(pool, work, [(0, Wanted(file=file))], total=1, size=4))
        assert (error.value.where, error.value.found) == ("far.jpg", "Input/output error")
        (batch,) = picture_batches(pool, lenient, [(0, Wanted(file=file))], total=1, size=4)
        assert batch.unusable == [(0, "cannot be read at the moment: Input/output error")]


class Recorded:
    """A pool that keeps the tasks."""

    ahead = 4

    def __init__(self) -> None:
        self.tasks: list[tuple[Wanted, ...]] = []

    def open(self, work):
        opened, tasks = Threads(0).open(work), self.tasks

        class Opened:
            def submit(self, task) -> Future:
                tasks.append(task)
                return opened.submit(task)

            def close(self) -> None:
                opened.close()

        return Opened()

    def close(self) -> None:
        pass


def test_tasks_are_large_and_smaller_towards_the_end(tmp_path):
    def sizes(count: int, file: str = str(tmp_path / "none.png"), size: int = SIZE) -> list[int]:
        work = PictureViews(files=TypedImages(), kind=IMAGES, limit=1000, size=size, view=CENTER, lenient=True)
        pool = Recorded()
        batches = picture_batches(pool, work, ((i, Wanted(file=file)) for i in range(count)), total=count, size=64)
        assert sum(len(batch.found) for batch in batches) == count
        return [len(task) for task in pool.tasks]

    assert sizes(0) == []
    assert sizes(5) == [1] * 5
    found = sizes(600)
    assert found[:10] == [32] * 10
    assert found == sorted(found, reverse=True)
    assert found[-8:] == [1] * 8
    assert max(sizes(200, size=1024)) == 2  # 8 MiB of views
    assert max(sizes(400, file="ftp://somewhere/a.png")) == 4  # whoever stops waits for those that have begun
