"""The whole way with tars in place, in processes of their own: the bytes of one run on the disk, whoever does it and however often it is killed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.storage import Location

pytestmark = pytest.mark.slow

TEACHER = ("--teacher", "timm:test_resnet", "--teacher-pretrained", "random", "--threads", 1)
STUDENT = ("--student", "timm:test_resnet", "--student-size", 32, "--recipe", "kd", "--batch-size", 4, "--threads", 1)
SERIAL = ("--executor", "serial")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with `tars`: eight of 3 to 6 images, each with caption and class."""
    root = tmp_path_factory.mktemp("way")
    (root / "tars").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        with tarfile.open(root / f"tars/{number:03d}.tar", "w") as tar:
            for sample in range(3 + number % 4):
                image = io.BytesIO()
                small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                small.resize((60, 48), Image.Resampling.BICUBIC).save(image, "JPEG")
                named = {"cls": b"%d" % (sample % 2), "txt": b"a caption", "jpg": image.getvalue()}
                for ending, data in named.items():
                    info = tarfile.TarInfo(f"{sample:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return root


def both(run: Callable[..., str], corpus: object, to: str, where: tuple[object, ...]) -> None:
    run("shard", corpus, "--in-place", "--name", "wds", *where, "--out", f"{to}/index")
    run("vectors", *TEACHER, *SERIAL, "--out", f"{to}/store")
    run("cache", f"{to}/index", *TEACHER, "--views", 2, *where, "--out", f"{to}/store")


@pytest.fixture(scope="module")
def on_disk(root, run) -> dict[str, bytes]:
    both(run, root / "tars", str(root / "serial"), SERIAL)
    return files(Location.of(root / "serial"))


def files(folder: Location) -> dict[str, bytes]:
    """All bytes but for seconds and places."""
    found = {n: (folder / n).read_bytes() for n in sorted(folder.entries(deep=True)) if "/timings/" not in n}
    described = json.loads(found.pop("store/zarr.json"))
    assert described["attributes"]["cache"].pop("seal")
    assert described["attributes"]["cache"].pop("shards")
    found["store/zarr.json"] = json.dumps(described).encode()
    return found


@pytest.mark.ray
def test_on_ray(root, run, on_disk, cluster):
    both(run, root / "tars", str(root / "ray"), ("--ray-address", cluster.address, "--workers", 2))
    found = files(Location.of(root / "ray"))
    assert found.keys() == on_disk.keys()
    assert [name for name, data in found.items() if data != on_disk[name]] == []


def test_in_a_bucket_killed_and_resumed_to_the_end(root, run, start, on_disk, bucket, tmp_path):
    for tar in sorted((root / "tars").iterdir()):
        (Location.of(bucket) / "wds" / tar.name).write_bytes(tar.read_bytes())
    corpus, index, store = f"{bucket}/wds/{{000..007}}.tar", tmp_path / "index", tmp_path / "store"
    receipts = index / "ledger/shard/receipts"
    for goal in (0, 2, 5):
        process = start("shard", corpus, "--in-place", "--name", "wds", *SERIAL, "--out", index)
        while process.poll() is None and len(list(receipts.glob("*.json"))) < goal:
            pass
        process.kill()
        process.wait()
    both(run, corpus, str(tmp_path), SERIAL)
    found = files(Location.of(tmp_path))
    differing = {name for name, data in found.items() if data != on_disk[name]}
    assert differing == {
        f"index/ledger/shard/receipts/{n:06d}.json" for n in range(8)
    }  # where the tars are, and their ETags
    copies, student = ("--local-cache", tmp_path / "copies"), tmp_path / "student"
    run("distill", index, store, *STUDENT, "--epochs", 1, *copies, "--out", student)
    told = json.loads(run("evaluate", student, index, "--store", store, "--json"))
    assert (told["images"]["usable"], told["agreement"]["images"]) == (36, 36)
    assert json.loads(run("verify", index, store, "--json", *SERIAL))["findings"] == []
    assert '"state": "complete"' in run("status", tmp_path, "--json")
    more = Location.of(bucket) / "wds/008.tar"
    more.write_bytes((root / "tars/003.tar").read_bytes())
    run("shard", more.address, "--in-place", "--append", *SERIAL, "--out", index)
    run("cache", index, *TEACHER, "--views", 2, "--grow", *SERIAL, "--out", store)
    assert json.loads(run("verify", index, store, "--json", *SERIAL))["findings"] == []
