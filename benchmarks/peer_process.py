"""Owns processes that are measured from outside: commands from start to exit, and peers that serve epochs; with all they start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Cost, cost
from peer_environment import SCRIPTS

#: Some peers wait for ever for a process of theirs that has died.
COMMAND_SECONDS, ANSWER_SECONDS = 1800, 600


def command(words: Sequence[str], log: Path, threads: int, packages: str = "") -> Cost:
    """A whole process, from start to exit. Its output goes to `log`, whose end is shown where it fails.

    Args:
        packages: folders of packages beside those of its environment.
    """
    with log.open("wb") as file:

        def work() -> None:
            process = subprocess.Popen(
                words,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_environment(threads, packages),
                cwd=log.parent,
                start_new_session=True,
            )
            try:
                code = process.wait(COMMAND_SECONDS)
            except BaseException:
                _end(process)
                raise
            if code:
                raise subprocess.CalledProcessError(code, words)

        try:
            return cost(work)
        except subprocess.SubprocessError as error:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{words[0]} {words[1]} failed: {error}\n{end}") from error


class Peer:
    """A script of `peers/` that serves epochs, held open so that an epoch costs no start."""

    def __init__(self, python: str, script: str, given: Mapping[str, Any], log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [python, str(SCRIPTS / script), json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(1),
            text=True,
            start_new_session=True,
        )
        self.name = script
        self.versions: dict[str, str] = self._answer()["versions"]

    def read(self, mode: str, workers: int, epochs: int, samples: int) -> Cost:
        """Read so many epochs of so many samples; their cost with that of every process that they run in."""
        before = tree_cpu_seconds(self._process.pid)
        assert self._process.stdin is not None
        print(mode, workers, epochs, file=self._process.stdin, flush=True)
        answer = self._answer()
        expected = epochs * samples
        assert answer["count"] == expected, f"{self.name} gave {answer['count']} of {expected} samples"
        return Cost(answer["wall"], tree_cpu_seconds(self._process.pid) - before)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            _end(self._process)
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        too_long = threading.Timer(ANSWER_SECONDS, _end, [self._process])
        too_long.start()
        line = self._process.stdout.readline()
        too_long.cancel()
        if not line:
            end = "\n".join(Path(os.fsdecode(self._log.name)).read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.name} ended:\n{end}")
        found: dict[str, Any] = json.loads(line)
        return found


def tree_cpu_seconds(pid: int) -> float:
    """Processor time of a process, of its living descendants, and of those of theirs that ended and were waited for."""
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                # The name, in brackets, may hold spaces.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    found, ticks = [pid], 0
    for one in found:
        found += [child for child, (parent, _) in stats.items() if parent == one]
        ticks += stats.get(one, (0, 0))[1]
    return ticks / os.sysconf("SC_CLK_TCK")


def _end(process: subprocess.Popen) -> None:
    """End a process with all that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(threads: int, packages: str = "") -> dict[str, str]:
    """No peer asks a network, and each has the same number of torch threads."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": packages,
    }
