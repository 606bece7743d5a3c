"""A cluster that ends is noticed, and is one clear line: not a page of Ray's, and not a failure of each unit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from teachonce.pipeline.executors import head, native_stderr
from teachonce.pipeline.executors.head import ClusterEnded, RayHead


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(head, "time", clock)
    return clock


def test_a_head_that_answers_again_in_time_ends_nothing(clock):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        there = RayHead(f"127.0.0.1:{port}")
        clock.seconds = 5
        there.look()
        there.check()
    clock.seconds = 40
    there.look()
    with socket.create_server(("127.0.0.1", port)):
        clock.seconds = 45
        there.look()
    clock.seconds = 80
    there.look()
    clock.seconds = 85
    with pytest.raises(ClusterEnded) as caught:
        there.look()
    assert caught.value.fields == {
        "code": "ray-cluster-ended",
        "where": f"127.0.0.1:{port}",
        "hint": "start it again, then run the same command again; what was finished is kept",
    }
    with pytest.raises(ClusterEnded):
        there.check()


def test_native_code_writes_aside_and_python_does_not():
    program = (
        "import os, sys\n"
        "from teachonce.pipeline.executors import native_stderr\n"
        "native_stderr.set_aside()\n"
        "native_stderr.set_aside()\n"
        "os.write(2, b'[2026-01-01 12:00:00,000 W 1 1] gcs_client.cc:210: no token\\n')\n"
        "print('for people', file=sys.stderr)\n"
        "print(native_stderr.last_lines())\n"
        "native_stderr.put_back()\n"
        "os.write(2, b'native again\\n')\n"
        "print('and Python', file=sys.stderr)\n"
        "print(native_stderr.last_lines())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "for people\nnative again\nand Python\n"
    assert done.stdout == "no token\nNone\n"


def test_where_stderr_is_not_the_process_s_own_nothing_is_set_aside(monkeypatch, capsys):
    native_stderr.set_aside()
    assert native_stderr.last_lines() is None


#: A cluster of this test alone, and a command's work on it.
DRIVER = """
import pathlib, sys, time
from dataclasses import dataclass
from teachonce.pipeline.types import Resources, Unit
from teachonce.storage_schemas.errors import TeachonceError
from teachonce.storage_schemas.fingerprint import Fingerprint

@dataclass(frozen=True)
class Endless:
    folder: pathlib.Path
    name = "endless"
    fingerprint = Fingerprint(fields={})
    resources = Resources()

    def plan(self):
        return (Unit(key=str(key)) for key in range(3))

    def open(self):
        return self.run

    def run(self, unit, timer):
        (self.folder / "at-work").touch()
        while True:
            time.sleep(0.1)

if __name__ == "__main__":
    from endless_stage import Endless
    from teachonce.pipeline.executors.ray import RayExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.pipeline.storage import Location
    folder = pathlib.Path(sys.argv[1])
    try:
        run_stage(Endless(folder), Location.of(folder / "out"), RayExecutor(workers=1, address=sys.argv[2]), progress=False)
    except TeachonceError as error:
        print(error)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cluster_that_ends_is_one_line(tmp_path, tmp_path_factory):
    (tmp_path / "endless_stage.py").write_text(DRIVER)
    session = Path(f"/tmp/teachonce-test-{os.getpid()}")
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    start = [
        ray,
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=1",
        "--include-dashboard=false",
        f"--temp-dir={session}",
    ]
    try:
        subprocess.run(start, env=environment, check=True, capture_output=True, timeout=120)  # type: ignore[arg-type]
        driver = subprocess.Popen(
            [sys.executable, "endless_stage.py", str(tmp_path), f"127.0.0.1:{port}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (tmp_path / "at-work").exists():
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.05)
        for process in _processes_with(str(session)):
            os.kill(process, signal.SIGKILL)
        said, errors = driver.communicate(timeout=200)
    finally:
        for process in _processes_with(str(session)):
            os.kill(process, signal.SIGKILL)
        subprocess.run(["rm", "-rf", str(session)], check=False)
    assert said.startswith("the Ray cluster has ended: ")
    assert said.count("\n") == 1
    # Where it takes long, also what starts.
    starts = ("endless: starting", "endless: loading")
    assert [line for line in errors.splitlines() if not line.startswith(starts)] == []


def _processes_with(word: str) -> list[int]:
    """Processes that were started with this word, which is this test's own, in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
