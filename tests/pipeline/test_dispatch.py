"""Units and workers on a real Ray that end again and again: what is to blame is given up, the others finish."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STAGE = """
import os, pathlib, signal, sys, time
from dataclasses import dataclass
from teachonce.pipeline.types import Resources, Unit
from teachonce.storage_schemas.errors import TeachonceError
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@dataclass(frozen=True)
class Odd:
    folder: pathlib.Path
    keys: tuple[str, ...]
    name = "odd"
    fingerprint = Fingerprint(fields={})
    resources = Resources(units_at_once=2)

    def plan(self):
        return (Unit(key=key, rows=1) for key in self.keys)

    def open(self):
        with (self.folder / "tried").open("a") as file:
            print("open", file=file)
        if "no opening" in self.keys:
            die()
        return self.run

    def run(self, unit, timer):
        with (self.folder / "tried").open("a") as file:
            print(unit.key, file=file)
        if unit.key == "deadly":
            time.sleep(0.2)
            die()
        if unit.key == "endless":
            time.sleep(10000)
        return Receipt(key=unit.key, outputs=(), rows=1, invalid_rows=(), digest="", fingerprint=self.fingerprint.digest)

if __name__ == "__main__":
    from odd_stage import Odd
    from teachonce.pipeline.executors.ray import RayExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.pipeline.storage import Location
    folder, address, seconds, *keys = sys.argv[1:]
    folder = pathlib.Path(folder)
    executor = RayExecutor(workers=2, address=address or None, unit_timeout=float(seconds) or None)
    try:
        run_stage(Odd(folder, tuple(keys)), Location.of(folder / "out"), executor, progress=False)
    except TeachonceError as error:
        print(error.code, error.fields["where"] if "where" in error.fields else error)
"""


@pytest.fixture
def run(tmp_path, cluster):
    """The stage with these units to its end: the error that it ended with, and what was tried in order."""
    (tmp_path / "odd_stage.py").write_text(STAGE)
    more = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "RAY_AUTH_MODE": "disabled"}

    def one(*keys: str, unit_timeout: float = 0, address: str = cluster.address, **env: str) -> tuple[str, list[str]]:
        words = [sys.executable, "odd_stage.py", tmp_path, address, str(unit_timeout), *keys]
        environment = os.environ | more | env
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        tried = tmp_path / "tried"
        return done.stdout, tried.read_text().splitlines() if tried.exists() else []

    return one


def _done(folder) -> set[str]:
    return {path.stem for path in (folder / "out" / "ledger" / "odd" / "receipts").glob("*.json")}


def test_a_unit_that_ends_its_worker_each_time_is_given_up_and_the_others_finish(run, tmp_path):
    said, tried = run("a", "deadly", "b", "c", "d")
    assert said.startswith("worker-died its worker process ended unforeseen 4 times (killed, or crashed)"), said
    assert tried.count("deadly") == 4
    assert _done(tmp_path) == {"a", "b", "c", "d"}


def test_a_unit_that_hangs_is_killed_and_tried_again_and_then_failed(run, tmp_path):
    said, tried = run("a", "endless", "b", unit_timeout=1.5)
    assert said.startswith("unit-timeout it took longer than --unit-timeout 1.5 s, 4 times. Next: give it more time"), (
        said
    )
    assert tried.count("endless") == 4
    assert _done(tmp_path) == {"a", "b"}


def test_workers_that_end_before_they_do_anything_are_given_up(run, tmp_path):
    said, tried = run("no opening", "a")
    assert said.startswith("worker-died each worker process ended unforeseen 4 times in a row"), said
    assert tried == ["open"] * 8
    assert _done(tmp_path) == set()


def test_a_node_that_is_always_short_of_memory_ends_the_run(run, tmp_path):
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    said, _ = run("endless", "a", address="", **short)
    assert said.startswith("node-out-of-memory the nodes of the workers are out of memory: each worker was ended "), (
        said
    )
    assert _done(tmp_path) == set()
