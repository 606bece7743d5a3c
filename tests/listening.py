"""What processes listen on, read from /proc: a driver, all that it has started, and their sockets."""

from __future__ import annotations

import socket
import sys
from pathlib import Path


def processes_of(driver: int, mark: str) -> list[Path]:
    """The driver and every process below it, or with this `NAME=value` in its environment: some overwrite theirs by a title."""
    parents, found = {}, {driver}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
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


def check_loopback_only(driver: int, mark: str, workers: set[int]) -> None:
    """A Ray that a driver started, and workers that its work runs in: all accept connections, on loopback alone."""
    processes = processes_of(driver, mark)
    found = [place for process in processes for place in listening(process)]
    names = {name for name, _ in found}
    assert names >= {"gcs_server", "raylet", Path(sys.executable).name}, found
    own = [Path("/proc") / str(worker) for worker in workers]
    assert set(own) <= set(processes)
    assert [worker for worker in own if not listening(worker)] == []
    assert len(found) > 5, found
    assert [(name, address) for name, address in found if address not in ("127.0.0.1", "::1")] == []


def _address(words: bytes) -> str:
    """The kernel prints addresses as 32-bit words of this machine's order."""
    data = b"".join(int.from_bytes(words[i : i + 4], "big").to_bytes(4, sys.byteorder) for i in range(0, len(words), 4))
    if len(data) == 16 and data.startswith(bytes(10) + b"\xff\xff"):
        data = data[12:]  # IPv4 in an IPv6 socket
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
