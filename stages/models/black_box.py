"""Owns what a teacher that is a function of the user's own declares: its identity, what it gives, and how it may be called. Imports no torch."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import InputError, MismatchError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import brief
from .names import PYTHON_PREFIX

#: Seconds that another process may take to import the user's module and say what it declares.
_SECONDS = 300

#: Uint8 images (N, size, size, 3) to arrays by the names of targets: (N, …), of any float type.
Answer = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]


class TryAgain(Exception):
    """Raised by a function that was told to come back later: by a rate limit, or a server that is busy.

    Attributes:
        seconds: to wait at least, as a `Retry-After` says; None for what the number of tries says.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__("busy" if seconds is None else f"busy for {seconds:g} s")
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class BlackBox:
    """A teacher that is a function.

    Attributes:
        name: what it is called in stores.
        version: changes whenever its outputs do: a digest of weights, or the version of a service. With name and shapes it is the identity of
            the teacher, so two calls of the factory must declare the same, in any process.
        answer: images to targets. It gives the same for the same image, whatever is beside it in a call.
        embedding: channels of the target `embedding`; None for a teacher of logits.
        class_names: of the logits, in their order; empty for a teacher of embeddings.
        maps: shapes of further targets by name, for one image: (token, channel), or (channel, y, x).
        size: side of the square images, in pixels.
        interpolation, crop_pct: of a centre view, see `Preprocess`.
        batch_size: images in one call, at most.
        calls_per_second: at most, in each process; None for no limit.
        tries: of a call, before the unit fails.
        first_wait, longest_wait: seconds before the second try, twice as many before each further one, and at most.
        retry_on: exceptions after which a call is tried again, beside `TryAgain`.
        price_per_call, price_per_image: in `currency`; each try counts.
    """

    name: str
    version: str
    answer: Answer = field(repr=False)
    embedding: int | None = None
    class_names: tuple[str, ...] = ()
    maps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    size: int = 224
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    batch_size: int = 16
    calls_per_second: float | None = None
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    retry_on: tuple[type[Exception], ...] = (OSError,)
    price_per_call: float = 0.0
    price_per_image: float = 0.0
    currency: str = ""

    def identity(self) -> dict[str, Json]:
        """All that decides its outputs, as far as it says."""
        return {
            "name": self.name,
            "version": self.version,
            "embedding": self.embedding,
            "classes": list(self.class_names),
            "maps": {name: list(shape) for name, shape in sorted(self.maps.items())},
            "size": self.size,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
        }

    def _counts(self) -> dict[str, int]:
        counts = {"size": self.size, "batch_size": self.batch_size, "tries": self.tries}
        return counts if self.embedding is None else {**counts, "embedding": self.embedding}

    def check(self, where: str) -> None:
        """
        Raises:
            InputError: something that cannot be.
        """
        wrong = None
        if not (isinstance(self.name, str) and self.name and isinstance(self.version, str) and self.version):
            wrong = "a name and a version, both texts that are not empty", f"{self.name!r}, {self.version!r}"
        elif (self.embedding is None) == (not self.class_names):
            wrong = (
                "either `embedding` (its channels) or `class_names` (of its logits)",
                "both" if self.class_names else "neither",
            )
        elif isinstance(self.class_names, str) or len(set(self.class_names)) < len(self.class_names):
            wrong = "a sequence of class names, none of them twice", repr(self.class_names)
        elif any(len(shape) not in (2, 3) for shape in self.maps.values()):
            wrong = "maps of (token, channel) or (channel, y, x)", str(dict(self.maps))
        elif {"embedding", "logits"} & self.maps.keys():
            wrong = "other names for maps", ", ".join(self.maps)
        elif low := [f"{name} {value}" for name, value in self._counts().items() if value < 1]:
            wrong = "sizes, batches and tries of at least 1", ", ".join(low)
        elif self.calls_per_second is not None and not self.calls_per_second > 0:
            wrong = "more than 0 calls a second, or None for no limit", str(self.calls_per_second)
        if wrong is not None:
            raise InputError(
                "a function teacher declares what cannot be",
                code="function-teacher-malformed",
                where=where,
                expected=wrong[0],
                found=wrong[1],
                hint="see docs/teachers.md",
            )


def load_black_box(typed: str) -> BlackBox:
    """What the factory that `python:MODULE:FACTORY` names gives: it is called without arguments.

    Raises:
        InputError: no such module or function; it fails, or gives something else than a `BlackBox`.
    """
    module, colon, function = typed.removeprefix(PYTHON_PREFIX).partition(":")
    if not (colon and module and function):
        raise InputError(
            "a function teacher is named by its module and its factory",
            code="function-teacher-unnamed",
            where=f"--teacher {typed}",
            expected=f"{PYTHON_PREFIX}MODULE:FACTORY",
            found=typed,
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a script has its own folder there, and modules beside the work are meant
    try:
        box = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever the user's own code raises
        raise InputError(
            "a function teacher cannot be made",
            code="function-teacher-failed",
            where=typed,
            expected="a module that can be imported, and a function that is called without arguments",
            found=f"{type(error).__name__}: {brief(error)}",
            hint="install the module, or start the command in its folder",
        ) from error
    if not isinstance(box, BlackBox):
        raise InputError(
            "a function teacher's factory gives something else",
            code="function-teacher-malformed",
            where=typed,
            expected="a BlackBox",
            found=type(box).__name__,
            hint="from teachonce.stages.models.black_box import BlackBox",
        )
    box.check(typed)
    return box


def check_identity(typed: str, box: BlackBox) -> None:
    """Refuse a factory that declares something else in another process: its store could not be gone on with.

    Raises:
        MismatchError: naming the field.
        InputError: the factory fails there.
    """
    program = "import sys; from teachonce.stages.models.black_box import print_identity; print_identity(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, typed],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "random"},
    )
    if done.returncode:
        raise InputError(
            "a function teacher cannot be made in another process",
            code="function-teacher-failed",
            where=typed,
            found=(done.stderr.strip().splitlines() or ["no reason"])[-1],
            hint="it must be made anew in each worker",
        )
    there, here = json.loads(done.stdout.splitlines()[-1]), box.identity()
    for name, value in here.items():
        if there.get(name) != value:
            raise MismatchError(
                "a function teacher's identity changes from process to process",
                code="function-teacher-changes",
                where=f"{typed}, {name}",
                expected=f"{value} (here)",
                found=f"{there.get(name)} (in another process)",
                hint="declare what is the same in each: a digest of weights, the version of the service",
            )


def print_identity(typed: str) -> None:
    """For `check_identity`, in another process."""
    print(json.dumps(load_black_box(typed).identity()))
