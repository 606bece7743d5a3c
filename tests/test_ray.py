"""A real local Ray: the same bytes as in one process, workers that die, a driver that dies."""

from __future__ import annotations

import json
import os
import signal
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
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


@pytest.fixture
def start(python, cluster):
    """A command that runs, if on Ray then on the tests' cluster."""

    def one(*words: object, **options: object):
        address = () if {"serial", "--ray-address"} & set(words) else ("--ray-address", cluster.address)
        return python.start("-W", "ignore", "-m", "teachonce", *words, *address, **options)

    return one


@pytest.fixture
def run(start):
    """A command to its end."""

    def one(*words: object) -> None:
        process = start(*words)
        assert process.wait() == 0, process.stderr

    return one


def shard(corpus: Path, out: Path, *where: object) -> list[object]:
    return ["shard", corpus, "--name", "c", "--shard-size", 15, "--out", out, *where]


def cache(shards: Path, out: Path, *where: object) -> list[object]:
    return [
        "cache",
        shards,
        "--teacher",
        "timm:test_vit",
        "--teacher-pretrained",
        "random",
        "--views",
        2,
        "--threads",
        1,
        "--batch-size",
        16,
        "--out",
        out,
        *where,
    ]


def test_two_ray_workers_make_the_same_bytes_as_one_process(corpus, run, tmp_path):
    serial, ray = ("--executor", "serial"), ("--executor", "ray", "--workers", 2)
    for make, source in ((shard, corpus), (cache, tmp_path / "shard-0")):
        folders = [tmp_path / f"{make.__name__}-{i}" for i in range(2)]
        for folder, where in zip(folders, (serial, ray), strict=True):
            run(*make(source, folder, *where))
        assert tree(folders[0]) == tree(folders[1])


def test_a_killed_worker_is_replaced_and_a_killed_driver_resumed(corpus, start, run, cluster_to_kill_in, tmp_path):
    def cached(out: str, *where: object, **options: object):
        return start(*cache(tmp_path / "s", tmp_path / out, "--batch-size", 1, *where), **options)

    run(*shard(corpus, tmp_path / "s", "--shard-size", 5, "--executor", "serial"))
    assert cached("calm", "--executor", "serial").wait() == 0
    on_ray = ("--ray-address", cluster_to_kill_in.address, "--workers")
    receipts = tmp_path / "killed" / "ledger" / "cache" / "receipts"
    driver = cached("killed", *on_ray, 2, new_session=True)
    _wait_for(lambda: any(receipts.glob("0*.json")), driver)
    driver.send_signal(signal.SIGKILL, group=True)
    driver.wait()
    while cluster_to_kill_in.workers():
        time.sleep(0.02)  # they do what they have at hand until Ray misses their driver

    for path in sorted(receipts.glob("0*.json"))[1:]:
        path.unlink()  # work left to do, however fast this machine is
    driver = cached("killed", *on_ray, 1, new_session=True)
    _wait_for(lambda: len(list(receipts.glob("0*.json"))) >= 2, driver)
    workers = cluster_to_kill_in.workers()
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    assert driver.wait() == 0, driver.stderr[-2000:]
    assert tree(tmp_path / "calm") == tree(tmp_path / "killed")


#: A teacher that no library knows, in the folder that the command is started in.
FUNCTION = """
from teachonce.stages.models.black_box import BlackBox

def make():
    return BlackBox(name="colours", version="1", embedding=3, answer=colours, size=32, batch_size=8)

def colours(images_NHWC):
    return {"embedding": images_NHWC.mean(axis=(1, 2)) / 255}
"""


def test_a_teacher_that_is_a_function_works_on_a_cluster(corpus, start, tmp_path):
    (tmp_path / "my_teacher.py").write_text(FUNCTION)
    serial, ray = ("--executor", "serial"), ("--executor", "ray", "--workers", 1)
    words = shard(corpus, tmp_path / "s", *serial)
    assert start(*words).wait() == 0
    for name, where in (("here", serial), ("there", ray)):
        teacher = ("--teacher", "python:my_teacher:make", "--views", 2, "--threads", 1)
        process = start("cache", tmp_path / "s", *teacher, "--out", tmp_path / name, *where, cwd=tmp_path)
        assert process.wait() == 0, process.stderr
    here, there = (
        {n: data for n, data in tree(tmp_path / name).items() if "/costs/" not in n} for name in ("here", "there")
    )
    assert there == here
    for name in ("here", "there"):  # what a call is noted with depends on which shards are at hand, their sum does not
        notes = [json.loads(file.read_bytes()) for file in (tmp_path / name / "ledger/cache/costs").glob("*.json")]
        assert (sum(note["calls"] for note in notes), sum(note["images"] for note in notes)) == (24, 180)


def test_no_cluster_at_the_address_is_one_clear_line(corpus, python, tmp_path):
    run = python.run("-m", "teachonce", *shard(corpus, tmp_path / "s", "--ray-address", "127.0.0.1:1"))
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("Error: no Ray cluster answers: 127.0.0.1:1")


def test_a_ray_that_does_not_start_is_one_clear_line(corpus, python, tmp_path):
    """As on a machine that is too busy for the time that Ray gives its processes."""
    env = {**os.environ, "RAY_gcs_server_port_wait_time_s": "0"}
    run = python.run("-m", "teachonce", *shard(corpus, tmp_path / "s"), "--executor", "ray", env=env)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("Error: Ray cannot start on this machine: ")
    assert "Next: if the machine is busy, run the same command again later; --executor serial" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.tar"))


def _wait_for(condition, process) -> None:
    while not condition():
        assert process.poll() is None, process.stderr[-2000:]
        time.sleep(0.02)


def test_what_keeps_a_worker_from_opening_is_one_clear_line(python, cluster, tmp_path):
    """Other weights, other pixels on a node: said once, not by every unit, and not in Ray's words."""
    (tmp_path / "closed_stage.py").write_text(
        "import sys\n"
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
        "        run_stage(Closed(), Location.of('out'), RayExecutor(workers=1, address=sys.argv[1]), progress=False)\n"
        "    except MismatchError as error:\n"
        "        print(error)\n"
    )
    done = python.run("-W", "ignore", "closed_stage.py", cluster.address, cwd=tmp_path)
    assert done.stdout == "this machine has other weights: here\n", done.stderr
