"""Owns the rules for names, the same in folders and tars: which files are samples, which are junk, how a name becomes a path."""

from __future__ import annotations

from collections.abc import Container

from .images import image_extensions

#: Longer paths no file system takes.
MOST_PATH_BYTES = 4096


def has_extension(path: str, extensions: Container[str]) -> bool:
    """Whether a file's name has a stem and ends in one of these, lower case and with the dot."""
    stem, _, extension = path.rpartition("/")[2].rpartition(".")
    return bool(stem) and f".{extension.lower()}" in extensions


def is_image_name(path: str) -> bool:
    """Whether a file's name has an extension of an image that Pillow reads."""
    return has_extension(path, image_extensions())


def is_hidden_name(name: str) -> bool:
    """Whether one part of a path is what file managers and tools keep for themselves: `.ipynb_checkpoints`, `._x.jpg`, `__MACOSX`."""
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def plain_path(name: str) -> str:
    """A tar member's name as a path below the folder that was packed: `./a//b.jpg`, `/a/b.jpg` and `a/c/../b.jpg` are `a/b.jpg`.

    Where it leads out of the folder, it begins with `..` (nothing is opened by such a path). A name of nothing is `.`.
    """
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts) or "."


def shown(raw: bytes) -> str:
    """A name's bytes as text; those that are no UTF-8 as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")
