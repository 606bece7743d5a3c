"""Owns what processes of torch.distributed have in common, whoever starts them: their patience, their network, how they lose each other."""

from __future__ import annotations

import os
import sys

#: How long ranks wait for one that measures or writes alone. One that dies is noticed at once, in other ways.
WAIT_SECONDS = 6 * 3600

LOOPBACK = "127.0.0.1"


def stay_on_loopback() -> None:
    """Ranks on one machine: no other one can reach them. Where the user's environment names a network it is that."""
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


def lost_contact(error: Exception) -> bool:
    """Whether another rank is gone, rather than that this one has an error of its own."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "c10d"))
