"""Owns the ways of working that are disturbed: each stage on each executor, its command, and what it starts from."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .fault import check
from .programs import Cold, Words, wait
from .room import CHECKOUT, Room, check_same, copied

SLICES = 3

_DEMO = CHECKOUT / "stages" / "demo"
TEACHER = ("--teacher", f"local-dir:{_DEMO / 'teacher'}")
_STUDENT = ("--student", f"local-dir:{_DEMO / 'student'}")
_ALONE = ("--executor", "serial")
_FEW = ("--threads", 1, "--decode-workers", 0)

#: Of a folder for one run: the command of a stage, whose outputs lie in that folder.
Command = Callable[["Works", Path], Words]


class Works:
    """Inputs of all stages, and their commands. What a stage needs of others is made when it is asked for, undisturbed."""

    def __init__(self, room: Room) -> None:
        self.room = room

    @staticmethod
    def of(room: Room) -> Works:
        """Those of this room, which all faults share."""
        works = room.remembered(Works, lambda: Works(room))
        assert isinstance(works, Works)
        return works

    @cached_property
    def shards(self) -> Path:
        return self._made("shards", self.shard)

    @cached_property
    def targets(self) -> Path:
        folder = self.room.case("targets")
        self.room.finish([*self.vectors(folder), *_ALONE])
        self.room.finish([*self.cache(folder), *_ALONE])
        return folder / "out"

    @cached_property
    def classes(self) -> Path:
        path = self.room.folder / "classes.txt"
        path.write_text("".join(f"{at.name}\n" for at in sorted(self.room.images.iterdir())))
        return path

    @cached_property
    def mended(self) -> Path:
        """The images, with other bytes in the place of the broken ones."""
        folder = copied(self.room.images, self.room.case("mended") / "images")
        first, second, *_ = sorted(folder.iterdir())
        for broken, kind in ((first / "empty.jpg", second), (second / "cut.jpg", first)):
            whole = next(one for one in sorted(kind.iterdir()) if one.name not in ("empty.jpg", "cut.jpg"))
            shutil.copy(whole, broken)
        return folder

    def _made(self, name: str, command: Callable[[Path], Words]) -> Path:
        folder = self.room.case(name)
        self.room.finish([*command(folder), *_ALONE])
        return folder / "out"

    def shard(self, folder: Path) -> Words:
        return ["shard", self.room.images, "--name", "c", "--shard-size", 8, "--out", folder / "out"]

    def vectors(self, folder: Path) -> Words:
        return ["vectors", *TEACHER, "--classes", self.classes, *_FEW, "--out", folder / "out"]

    def pretrain(self, folder: Path) -> Words:
        depth = ("--vision-depth", 2, "--text-depth", 2)
        small = ("--shots", 2, "--epochs", 4, "--batch-size", 4)
        return ["pretrain", self.room.images, *TEACHER, *small, *depth, *_FEW, "--out", folder / "out"]

    def cache(self, folder: Path, views: int = 2) -> Words:
        more = ("--views", views, "--targets", "embedding", "--batch-size", 8)
        return ["cache", self.shards, *TEACHER, *more, *_FEW, "--out", folder / "out"]

    def grow(self, folder: Path) -> Words:
        return [*self.cache(folder, 4), "--grow"]

    def distill(self, folder: Path) -> Words:
        small = ("--recipe", "kd", "--epochs", 3, "--batch-size", 8, "--checkpoint-every", 3, "--reuse-views")
        return ["distill", self.shards, self.targets, *_STUDENT, *small, *_FEW, "--out", folder / "out"]

    def recode(self, folder: Path) -> Words:
        return ["recode", self.targets, "--encoding", "int8", "--out", folder / "out"]

    def verify(self, folder: Path) -> Words:
        model = ("--teacher-model", TEACHER[1])
        return ["verify", self.shards, folder / "out", "--repair", *model, *_FEW]

    def retry_failed(self, folder: Path) -> Words:
        model = ("--teacher-model", TEACHER[1])
        return ["retry-failed", folder / "shards", folder / "out", "--source", self.mended, *model]

    def finished_store(self, folder: Path) -> None:
        """A store is there."""
        copied(self.targets, folder / "out")

    def damaged_store(self, folder: Path) -> None:
        """A store with three chunks that changed."""
        self.finished_store(folder)
        for shard in (1, 3, 6):
            chunk = folder / "out" / "embedding" / "c" / str(shard) / "0" / "0"
            data = bytearray(chunk.read_bytes())
            data[20] ^= 4
            chunk.write_bytes(data)

    def shards_and_store(self, folder: Path) -> None:
        """Shards and a store with failed images."""
        copied(self.shards, folder / "shards")
        self.finished_store(folder)


def nothing(works: Works, folder: Path) -> None:
    """The stage starts from nothing."""


@dataclass(frozen=True)
class Way:
    """A stage on an executor.

    Attributes:
        stage, executor: names for people.
        command: of the stage.
        before: what lies in the folder before.
        whom: which processes can be hit, as in the hook's `whom`.
        share: of all random kills.
        redoes: its work is to do again what has a receipt.
    """

    stage: str
    executor: str
    command: Callable[[Works, Path], Words]
    before: Callable[[Works, Path], None] = nothing
    whom: Sequence[str] = ("group",)
    share: float = 0.5
    redoes: bool = False

    @property
    def name(self) -> str:
        return f"{self.stage}, {self.executor}"

    def start(self, works: Works, folder: Path, *, hook: bool = False) -> list[Any]:
        """Its processes, at work."""
        processes = self._start(works.room, self.command(works, folder), hook)
        if hook:  # a worker that Ray has started meanwhile may have taken it for itself
            (works.room.control / "first").write_text(str(processes[0].pid))
        return processes

    def _start(self, room: Room, words: Words, hook: bool) -> list[Any]:
        if self.executor == "slices":
            return [room.start([*words, "--slice", f"{i}/{SLICES}"], hook=hook) for i in range(SLICES)]
        if self.executor == "torchrun":
            return [torchrun(room, words, hook=hook)]
        return [room.start([*words, *self._where(room)], hook=hook)]

    def _where(self, room: Room) -> Words:
        if self.stage.startswith("distill") and self.executor == "workers":
            return ["--workers", 2, "--ray-address", room.cluster]
        if self.executor == "workers":
            return ["--executor", "ray", "--workers", 2, "--ray-address", room.cluster]
        return _ALONE

    def finish(self, works: Works, folder: Path) -> None:
        """The same command to its end; what slices need behind them too."""
        for done in [wait(process) for process in self.start(works, folder)]:
            check("Traceback" not in done.stderr, f"a traceback when resumed: {done.last}")
            check(done.code == 0, f"resumed, exit code {done.code}: {done.last}")
        if self.executor == "slices":
            works.room.finish([*self.command(works, folder), "--finish"])

    def undisturbed(self, works: Works) -> Path:
        """The folder of a run that nothing disturbed, in one process; of students that several processes train, in as many."""
        calm = self if self.stage == "distill" else ALONE[self.stage]
        return Path(works.room.remembered(("calm", calm.name), lambda: calm.run_calm(works)))

    def run_calm(self, works: Works) -> Path:
        """Do it in `folder`, which is moved away."""
        folder = self.folder(works.room)
        self.before(works, folder)
        self.finish(works, folder)
        return folder.rename(works.room.folder / f"calm-{self.stage}-{self.executor}".replace(" ", ""))

    def folder(self, room: Room) -> Path:
        """A new one for a run. In one process all have the same name, since `retry-failed` writes it down; what others start may live on."""
        if self.executor != "one process":
            return room.case()
        folder = room.folder / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def check_same(self, works: Works, folder: Path) -> None:
        check_same(folder, self.undisturbed(works))


def torchrun(room: Room, words: Words, *, hook: bool) -> Cold:
    """Two ranks that torchrun starts. What it says of its children has a traceback of its own, and is left out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", 2]
    return Cold(
        [*launcher, f"--master-port={port}", "-m", "teachonce", *words],
        room.hooked if hook else {},
        shown=lambda line: line.startswith(("Error", "Stopped", "distill")),
    )


_SERIAL = (
    Way("shard", "one process", Works.shard, share=4),
    Way("vectors", "one process", Works.vectors, share=2),
    Way("pretrain", "one process", Works.pretrain, share=3),
    Way("cache", "one process", Works.cache, share=5),
    Way("cache --grow", "one process", Works.grow, Works.finished_store, share=4),
    Way("distill", "one process", Works.distill, share=4),
    Way("recode", "one process", Works.recode, share=3),
    Way("verify --repair", "one process", Works.verify, Works.damaged_store, share=3, redoes=True),
    Way("retry-failed", "one process", Works.retry_failed, Works.shards_and_store, share=3),
)

#: The ways in one process, by stage.
ALONE = {way.stage: way for way in _SERIAL}

_HIT = ("first", "self", "self")

#: All ways.
WAYS = (
    *_SERIAL,
    Way("shard", "slices", Works.shard, whom=("self",), share=2),
    Way("cache", "slices", Works.cache, whom=("self",), share=3),
    Way("shard", "workers", Works.shard, whom=_HIT),
    Way("cache", "workers", Works.cache, whom=_HIT, share=1),
    Way("cache --grow", "workers", Works.grow, Works.finished_store, whom=_HIT),
    Way("recode", "workers", Works.recode, whom=_HIT),
    Way("distill", "workers", Works.distill, whom=_HIT),
    Way("distill", "torchrun", Works.distill, whom=("group", "self")),
)
