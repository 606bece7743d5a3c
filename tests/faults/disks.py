"""Faults: outputs on a disk that is full, has no inodes left, is read-only, or fails; inputs that cannot be read for a while."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from . import mounts
from .fault import SAME_BYTES, Fault, check
from .orders import countermand, order, wait_until_it_stops
from .programs import check_one_line, wait
from .room import Room, check_same, copied
from .ways import ALONE, Way, Works

_KIND = "Disks"


def _stop_half_way(room: Room, way: Way, options: Callable[[Path, Path], str], enough: str, said: str) -> str:
    """The output on a file system that has room for half of what is to come."""
    works = Works.of(room)
    calm = way.undisturbed(works)
    folder = way.folder(room)
    way.before(works, folder)
    before = folder.rename(room.folder / "before")
    try:
        with mounts.in_memory(folder, options(before, calm)):
            shutil.copytree(before, folder, dirs_exist_ok=True)
            line = check_one_line(wait(way.start(works, folder)[0]), said)
            left = [at for at in folder.rglob("*") if at.name.endswith((".tmp", ".partial"))]
            check(not left, f"unfinished files are left: {left[:3]}")
            mounts.remount(folder, enough)
            way.finish(works, folder)
            way.check_same(works, folder)
    finally:
        shutil.rmtree(before)
    return f"`{_code(line)}`; the same bytes"


def _code(line: str) -> str:
    return line.rpartition("[")[2].partition("]")[0]


def _half_full(before: Path, calm: Path) -> str:
    there = mounts.pages(before)
    return f"size={there + (mounts.pages(calm) - there) // 2}"


def _half_numbered(before: Path, calm: Path) -> str:
    there = mounts.entries(before)
    return f"size=1g,nr_inodes={there + max(3, (mounts.entries(calm) - there) // 2)}"


def full(room: Room, way: Way) -> str:
    return _stop_half_way(room, way, _half_full, "size=1g", "the disk is full")


def no_inodes(room: Room, way: Way) -> str:
    return _stop_half_way(room, way, _half_numbered, "nr_inodes=1m", "inodes are used up")


def read_only(room: Room, way: Way) -> str:
    """The output on a file system that can only be read, for a while."""
    works = Works.of(room)
    way.undisturbed(works)
    folder = way.folder(room)
    way.before(works, folder)
    before = folder.rename(room.folder / "before")
    with mounts.in_memory(folder, "size=1g"):
        shutil.copytree(before, folder, dirs_exist_ok=True)
        shutil.rmtree(before)
        mounts.remount(folder, "ro")
        line = check_one_line(wait(way.start(works, folder)[0]), "read-only")
        mounts.remount(folder, "rw")
        way.finish(works, folder)
        way.check_same(works, folder)
    return f"`{_code(line)}`; the same bytes"


def fails_on_writing(room: Room, way: Way) -> str:
    """The file of the disk lies where no room is left: the disk itself says that there is some, and writing gives EIO."""
    works = Works.of(room)
    calm = way.undisturbed(works)
    folder, cellar = way.folder(room), room.case("cellar")
    with mounts.in_memory(cellar, "size=1g"):
        disk = mounts.Disk(cellar / "image", folder)
        disk.make()
        with disk.mounted():
            way.before(works, folder)
        used = disk.image.stat().st_blocks * 512
        mounts.remount(cellar, f"size={used + mounts.pages(calm) // 2}")
        with disk.mounted():
            line = check_one_line(wait(way.start(works, folder)[0]))
        mounts.remount(cellar, "size=1g")
        disk.mend()
        with disk.mounted():
            shutil.rmtree(folder / "lost+found")
            way.finish(works, folder)
            way.check_same(works, folder)
    return f"`{_code(line)}`; after `e2fsck` the same bytes"


def fails_on_reading(room: Room, name: str, source: Callable[[Works], Path], lost: str, command: str) -> str:
    """Inputs on a disk of which blocks cannot be read for a while."""
    works = Works.of(room)
    original, place = source(works), room.folder / "disk"
    disk = mounts.Disk(room.case("image") / "image", place)
    disk.make()
    lost_file = next(iter(sorted(original.glob(lost)))).relative_to(original)
    with disk.mounted():
        copied(original, place / name)
        last = shutil.move(place / name / lost_file, disk.image.parent / "last")
        os.sync()
        shutil.copy2(last, place / name / lost_file)  # behind all others
    with disk.mounted():
        words = [str(place / name) if word == original else word for word in getattr(works, command)(Path("/none"))]
        outs = [room.case("read") / "out" for _ in range(2)]
        calm, disturbed = ([*words[:-1], out, "--executor", "serial"] for out in outs)
        room.finish(calm)
        disk.lose(place / name / lost_file)
        line = check_one_line(room.run(disturbed))
        disk.find()
        room.finish(disturbed)
        check_same(outs[1], outs[0])
    return f"`{_code(line)}`; the same bytes"


def shorter_meanwhile(room: Room) -> str:
    """Tars lose their second half while `cache` has them open."""
    works, way = Works.of(room), ALONE["cache"]
    shards = copied(works.shards, room.case("cut") / "out")
    words = [str(shards) if word == works.shards else word for word in works.cache(room.case())]
    calm, disturbed = room.case(), room.case()
    room.finish([*words[:-1], calm / "out", *("--executor", "serial")])
    order(room, disturbed, 60, number=signal.SIGSTOP)
    process = room.start([*words[:-1], disturbed / "out", *("--executor", "serial")], hook=True)
    wait_until_it_stops(process)
    tars = sorted(shards.glob("*.tar"))[3:]
    whole = {tar: tar.read_bytes() for tar in tars}
    for tar, data in whole.items():
        with tar.open("r+b") as file:
            file.truncate(len(data) // 2)
    countermand(room)
    process.send_signal(signal.SIGCONT)
    line = check_one_line(wait(process))
    for tar, data in whole.items():
        tar.write_bytes(data)
    room.finish([*words[:-1], disturbed / "out", *("--executor", "serial")])
    check_same(disturbed, calm)
    return f"`{_code(line)}`, no signal of the kernel ({way.stage} maps no file); the same bytes"


def _of_each(
    stages: Sequence[str], run: Callable[..., str], name: str, provoked: str, must: str = SAME_BYTES
) -> list[Fault]:
    return [
        Fault(
            name=f"{name}: {stage}",
            kind=_KIND,
            provoked=provoked,
            must=must,
            run=functools.partial(run, way=ALONE[stage]),
        )
        for stage in stages
    ]


_MOST = (
    "shard",
    "vectors",
    "pretrain",
    "cache",
    "cache --grow",
    "distill",
    "recode",
    "verify --repair",
    "retry-failed",
)

_READ: dict[str, tuple[str, Callable[[Works], Path], str, str]] = {
    "shard, images": ("images", lambda works: works.room.images, "*/*1*.jpg", "shard"),
    "cache, tars": ("shards", lambda works: works.shards, "000004.tar", "cache"),
    "distill, tars": ("shards", lambda works: works.shards, "000004.tar", "distill"),
    "distill, store": ("store", lambda works: works.targets, "embedding/c/4/0/0", "distill"),
    "recode, store": ("store", lambda works: works.targets, "embedding/c/4/0/0", "recode"),
}

FAULTS = (
    *_of_each(_MOST, full, "disk full", "output on a tmpfs with room for half of it, enlarged afterwards"),
    *_of_each(_MOST, no_inodes, "no inodes", "output on a tmpfs with inodes for half of its files (`nr_inodes`)"),
    *_of_each(
        ("shard", "cache", "cache --grow", "distill", "verify --repair", "retry-failed"),
        read_only,
        "read-only",
        "output on a tmpfs that is mounted read-only, and writable afterwards",
    ),
    *_of_each(
        ("shard", "cache", "distill"),
        fails_on_writing,
        "EIO on writing",
        "output on ext4 whose block device finds no room below for half of it: writing and fsync give EIO",
    ),
    *(
        Fault(
            name=f"EIO on reading: {name}",
            kind=_KIND,
            provoked="inputs on ext4 whose block device has lost a part, with no page in memory; later it is back",
            must=f"{SAME_BYTES}; no image is recorded as bad",
            run=functools.partial(fails_on_reading, name=each[0], source=each[1], lost=each[2], command=each[3]),
        )
        for name, each in _READ.items()
    ),
    Fault(
        name="tars are cut while they are open",
        kind=_KIND,
        provoked="`cache` is halted, its tars lose their second half, it goes on (a mapped file would end it with SIGBUS)",
        must=SAME_BYTES,
        run=shorter_meanwhile,
    ),
)
