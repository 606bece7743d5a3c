"""Owns what processes of torch.distributed have in common, whoever starts them: their patience, their network, how they lose each other."""

from __future__ import annotations

import os
import socket
import struct
import sys

#: How long ranks wait for one that measures or writes alone. One that dies is noticed at once, in other ways.
WAIT_SECONDS = 6 * 3600

LOOPBACK = "127.0.0.1"

#: Linux: asks for the IPv4 address of a network interface.
_SIOCGIFADDR = 0x8915


def stay_on_loopback() -> None:
    """Ranks on one machine: no other one can reach them. Where the user's environment names a network it is that."""
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")


def stay_on_network_of(address: str) -> None:
    """gloo talks over the network that has this address of the machine's own, if it is an IPv4 address and the user's environment names no network."""
    name = network_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def network_of(address: str) -> str | None:
    """The name of this machine's network interface with an IPv4 address; None where none has it, or the system does not tell."""
    if sys.platform != "linux":
        return None
    import fcntl

    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            try:
                found = fcntl.ioctl(asker, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no such address
        if socket.inet_ntoa(found[20:24]) == address:
            return name
    return None


def lost_contact(error: Exception) -> bool:
    """Whether another rank is gone, rather than that this one has an error of its own."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "c10d"))
