"""Owns a log in a bucket: object stores add nothing to an object, so it is written anew, now and then."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

from .place import Place

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: A log is sent at most so often, whatever is flushed, and when it is closed. Nothing relies on what lies between.
SECONDS_BETWEEN = 5.0


class BucketLog(io.RawIOBase):
    """Open for appending."""

    def __init__(self, place: Place, name: str) -> None:
        super().__init__()
        self._place, self._name = place, name
        try:
            self._content = bytearray(place.read(name))
        except FileNotFoundError:
            self._content = bytearray()
        self._sent, self._sent_at = len(self._content), float("-inf")

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        before = len(self._content)
        self._content += data
        return len(self._content) - before

    def flush(self) -> None:
        if not self.closed and time.monotonic() - self._sent_at >= SECONDS_BETWEEN:
            self._send()

    def close(self) -> None:
        if not self.closed:
            self._send()
        super().close()

    def _send(self) -> None:
        if len(self._content) > self._sent:
            self._place.write(self._name, bytes(self._content), durable=False)
            self._sent, self._sent_at = len(self._content), time.monotonic()
