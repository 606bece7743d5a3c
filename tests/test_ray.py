"""A real local Ray: the same bytes as in one process, workers that die, a driver that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(1)
    for i in range(90):
        image = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
            (150, 100), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{i:03d}.png")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and "timings" not in p.parts}  # fmt: skip


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "teachonce", *map(str, arguments)]


def shard(corpus: Path, out: Path, *where: object) -> list[str]:
    return command("shard", corpus, "--name", "c", "--shard-size", 15, "--out", out, *where)


def cache(shards: Path, out: Path, *where: object) -> list[str]:
    return command("cache", shards, "--teacher", "timm:test_vit", "--teacher-pretrained", "random", "--views", 2,
                   "--threads", 1, "--batch-size", 16, "--out", out, *where)  # fmt: skip


def test_two_ray_workers_make_the_same_bytes_as_one_process(corpus, tmp_path):
    serial, ray = ("--executor", "serial"), ("--executor", "ray", "--workers", 2)
    for make, source in ((shard, corpus), (cache, tmp_path / "shard-0")):
        folders = [tmp_path / f"{make.__name__}-{i}" for i in range(2)]
        for folder, where in zip(folders, (serial, ray), strict=True):
            subprocess.run(make(source, folder, *where), check=True, capture_output=True, text=True)
        assert tree(folders[0]) == tree(folders[1])


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumed(corpus, tmp_path):
    subprocess.run(shard(corpus, tmp_path / "s", "--executor", "serial"), check=True, capture_output=True)
    subprocess.run(
        cache(tmp_path / "s", tmp_path / "calm", "--executor", "serial"), check=True, capture_output=True
    )
    out = tmp_path / "killed"
    driver = subprocess.Popen(
        cache(tmp_path / "s", out, "--workers", 2), stderr=subprocess.PIPE, start_new_session=True
    )
    receipts = out / "ledger" / "cache" / "receipts"
    _wait_for(lambda: any(receipts.glob("0*.json")), driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()

    for path in sorted(receipts.glob("0*.json"))[1:]:
        path.unlink()  # work left to do, however fast this machine is
    driver = subprocess.Popen(
        cache(tmp_path / "s", out, "--workers", 1), stderr=subprocess.PIPE, start_new_session=True
    )
    _wait_for(lambda: len(list(receipts.glob("0*.json"))) >= 2, driver)
    for worker in _workers_of(driver.pid):
        os.kill(worker, signal.SIGKILL)
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors.decode()[-2000:]
    assert tree(tmp_path / "calm") == tree(out)


def test_no_cluster_at_the_address_is_one_clear_line(corpus, tmp_path):
    run = subprocess.run(
        shard(corpus, tmp_path / "s", "--ray-address", "127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("Error: no Ray cluster answers: 127.0.0.1:1")


def _wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        time.sleep(0.02)


def _workers_of(driver: int) -> list[int]:
    """Processes of our actor class, below this driver's session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and b"ray::RayWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_what_keeps_a_worker_from_opening_is_one_clear_line(tmp_path):
    """Other weights, other pixels on a node: said once, not by every unit, and not in Ray's words."""
    (tmp_path / "closed_stage.py").write_text(
        "from dataclasses import dataclass\n"
        "from teachonce.pipeline.types import Resources, Unit\n"
        "from teachonce.storage_schemas.errors import MismatchError\n"
        "from teachonce.storage_schemas.fingerprint import Fingerprint\n"
        "@dataclass(frozen=True)\n"
        "class Closed:\n"
        "    name = 'closed'\n"
        "    fingerprint = Fingerprint(fields={})\n"
        "    resources = Resources()\n"
        "    def plan(self):\n"
        "        return (Unit(key=str(i)) for i in range(4))\n"
        "    def open(self):\n"
        "        raise MismatchError('this machine has other weights', where='here')\n"
        "if __name__ == '__main__':\n"
        "    from closed_stage import Closed\n"
        "    from teachonce.pipeline.executors.ray import RayExecutor\n"
        "    from teachonce.pipeline.runner import run_stage\n"
        "    from teachonce.pipeline.storage import Location\n"
        "    try:\n"
        "        run_stage(Closed(), Location.of('out'), RayExecutor(workers=1), progress=False)\n"
        "    except MismatchError as error:\n"
        "        print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "closed_stage.py"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "this machine has other weights: here\n", done.stderr
