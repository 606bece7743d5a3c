"""Owns the way to the model hub: one quiet try, and a one-line error where it fails."""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from ...storage_schemas.errors import InputError, TeachonceError
from .weights import brief

#: Loggers of libraries that log every retry and every file.
_NOISY = ("huggingface_hub", "timm", "transformers", "httpx")


@contextlib.contextmanager
def hub_access(where: str, hint: str) -> Iterator[None]:
    """Inside, files of the hub are fetched, or found in its cache; libraries print nothing.

    Where the hub's name cannot be resolved, its client looks into the cache only: its own tries take half a minute a
    file, and a line on stderr each.

    Raises:
        InputError: whatever goes wrong inside, on one line.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    reachable = offline or _can_resolve(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline or not reachable
    try:
        with one_line("cannot download from the hub", where, hint, code="hub-download-failed"):
            yield
    except InputError as error:
        if not reachable and error.code == "hub-download-failed":
            error.found = f"no network: {constants.ENDPOINT} cannot be found"
        raise
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextlib.contextmanager
def one_line(what: str, where: str, hint: str, *, code: str) -> Iterator[None]:
    """Inside, libraries print nothing; what they raise (they share no base class) is one clear line.

    Raises:
        InputError: with this text, and the library's own message as what was found.
    """
    try:
        with quiet_libraries():
            yield
    except TeachonceError:
        raise
    except Exception as error:
        raise InputError(what, code=code, where=where, found=brief(error), hint=hint) from error


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, open_clip (on the root logger), timm and the hub's client log nothing: what matters is raised or printed by us."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in _NOISY)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _can_resolve(endpoint: str) -> bool:
    if urllib.request.getproxies():
        return True  # then the proxy resolves names
    host = urllib.parse.urlsplit(endpoint).hostname or endpoint
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
