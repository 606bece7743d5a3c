"""A real Ray cluster of three nodes with addresses of their own: the bytes of a serial run, also where nodes and drivers are lost."""

from __future__ import annotations

import contextlib
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

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def three_nodes(load_module):
    """The cluster, which the tests here share."""
    module = load_module("three_nodes", HERE / "three_nodes.py")
    if lack := module.why_not():
        pytest.skip(lack)
    folder = sys.modules["shared"].share("nodes", [sys.executable, HERE / "three_nodes.py", "FOLDER"], ready="built")
    printed = (folder / "printed").read_text()
    assert "not built" not in printed, printed
    return module.ThreeNodes(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(1)
    for i in range(60):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((150, 100), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.png")
    return folder


def shard(corpus: Path, out: Path) -> list[object]:
    return ["shard", corpus, "--name", "c", "--shard-size", 5, "--out", out]


def cache(shards: Path, out: Path) -> list[object]:
    teacher = ["--teacher", "timm:test_vit", "--teacher-pretrained", "random"]
    return ["cache", shards, *teacher, "--views", 2, "--threads", 1, "--batch-size", 1, "--out", out]


@pytest.fixture(scope="module")
def serial(corpus, python, tmp_path_factory) -> Path:
    """A folder with `shards` and `targets` of a run in one process."""
    folder = tmp_path_factory.mktemp("serial")
    for words in (shard(corpus, folder / "shards"), cache(folder / "shards", folder / "targets")):
        done = python.run("-W", "ignore", "-m", "teachonce", *words, "--executor", "serial")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def start(three_nodes, tmp_path):
    """A command on the head's node, with a worker for each node; what it writes is in the file `errors`."""
    drivers = []

    def one(words: list[object], *, workers: object = 3, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        address = ["--ray-address", three_nodes.address, "--workers", workers]
        command = [*three_nodes.inside(0), sys.executable, "-W", "ignore", "-m", "teachonce", *words, *address]
        with (tmp_path / "errors").open("a") as errors:
            drivers.append(subprocess.Popen([str(word) for word in command], stderr=errors, stdout=errors, cwd=cwd))
        return drivers[-1]

    yield one
    for driver in drivers:
        driver.kill()
        driver.wait()


@pytest.fixture
def wait_for(tmp_path):
    """Wait until something is so, while a driver runs."""

    def one(condition, driver) -> None:
        while not condition():
            assert driver.poll() is None, (tmp_path / "errors").read_text()
            time.sleep(0.02)

    return one


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def test_three_nodes_make_the_same_bytes_as_one_process(start, serial, corpus, tmp_path):
    """Shards; that targets are the same too shows below, whatever happens to a node."""
    assert start(shard(corpus, tmp_path / "shards")).wait() == 0, (tmp_path / "errors").read_text()
    assert tree(tmp_path / "shards") == tree(serial / "shards")


@pytest.mark.parametrize("fault", ["killed", "cut off"])
def test_a_node_is_lost_in_the_middle(fault, three_nodes, start, wait_for, serial, tmp_path):
    """Its worker is halted first, so that it has work at hand for certain. Cut off, it goes on once all is done: too late to harm."""
    node = 1
    driver = start(cache(serial / "shards", tmp_path / "t"))
    receipts = tmp_path / "t" / "ledger" / "cache" / "receipts"
    wait_for(lambda: any(receipts.glob("0*.json")) and three_nodes.workers(node), driver)
    workers = three_nodes.workers(node)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    (three_nodes.kill if fault == "killed" else three_nodes.cut_off)(node)
    assert driver.wait() == 0, (tmp_path / "errors").read_text()
    assert tree(tmp_path / "t") == tree(serial / "targets")
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):  # a worker ends with its raylet
            os.kill(worker, signal.SIGCONT)
    time.sleep(3 if fault == "cut off" else 0)
    assert tree(tmp_path / "t") == tree(serial / "targets")
    three_nodes.restart(node)


#: What a node imports first: there is no teachonce but what Ray has brought.
WITHOUT_TEACHONCE = """
import sys
from importlib.machinery import PathFinder

class Brought:
    def find_spec(self, name, path=None, target=None):
        if name != "teachonce":
            return None
        found = PathFinder.find_spec(name, [entry for entry in sys.path if "_ray_pkg_" in entry])
        if found is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found

sys.meta_path.insert(0, Brought())
"""


@pytest.fixture
def other_nodes(tmp_path) -> dict[str, Path]:
    """What comes first where workers of a node import from: one without teachonce, one with another Pillow by its metadata."""
    bare, old = tmp_path / "bare", tmp_path / "old"
    bare.mkdir()
    (bare / "sitecustomize.py").write_text(WITHOUT_TEACHONCE)
    about = old / "pillow-9.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 9.0\n")
    return {"bare": bare, "old": old}


def test_nodes_come_and_go(three_nodes, start, wait_for, serial, other_nodes, tmp_path):
    """A run that begins on one node: one with another Pillow is refused, one without teachonce works, and goes; names are relative."""
    for node in (1, 2):
        three_nodes.end(node)
    errors, receipts = tmp_path / "errors", tmp_path / "t" / "ledger" / "cache" / "receipts"
    words = cache(Path("shards"), Path("..", tmp_path.name, "t"))
    driver = start(words, workers="1..4", cwd=serial)
    wait_for(lambda: any(receipts.glob("0*.json")) and three_nodes.workers(0), driver)
    (halted,) = three_nodes.workers(0)
    os.kill(halted, signal.SIGSTOP)  # it keeps units: the run goes on until all else has happened

    three_nodes.restart(2, other_nodes["old"])
    wait_for(lambda: "does no work: " in errors.read_text(), driver)
    (line,) = [line for line in errors.read_text().splitlines() if "does no work: " in line]
    assert line.startswith("cache: node 10.77.0.3 ("), line
    assert ": expected Pillow 1" in line, line
    assert ", found Pillow 9.0. Next: install there what is expected" in line, line

    before = len(list(receipts.glob("0*.json")))
    three_nodes.restart(1, other_nodes["bare"])
    wait_for(lambda: len(list(receipts.glob("0*.json"))) > before + 1, driver)
    three_nodes.kill(1)
    os.kill(halted, signal.SIGCONT)
    assert driver.wait() == 0, errors.read_text()
    assert tree(tmp_path / "t") == tree(serial / "targets")
    for node in (1, 2):
        three_nodes.restart(node)


def test_the_driver_is_killed_and_run_again(start, wait_for, serial, tmp_path):
    words = cache(serial / "shards", tmp_path / "t")
    receipts = tmp_path / "t" / "ledger" / "cache" / "receipts"
    driver = start(words)
    wait_for(lambda: any(receipts.glob("0*.json")), driver)
    driver.kill()
    driver.wait()
    assert start(words).wait() == 0, (tmp_path / "errors").read_text()
    assert tree(tmp_path / "t") == tree(serial / "targets")
