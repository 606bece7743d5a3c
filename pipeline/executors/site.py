"""Owns what a node of a cluster must have in common with the command: versions of libraries, and the folder where relative names begin."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ...storage_schemas.errors import MismatchError

#: Distributions that decide bytes of outputs. Of a version the part behind `+` is left out: nodes with and without GPUs have other builds.
_DISTRIBUTIONS = ("numpy", "Pillow", "torch", "torchvision", "open_clip_torch", "timm", "zarr", "numcodecs")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a command runs.

    Attributes:
        versions: of Python, teachonce and the libraries that decide bytes, of those that are there.
        folder: the current one.
    """

    versions: Mapping[str, str]
    folder: str

    @staticmethod
    def here() -> Site:
        """Of this process."""
        return Site(versions=_versions(), folder=str(Path.cwd()))

    def enter(self) -> None:
        """In a worker: relative names, such as `local-dir:student`, mean what they mean to the command. A folder that is not there is left out.

        Raises:
            MismatchError: this node has other versions; names it.
        """
        differing = [name for name in self.versions if _versions().get(name) != self.versions[name]]
        if differing:
            raise MismatchError(
                "a node has other versions than the command",
                code="node-versions-differ",
                where=node_name(),
                expected=", ".join(f"{name} {self.versions[name]}" for name in differing),
                found=", ".join(f"{name} {_versions().get(name, 'absent')}" for name in differing),
                hint="install there what is expected, or start the node from the image of the others, then run the same command again",
            )
        with contextlib.suppress(OSError):
            os.chdir(self.folder)


def node_name() -> str:
    """This machine, for people: its name, and its address in the cluster."""
    import ray

    return f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"


@functools.cache
def _versions() -> Mapping[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    versions = {"Python": python, "teachonce": str(sys.modules[__name__.partition(".")[0]].__version__)}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name).partition("+")[0]
    return versions
