"""Owns file systems that are mounted for a fault: small ones in memory, and ones on a block device whose blocks can be lost."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .fault import Lacking

#: A file takes pages.
PAGE = 4096

_BLOCK = 4096


def _system(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lacking(f"`{' '.join(map(str, words[:4]))} …` failed: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def in_memory(folder: Path, options: str) -> Iterator[None]:
    """A tmpfs at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    _system("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def remount(folder: Path, options: str) -> None:
    """Other options for what is mounted there."""
    _system("mount", "-o", f"remount,{options}", folder)


def pages(folder: Path) -> int:
    """Bytes that a tmpfs takes for the files of a folder."""
    sizes = (at.stat().st_size for at in folder.rglob("*") if at.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def entries(folder: Path) -> int:
    """Files and folders in a folder, and itself."""
    return 1 + sum(1 for _ in folder.rglob("*"))


@dataclass(frozen=True)
class Disk:
    """An ext4 file system in a file, behind a block device.

    Attributes:
        image: the file.
        folder: where it is mounted.
    """

    image: Path
    folder: Path

    def make(self, megabytes: int = 64) -> None:
        """An empty one, whose file has room only for what was written."""
        if shutil.which("mkfs.ext4") is None:
            raise Lacking("mkfs.ext4 is missing")
        with self.image.open("wb") as file:
            file.truncate(megabytes << 20)
        lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        _system("mkfs.ext4", "-q", "-F", "-b", _BLOCK, "-E", lazy, self.image)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        _system("mount", "-o", "loop,noinit_itable", self.image, self.folder)
        try:
            yield
        finally:
            subprocess.run(["umount", str(self.folder)], check=False, capture_output=True)

    def mend(self) -> None:
        """What a system does when it finds it again."""
        done = subprocess.run(["e2fsck", "-fy", str(self.image)], capture_output=True, text=True, check=False)
        if done.returncode > 2:
            raise Lacking(f"e2fsck: {done.stdout.strip()[-200:]}")

    def lose(self, file: Path) -> None:
        """The blocks of a file, and all behind them, cannot be read any more. Nothing of them is in memory."""
        found = re.findall(r"^ +\d+: +\d+\.\. +\d+: +(\d+)\.\.", _system("filefrag", "-v", f"-b{_BLOCK}", file), re.M)
        first = min(int(number) for number in found)
        shutil.copyfile(self.image, self._whole)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        with self.image.open("r+b") as image:
            image.truncate(first * _BLOCK)

    def find(self) -> None:
        """They can be read again."""
        with self._whole.open("rb") as whole, self.image.open("r+b") as image:
            shutil.copyfileobj(whole, image)
        Path("/proc/sys/vm/drop_caches").write_text("3")

    @property
    def _whole(self) -> Path:
        return self.image.with_suffix(".whole")
