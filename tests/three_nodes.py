"""A Ray cluster of three nodes on this machine, each in a network namespace with an address of its own, and their faults.

As a program (`three_nodes.py FOLDER`) it builds the cluster, prints `built` (or `not built` and why), and removes all of it
when it is told to end. It needs root, Linux and iproute2. The bridge between the nodes has a namespace too: nothing is added to the machine's own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

#: What Ray calls a process of an actor of ours: by the class, or by the task that it does.
_OUR_WORKER = re.compile(rb"ray::(RayWorker|[a-z][a-z -]*(: opening| \d))")

#: Head and two more.
NODES = 3

#: The nodes' network, which nothing else sees.
_NETWORK = "10.77.0"
_PORT = 6379

#: A node that does not answer counts as lost after about ten seconds. Ray's own settings take half a minute.
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


def why_not() -> str | None:
    """What this machine lacks; None where it can have such nodes."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs Linux with iproute2"
    name = f"try-{os.getpid()}"
    tried = _ip("netns", "add", name, check=False)
    if tried.returncode:
        return f"`ip netns add` is not possible: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class ThreeNodes:
    """The cluster.

    The namespaces are named after the folder's parent: PARENT-0 is the head's, PARENT-bridge joins them.

    Attributes:
        folder: what the command lines of all its processes name.
    """

    folder: Path

    @property
    def address(self) -> str:
        """For `--ray-address`."""
        return f"{_address(0)}:{_PORT}"

    def inside(self, node: int) -> list[str]:
        """What a command begins with to run on a node."""
        return ["ip", "netns", "exec", self._space(node), "env", *(f"{k}={v}" for k, v in _SETTINGS.items())]

    def build(self) -> None:
        """Start it all."""
        bridge = self._bridge
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", bridge, "link", "set", "bridge", "up")
        for node in range(NODES):
            space, port = self._space(node), f"port{node}"
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", bridge)
            _ip("-n", bridge, "link", "set", port, "master", "bridge", "up")
            _ip("-n", space, "address", "add", f"{_address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            self._connect(node)
        for node in range(NODES):
            self.start(node)

    def start(self, node: int, python_path: Path | None = None) -> None:
        """Start Ray on a node, with one CPU; `python_path` comes first where its workers import from. On busy cores a start of it may give up by itself: then once more."""
        role = (
            ["--head", f"--port={_PORT}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
            if node == 0
            else [f"--address={self.address}"]
        )
        words = ["--num-cpus=1", "--object-store-memory=80000000", f"--node-ip-address={_address(node)}", *role]
        ray = Path(sys.executable).with_name("ray")
        paths = [str(python_path or ""), os.environ.get("PYTHONPATH", "")]
        inside = [*self.inside(node), f"PYTHONPATH={':'.join(filter(None, paths))}"]
        for last in (False, False, True):
            done = subprocess.run([*inside, ray, "start", *words], check=last, stdout=subprocess.DEVNULL)
            if done.returncode == 0:
                return
            self.end(node)

    def workers(self, node: int) -> list[int]:
        """Processes of our actors on a node."""
        return [pid for pid, command in self._processes(node).items() if _OUR_WORKER.match(command)]

    def kill(self, node: int) -> None:
        """The node is gone: its raylet, as by `kill -9`, and so what it had started."""
        for pid, command in self._processes(node).items():
            if command.partition(b"\0")[0].endswith(b"/raylet"):
                os.kill(pid, signal.SIGKILL)

    def cut_off(self, node: int) -> None:
        """The node goes on, and nobody can reach it."""
        _ip("-n", self._space(node), "link", "set", "eth0", "down")

    def restart(self, node: int, python_path: Path | None = None) -> None:
        """A node that was killed or cut off, as a new one."""
        self.end(node)
        self._connect(node)
        self.start(node, python_path)

    def remove(self) -> None:
        """End all processes and namespaces, as far as they have come to be."""
        for node in range(NODES):
            self.end(node)
        for space in (*(self._space(node) for node in range(NODES)), self._bridge):
            _ip("netns", "delete", space, check=False)

    def _connect(self, node: int) -> None:
        _ip("-n", self._space(node), "link", "set", "eth0", "up")
        # To nowhere: by the way there, programs find which address is theirs.
        _ip("-n", self._space(node), "route", "replace", "default", "dev", "eth0")

    def _space(self, node: int) -> str:
        return f"{self.folder.parent.name}-{node}"

    @property
    def _bridge(self) -> str:
        return f"{self.folder.parent.name}-bridge"

    def end(self, node: int) -> None:
        """All its processes, at once."""
        while processes := self._processes(node):
            for pid in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _processes(self, node: int) -> dict[int, bytes]:
        """Command lines by process; those that have ended are left out."""
        found = {}
        for pid in map(int, _ip("netns", "pids", self._space(node), check=False).stdout.split()):
            try:
                if command := Path(f"/proc/{pid}/cmdline").read_bytes():
                    found[pid] = command
            except OSError:
                continue
        return found


def _address(node: int) -> str:
    return f"{_NETWORK}.{node + 1}"


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def main() -> None:
    nodes = ThreeNodes(Path(sys.argv[1]))
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        nodes.build()
        print("built", flush=True)
        over.wait()
    except BaseException as error:
        print(f"not built: {error}", flush=True)
        raise
    finally:
        nodes.remove()


if __name__ == "__main__":
    main()
