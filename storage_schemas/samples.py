"""Owns sample keys and the members of a shard: what a WebDataset tar written here holds, byte for byte."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import msgspec

#: Orders of rows: bytewise by the keys, which are hashes, so that classes and sources are mixed; or as the sources give them,
#: bytewise by paths.
Order = Literal["hash", "source"]
ORDERS: tuple[Order, ...] = get_args(Order)

#: Characters of a key: blake2b-128 in hexadecimal. Fixed length, no dots, so WebDataset never splits or merges it.
KEY_LENGTH = 32

#: The kind of samples that there was first. Files name any other kind, and leave this one out.
IMAGE = "image"

#: Size of a tar block, and of a member's header.
TAR_BLOCK = 512


def sample_key(corpus_name: str, path: str) -> str:
    """The key of the image at `path` (relative, POSIX) in the corpus: the same on every machine and run."""
    return hashlib.blake2b(f"{corpus_name}\0{path}".encode(), digest_size=KEY_LENGTH // 2).hexdigest()


def content_digest(data: bytes | memoryview) -> str:
    """blake2b-128 of an image file's bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def shard_name(shard: int) -> str:
    """Six digits: the unit key, and the stem of the tar and its index."""
    return f"{shard:06d}"


def sample_metadata(*, path: str, row: int, digest: str, label: str | None) -> bytes:
    """The content of a sample's `KEY.json` member: canonical JSON, by what writes such texts and numbers ten times as fast."""
    fields: dict[str, str | int] = {"digest": digest} if label is None else {"digest": digest, "label": label}
    return msgspec.json.encode({**fields, "path": path, "row": row})


def member_key(header: bytes) -> str:
    """The key in the name field of a tar member's 512-byte header (`KEY.EXT`), or '' if it is no such header."""
    name, _, _ = header[:100].partition(b"\0")
    return name[:KEY_LENGTH].decode("ascii", "replace") if name[KEY_LENGTH : KEY_LENGTH + 1] == b"." else ""
