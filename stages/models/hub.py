"""Owns the way to the model hub: one quiet try, and one clear line where it fails."""

from __future__ import annotations

import contextlib
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from ...storage_schemas.errors import InputError
from .weights import brief

#: Loggers of libraries that tell of every try again and every file.
_NOISY = ("huggingface_hub", "timm", "transformers", "httpx")


@contextlib.contextmanager
def hub_access(where: str, hint: str) -> Iterator[None]:
    """Inside, files of the hub are fetched, or found in its cache; libraries say nothing.

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
        with quiet_libraries():
            yield
    except InputError:
        raise
    except Exception as error:  # network, hub and library errors share no base class
        found = brief(error) if reachable else f"no network: {constants.ENDPOINT} cannot be found"
        raise InputError("cannot download from the hub", where=where, found=found, hint=hint) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, open_clip (on the root logger), timm and the hub's client log nothing: what matters is raised or told by us."""
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
