"""Works for the tests of decoding ahead: imported by their processes too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from teachonce.storage_schemas.errors import InputError


class Numbers:
    """A task is (number, count): arrays of `count` numbers and their squares, and the process that made them."""

    def layout(self, task: tuple[int, int]) -> Any:
        _, count = task
        return [("i8", (count,)), ("f4", (2, count))]

    def make(self, task: tuple[int, int], arrays: list[Any]) -> int:
        number, count = task
        numbers, squares = arrays
        numbers[:] = number + np.arange(count)
        squares[:] = numbers.astype(np.float32) ** 2
        return os.getpid()

    def close(self) -> None:
        pass


class Waiting(Numbers):
    """The same; a task waits until the file is there that is named by its number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, task: tuple[int, int], arrays: list[Any]) -> int:
        while not (self.folder / str(task[0])).exists():
            time.sleep(0.005)
        return super().make(task, arrays)


class Large:
    """A task is some bytes, and so is what is made of it: neither fits into a socket."""

    def __init__(self, padding: bytes = b"") -> None:
        self.padding = padding

    def layout(self, task: bytes) -> Any:
        return []

    def make(self, task: bytes, arrays: list[Any]) -> bytes:
        return task[::-1]

    def close(self) -> None:
        pass


class TwoArguments(Exception):
    """Is pickled, and cannot be read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


class Failing:
    """A task names what goes wrong."""

    def layout(self, task: str) -> Any:
        if task == "layout":
            raise OSError("no layout")
        return [("u1", (10,))]

    def make(self, task: str, arrays: list[Any]) -> Any:
        if task == "ours":
            raise InputError("it is empty", code="setting-empty", where="here", found=3, hint="give more")
        if task == "any":
            raise ValueError("wrong value")
        if task == "unreadable":
            raise TwoArguments("this", "that")
        if task == "ours, with what cannot be sent":
            raise InputError("it is open", code="setting-empty", found=Path(os.devnull).open())  # noqa: SIM115
        if task == "a result that cannot be sent":
            return lambda: None
        if task == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "exit":
            os._exit(3)
        return "done"

    def close(self) -> None:
        raise OSError("cannot be closed")


class Files:
    """A task is a name; the process says in that file that it opened something, and when it closed it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name: str | None = None

    def layout(self, task: str) -> Any:
        return []

    def make(self, task: str, arrays: list[Any]) -> None:
        self.name = task
        (self.folder / task).write_text("open")

    def close(self) -> None:
        if self.name is not None:
            (self.folder / self.name).write_text("closed")


class Unreadable:
    """Cannot be read in another process."""

    def __getstate__(self) -> dict[str, Any]:
        return {"made in": os.getpid()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ImportError("no such package there")

    layout, make, close = Numbers.layout, Numbers.make, Numbers.close
