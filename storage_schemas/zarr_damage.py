"""Owns what Zarr raises over bytes that it did not write, as one clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from .errors import DamagedError

#: Zarr checks little of its metadata; what is wrong in it shows wherever it is first used.
_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def readable(what: str, *, code: str, where: object, hint: str) -> Iterator[None]:
    """Inside, arrays and groups are read.

    Raises:
        DamagedError: metadata or chunks are not what Zarr can read; `found` holds Zarr's own message.
    """
    try:
        with np.errstate(all="raise"):  # a fill value that its type cannot hold
            yield
    except _ERRORS as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(what, code=code, where=where, found=found, hint=hint) from error
