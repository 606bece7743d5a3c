"""Which processes of Ray are workers of ours: by the titles that they have while they wait and while they do a task."""

from __future__ import annotations

import re

_OURS = re.compile(rb"ray::(RayWorker|[a-z-]+( --grow)?(: opening| \d{3,6}))")


def is_our_worker(command_line: bytes) -> bool:
    """Of `/proc/PID/cmdline`."""
    return _OURS.match(command_line) is not None
