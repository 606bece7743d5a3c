"""Owns programs that were started: how they ended, and what their last line must be."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fault import check

#: Words of a command line.
Words = Sequence[object]


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def last(self) -> str:
        """Its last line."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


class Cold:
    """A program that is started by the system, as an object like those of `Room.start`.

    Args:
        words: of its command line.
        env: more of its environment.
        shown: whether a line of its stderr counts.
    """

    def __init__(
        self, words: Words, env: Mapping[str, str], *, shown: Callable[[str], bool] = lambda line: True
    ) -> None:
        self._shown = shown
        self._files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115  # read at the end
        self._process = subprocess.Popen(
            [str(word) for word in words],
            stdout=self._files[0],
            stderr=self._files[1],
            start_new_session=True,
            env={**os.environ, **env},
        )
        self.pid = self._process.pid
        self.largest_mb = 0.0

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code. `largest_mb` is its largest memory then, in MiB."""
        if self._process.returncode is None:
            _, status, used = os.wait4(self.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self.largest_mb = used.ru_maxrss / 1024
        return self._process.returncode

    def communicate(self) -> tuple[str, str]:
        """All that it has written to stdout and stderr, once it has ended."""
        self.wait()
        for file in self._files:
            file.seek(0)
        stdout, stderr = (file.read() for file in self._files)
        return stdout, "\n".join(line for line in stderr.splitlines() if self._shown(line))


def wait(process: Any) -> Done:
    """The end of what `Room.start` or `Room.cold` started."""
    stdout, stderr = process.communicate()
    return Done(process.wait(), stdout, stderr)


def check_one_line(done: Done, *parts: str, code: int = 1) -> str:
    """It has ended with this code, and a last line that is an error with these parts; no traceback. Returns the line's code in brackets.

    Raises:
        Unmet: it has not.
    """
    check("Traceback" not in done.stderr, f"a traceback: {done.last}")
    check(done.code == code, f"exit code {done.code} instead of {code}: {done.last}")
    check(done.last.startswith("Error: "), f"no error line: {done.last}")
    for part in parts:
        check(part in done.stderr, f"`{part}` is not said: {done.last}")
    return done.last
