"""Owns the number of cores that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

#: Where Linux says how much processor time a container gets: microseconds, and in how many ("max" for no limit).
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

_assigned: int | None = None


def usable_cores() -> int:
    """Cores for this process: those that it is bound to, its container's share of them, and what its executor gave it."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota() or cores, _assigned or cores))


def assign_cores(cores: int | None) -> None:
    """Say how many cores an executor gave to this process, which shares its machine with others; None for all."""
    global _assigned
    _assigned = cores


def _quota() -> int | None:
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroups of this version, or "max"
        return None
