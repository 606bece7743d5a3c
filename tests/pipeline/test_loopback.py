"""What a Ray that starts with a command listens on: loopback, in every process of it, also while several train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from teachonce.pipeline.executors import ray_train

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

#: A stage whose units wait while the test looks around. Processes that train together have met before.
STAGE = """
import os, pathlib, sys, time
from dataclasses import dataclass
from teachonce.pipeline.types import Resources, Unit
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt

@dataclass(frozen=True)
class Waits:
    folder: pathlib.Path
    together: bool
    name = "waits"
    fingerprint = Fingerprint(fields={})
    resources = Resources()

    def plan(self):
        return iter([Unit(key="unit", rows=1)])

    def open(self):
        return self.run

    def run(self, unit, timer):
        name = "0"
        if self.together:
            import torch
            import torch.distributed
            total = torch.ones(1)
            torch.distributed.all_reduce(total)
            assert total.item() == 2
            name = str(torch.distributed.get_rank())
        (self.folder / f"here-{name}.new").write_text(str(os.getpid()))
        (self.folder / f"here-{name}.new").rename(self.folder / f"here-{name}.pid")
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        return Receipt(key="unit", outputs=(), rows=1, invalid_rows=(), digest="", fingerprint=self.fingerprint.digest)

if __name__ == "__main__":
    from waiting_stage import Waits
    from teachonce.pipeline.executors.ray import RayExecutor
    from teachonce.pipeline.executors.ray_train import RayTrainExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.pipeline.storage import Location
    folder, together = pathlib.Path(sys.argv[1]), sys.argv[2] == "together"
    executor = RayTrainExecutor(workers=2) if together else RayExecutor(workers=1)
    run_stage(Waits(folder, together), Location.of(folder / "out"), executor, progress=False)
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["apart", "together"])
def test_a_ray_of_our_own_listens_on_loopback_only(tmp_path, kind):
    (tmp_path / "waiting_stage.py").write_text(STAGE)
    mark = uuid.uuid4().hex
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        "TEACHONCE_TEST": mark,
        "HOME": str(tmp_path),
    }
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, "-W", "ignore", "waiting_stage.py", str(tmp_path), kind],
            cwd=tmp_path,
            env=environment,
            stdout=said,
            stderr=said,
        )
    try:
        expected = 2 if kind == "together" else 1
        deadline = time.monotonic() + 200
        while len(here := list(tmp_path.glob("here-*.pid"))) < expected:
            assert driver.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.05)
        workers = {Path("/proc") / file.read_text() for file in here}
        processes = processes_of(driver.pid, mark)
        found = [place for process in processes for place in listening(process)]
        silent = [process for process in workers if not listening(process)]
    finally:
        (tmp_path / "go").touch()
        try:
            status = driver.wait(100)
        finally:
            driver.kill()
    assert status == 0, (tmp_path / "said").read_text()
    names = {name for name, _ in found}
    assert names >= {"gcs_server", "raylet", Path(sys.executable).name}, found
    assert workers <= set(processes)
    assert silent == []
    assert len(found) > 5, found
    assert [(name, address) for name, address in found if address not in ("127.0.0.1", "::1")] == []


def processes_of(driver: int, mark: str) -> list[Path]:
    """The driver and every process below it, or with this mark in its environment: some overwrite theirs by a title."""
    parents, found = {}, {driver}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if f"TEACHONCE_TEST={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue
    while below := {process for process, parent in parents.items() if parent in found} - found:
        found |= below
    return [Path("/proc") / str(process) for process in sorted(found)]


def listening(process: Path) -> list[tuple[str, str]]:
    """(name of the process, address) of each TCP socket that it accepts connections at."""
    name = Path((process / "cmdline").read_bytes().split(b"\0")[0].decode()).name
    sockets = set()
    for descriptor in (process / "fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except OSError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in (process / "net" / table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                found.append((name, _address(bytes.fromhex(columns[1].partition(":")[0]))))
    return found


def _address(words: bytes) -> str:
    """The kernel prints addresses as 32-bit words of this machine's order."""
    data = b"".join(int.from_bytes(words[i : i + 4], "big").to_bytes(4, sys.byteorder) for i in range(0, len(words), 4))
    if len(data) == 16 and data.startswith(bytes(10) + b"\xff\xff"):
        data = data[12:]  # IPv4 in an IPv6 socket
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def test_processes_of_a_cluster_meet_where_ray_train_says():
    pytest.importorskip("ray.train.torch")
    from ray.train.torch import TorchConfig

    config, kept = ray_train._process_group("auto", gpus=False)
    assert isinstance(config, TorchConfig)
    assert (config.timeout_s, kept) == (ray_train.WAIT_SECONDS, None)
    assert issubclass(config.backend_cls, TorchConfig().backend_cls)  # whose first rank opens the store
