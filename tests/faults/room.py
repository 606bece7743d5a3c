"""Owns the room of a run: where its images and outputs are, and how programs are started in it; and the comparison of outputs."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from .fault import check
from .programs import Cold, Done, Words, wait

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent

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


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder."""
    shutil.copytree(source, target, symlinks=True)
    return target
