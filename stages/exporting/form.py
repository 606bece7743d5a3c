"""Owns the Protocol of a form that a student is exported to, and what is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.errors import InputError
from ..students.bundle import LoadedStudent

#: What other programs' loaders make of images: fp32 (image, …).
Run = Callable[[Sequence[Image.Image]], NDArray[np.float32]]

#: The largest file that the libraries of all forms read.
LARGEST_FILE = (2 << 30) - 1


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported.

    Attributes:
        bundle: as the user named it.
        student: on the CPU, in fp32.
        result: `logits`, `embedding` or `features`.
        pixels: what it takes, see `settings.export.PIXELS`.
    """

    bundle: str
    student: LoadedStudent
    result: str
    pixels: str

    def refuse(self, form: str, *, expected: str, found: str, hint: str) -> InputError:
        """The error for a student that has no exact counterpart in a form."""
        return InputError(
            f"this student has no exact counterpart in {form}",
            code="export-impossible",
            where=self.bundle,
            expected=expected,
            found=found,
            hint=hint,
        )


class Form(Protocol):
    """One form. It writes nothing itself."""

    #: What to type where students do not fit, and the libraries that it needs beyond those that are always there.
    name: str

    def files(self, export: Export) -> Mapping[str, bytes]:
        """The files of the export, by name.

        Raises:
            InputError: the form has no exact counterpart of this student.
            MissingDependency: a library is needed.
        """

    def reopen(self, export: Export, folder: Path) -> Run:
        """The export, loaded as its users load it: a function of images."""

    def how_to_load(self, folder: str) -> str:
        """A line of Python that loads it."""
