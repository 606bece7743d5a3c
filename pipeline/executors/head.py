"""Owns whether a cluster's head still answers. Ray itself waits for a minute, then ends the process where it stands."""

from __future__ import annotations

import socket
import time

from ...storage_schemas.errors import TeachonceError

#: Seconds between two checks, and for how long in a row none may succeed. A head that is restarted is back before.
SECONDS_BETWEEN_LOOKS, SECONDS_OF_SILENCE = 5.0, 40.0

#: Where work was lost: how often to try at once, a second apart.
TRIES = 3


class ClusterEnded(TeachonceError):
    """The Ray cluster of a run is gone."""


class RayHead:
    """The head of a cluster.

    Args:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._last_look = self._last_answer = time.monotonic()

    def look(self) -> None:
        """Check whether it answers, unless the last check was a moment ago.

        Raises:
            ClusterEnded: it has not for a while.
        """
        now = time.monotonic()
        if now - self._last_look < SECONDS_BETWEEN_LOOKS:
            return
        self._last_look = now
        if is_reachable(self._address, seconds=2):
            self._last_answer = now
        elif now - self._last_answer >= SECONDS_OF_SILENCE:
            raise self._ended()

    def check(self) -> None:
        """Look now, because work was lost.

        Raises:
            ClusterEnded: it does not answer.
        """
        for attempt in range(TRIES):
            if attempt:
                time.sleep(1)
            if is_reachable(self._address, seconds=2):
                return
        raise self._ended()

    def _ended(self) -> ClusterEnded:
        return ClusterEnded(
            "the Ray cluster has ended",
            code="ray-cluster-ended",
            where=self._address,
            hint="start it again, then run the same command again; what was finished is kept",
        )


def is_reachable(address: str, *, seconds: float) -> bool:
    """Whether something listens at `HOST:PORT`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError:
        return False
    return True
