"""`teachonce --help` against importing click: whole processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import Bench, Cost, Line, cost, median_ms, pairs, slownesses


def run(bench: Bench) -> Iterator[Line]:
    """The module, and the installed command where there is one beside this Python."""
    commands = {"python -m teachonce --help": [sys.executable, "-m", "teachonce", "--help"]}
    installed = Path(sys.executable).with_name("teachonce")
    if installed.exists():
        commands["teachonce --help"] = [str(installed), "--help"]
    for what, command in commands.items():
        found = pairs(
            lambda c=command: _run(c),
            lambda: _run([sys.executable, "-c", "import click"]),
            max(7, bench.repeats),
        )
        wall, cpu = slownesses(found)
        note = f"{median_ms([o for o, _ in found])}, import click {median_ms([f for _, f in found])}"
        yield Line(what=what, corpus="", ratios=wall, cpu_ratios=cpu, at_most=2.5, note=note)


def _run(command: list[str]) -> Cost:
    return cost(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
