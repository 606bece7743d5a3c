"""Owns the room of a run: images, programs that are started, outputs of undisturbed runs, and the comparison with them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from .fault import check

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent

#: Words of a command line.
Words = Sequence[object]

#: What differs from run to run: seconds, and what is written for people to watch a training.
_NOT_COMPARED = {"timings", "run"}


def beside(name: str) -> ModuleType:
    """A module of the tests' folder, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE.parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


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


@dataclass
class Room:
    """Where faults are provoked.

    Attributes:
        folder: of all that is written; its path is short, since sockets lie there.
        images: class folders of images.
        kills: how many times a process is killed at random, over all ways of working.
        seed: of these moments.
        only_case: the number of the one case of kills that is wanted; None for all.
    """

    folder: Path
    images: Path
    kills: int = 200
    seed: int = 0
    only_case: int | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)
    _owner: Any = None
    _remembered: dict[object, Any] = field(default_factory=dict)

    def case(self, name: str = "case") -> Path:
        """A new folder."""
        folder = self.folder / f"{name}-{next(self._names)}"
        folder.mkdir(parents=True)
        return folder

    def remembered(self, key: object, make: Callable[[], Any]) -> Any:
        """What was made for this key, once."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    @cached_property
    def _tests(self) -> ModuleType:
        """The tests' own fixtures: what they share is there as long as this process."""
        module = beside("conftest")
        if module.shared.HERE not in os.environ:  # else a test runs this, and all tests share what is there
            self._owner = module.shared.Owner()
        return module

    @cached_property
    def _warm(self) -> Any:
        script = HERE.parent / "warm_python.py"
        folder = self._tests.shared.share("warm", [sys.executable, script, "FOLDER/socket"], ready="listening")
        return beside("warm_python").WarmPython(folder / "socket")

    @cached_property
    def cluster(self) -> str:
        """The address of a Ray cluster of two CPUs, whose workers have the hook."""
        tests = self._tests
        with mock.patch.dict(os.environ, self.hooked):
            return str(tests.start_cluster("faults").address)

    @cached_property
    def object_store(self) -> Any:
        """An S3 server on this machine."""
        command = [sys.executable, HERE.parent / "s3_server.py"]
        folder = self._tests.shared.share("s3", command, ready="Running on")
        return self._tests.ObjectStore((folder / "printed").read_text().split("Running on ")[1].split()[0])

    def close(self) -> None:
        """End what has started."""
        if self._owner is not None:
            self._owner.close()

    @cached_property
    def control(self) -> Path:
        """The folder that tells the hook what to do."""
        return self.case("control")

    @property
    def hooked(self) -> dict[str, str]:
        """The environment of programs with the hook."""
        path = f"{HERE / 'hook'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        return {"FAULTS_CONTROL": str(self.control), "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}

    def start(self, words: Words, *, hook: bool = False) -> Any:
        """A teachonce command that runs, in a process group of its own."""
        program = [HERE / "watched.py"] if hook else ["-m", "teachonce"]
        env = {**os.environ, **({"FAULTS_CONTROL": str(self.control)} if hook else {}), "RAY_AUTH_MODE": "disabled"}
        return self._warm.start("-W", "ignore", *program, *words, env=env, cwd=self.folder, new_session=True)

    def run(self, words: Words) -> Done:
        """A teachonce command to its end."""
        return wait(self.start(words))

    def finish(self, words: Words) -> Done:
        """One that must end well."""
        done = self.run(words)
        check(done.code == 0, f"exit code {done.code}: {done.last}")
        return done

    def cold(self, words: Words, *, env: Mapping[str, str] | None = None, hook: bool = False) -> Cold:
        """A teachonce command as a new process of the system, with more in its environment."""
        environment = {**(self.hooked if hook else {}), **(env or {})}
        return Cold([sys.executable, "-W", "ignore", "-m", "teachonce", *words], environment)


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


def tree(folder: Path) -> dict[str, bytes]:
    """What has to be the same, by path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not _NOT_COMPARED & set(p.parts)
    }


def check_same(found: Path, calm: Path) -> None:
    """The bytes of two outputs are equal.

    Raises:
        Unmet: names files that differ.
    """
    left, right = tree(found), tree(calm)
    differ = [name for name in sorted(left.keys() | right.keys()) if left.get(name) != right.get(name)]
    check(not differ, f"{len(differ)} files differ from an undisturbed run's: {', '.join(differ[:5])}")


def check_one_line(done: Done, *parts: str, code: int = 1) -> str:
    """It has ended with this code, and a last line that is an error with these parts; no traceback. Returns the line's code in brackets.

    Raises:
        Unmet: it has not.
    """
    check(
        "Traceback" not in done.stderr, f"a traceback: {done.stderr if os.environ.get('FAULTS_DEBUG') else done.last}"
    )
    check(done.code == code, f"exit code {done.code} instead of {code}: {done.last}")
    check(done.last.startswith("Error: "), f"no error line: {done.last}")
    for part in parts:
        check(part in done.stderr, f"`{part}` is not said: {done.last}")
    return done.last


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(source, target, symlinks=True)
    return target
