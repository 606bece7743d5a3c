"""Owns which bucket is meant, whoever asks for it, and how its objects are spelled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Bucket:
    """A bucket of an object store, or a container of Azure's.

    Attributes:
        scheme: `s3`, `gs` or `az`.
        bucket: its name.
        endpoint: the address of a server that is not the cloud's own; '' for the cloud's.
    """

    scheme: str
    bucket: str
    endpoint: str = ""

    def address(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.scheme}://{self.bucket}/{name}".rstrip("/")
