"""Corpora in a bucket: the same shards as of the same files on the disk."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.places import ranges
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location, s3_endpoint
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import InputError


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with classes, a broken image, hidden files and what is no image."""
    folder = tmp_path / "photos"
    for number in range(10):
        file = folder / ("red fox", "größe")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    (folder / "red fox" / "bad.jpg").write_bytes(b"")
    (folder / "red fox" / "notes.txt").write_bytes(b"x")
    (folder / ".hidden.jpg").write_bytes(b"x")
    return folder


@pytest.fixture
def tar(photos: Path, tmp_path: Path) -> Path:
    """The same as a tar, with a label beside one of them."""
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(photos, ".")
        info = tarfile.TarInfo("red fox/2.cls")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"wolf"))
    return path


def shards(corpus: str, out: Path) -> dict[str, bytes]:
    stage = plan_shard([corpus], out=str(out), settings=ShardSettings(shard_size=4))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent.name != "timings"
    }


def test_a_folder_in_a_bucket(photos, bucket, tmp_path):
    for path in photos.rglob("*"):
        if path.is_file():
            (Location.of(f"{bucket}/photos") / path.relative_to(photos).as_posix()).write_bytes(path.read_bytes())
    here, there = shards(str(photos), tmp_path / "here"), shards(f"{bucket}/photos", tmp_path / "there")
    assert here.keys() == there.keys()
    # Sizes are no part of a far listing.
    assert [name for name in here if here[name] != there[name]] == ["corpus.json"]
    assert shards(f"{bucket}/photos", tmp_path / "there") == there


def test_a_tar_in_a_bucket_is_read_in_blocks(tar, bucket, object_proxy, object_store, tmp_path):
    (Location.of(bucket) / "train.tar").write_bytes(tar.read_bytes())
    proxy: Any = object_proxy.Proxy(object_store.endpoint)
    with proxy.running(), s3_endpoint(proxy.endpoint), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "BLOCK_BYTES", 8192)
        assert shards(str(tar), tmp_path / "here") == shards(f"{bucket}/train.tar", tmp_path / "there")
    gets = [seen for seen in proxy.seen if seen.method == "GET" and seen.path.endswith(".tar")]
    assert len(gets) < 6 * tar.stat().st_size / 8192


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none", "no such corpus: {bucket}/none. Next: check the URL"),
        (
            "list.csv",
            "in a bucket, a corpus is a folder or a tar: {bucket}/list.csv: expected a folder of images, or NAME.tar, found another file. ",
        ),
    ],
)
def test_what_is_no_corpus_there(name, line, bucket, tmp_path):
    (Location.of(bucket) / "list.csv").write_bytes(b"path\n")
    with pytest.raises(InputError) as error:
        plan_shard([f"{bucket}/{name}"], out=str(tmp_path / "out"))
    assert str(error.value).startswith(line.format(bucket=bucket))
