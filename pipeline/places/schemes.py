"""Owns which places there are beside the local one, by the scheme of their URLs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .addresses import open_bucket, open_file
from .place import Place

#: From what stands behind `SCHEME://` to the place, and the full name in it.
Opener = Callable[[str], tuple[Place, str]]

#: Known in every process.
_OPENERS: dict[str, Opener] = {
    "file": open_file,
    **{scheme: partial(open_bucket, scheme) for scheme in ("s3", "gs", "az")},
}


def opener(scheme: str) -> Opener | None:
    """How URLs of this scheme are opened; None for one of no place."""
    return _OPENERS.get(scheme)


def register(scheme: str, opener: Opener) -> None:
    """Make one more kind of place known to `Location.of`, in this process."""
    _OPENERS[scheme] = opener


def unregister(scheme: str) -> None:
    """Forget it again."""
    del _OPENERS[scheme]
