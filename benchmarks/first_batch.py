"""Owns how the start of a command is measured: from its start to the moment when its bar shows the first images, as on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import Cost

#: What tqdm draws once there are samples: `cache:  50%|█████     | 1/2 [`.
_BAR = re.compile(rb"[1-9]\d*/\d+ \[")

_TICKS = os.sysconf("SC_CLK_TCK")


def until_first_batch(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Seconds until the first batch is done, and processor seconds of the command and of all its children until then.

    The command is killed there: what it does later does not count.

    Raises:
        RuntimeError: it ended before; with what it printed.
    """
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while not _BAR.search(shown):
            try:
                part = os.read(ours, 65536)
            except OSError:  # nobody holds the terminal any more
                part = b""
            if not part:
                raise RuntimeError(f"{' '.join(command)}: no first batch\n{shown.decode(errors='replace')}")
            shown += part
        return Cost(time.perf_counter() - start, _cpu_seconds(process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def _cpu_seconds(session: int) -> float:
    """Of all processes of a session, and of the children that they have waited for."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                # Behind the name in brackets: state, parent, group, session, …; times from the 12th field on.
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS
