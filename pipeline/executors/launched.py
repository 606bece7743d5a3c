"""Owns the processes that torchrun, or a scheduler in its way, has started for one command: which one this is, and what they tell each other.

All were given the same command line. The first one drives: it holds the output's lock, plans, commits and speaks. The others
follow: they wait for its word, do the same unit, and end when it does. They talk over torch's own store.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from ...storage_schemas.errors import InputError, Stopped, TeachonceError, WorkerLost
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import printable_lines
from .. import interrupt, stopping
from ..ledger import Ledger
from ..storage import Location
from ..types import Stage, Unit
from ..worker import Worker, failed
from .process_group import WAIT_SECONDS, lost_contact, stay_on_loopback

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

_SECONDS_BETWEEN_LOOKS = 0.1

#: Of `prctl` (linux/prctl.h): the signal that this process gets when its parent ends.
_PR_SET_PDEATHSIG = 1

#: How long the first rank stays for the others to see its end, where the store is its own.
_SECONDS_TO_SEE_THE_END = 10.0


@dataclass(frozen=True)
class Launched:
    """This process among those that were started together.

    Attributes:
        rank, size: this one, from 0; how many there are.
        local_rank, local_size: the same on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @staticmethod
    def here() -> Launched | None:
        """From the environment; None where this process is one alone.

        Raises:
            InputError: the environment contradicts itself.
        """
        if any(name not in os.environ for name in _VARIABLES):
            return None
        names = (*_VARIABLES[:3], "LOCAL_WORLD_SIZE")
        given = [os.environ.get(name, "1") for name in names]
        numbers = [int(text) if text.isdecimal() else -1 for text in given]
        rank, size, local_rank, local_size = numbers
        if min(numbers) < 0 or rank >= size:
            raise InputError(
                "the environment names no rank",
                code="rank-malformed",
                where=", ".join(names),
                expected="whole numbers, RANK below WORLD_SIZE",
                found=", ".join(given),
                hint="start the command by torchrun, or remove these variables",
            )
        return None if size == 1 else Launched(rank, size, local_rank, max(local_size, local_rank + 1))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @functools.cached_property
    def _store(self) -> Any:
        """Where all meet: torchrun's store, or one that the first rank opens."""
        from torch import distributed

        torch_distributed: Any = distributed
        patience = timedelta(seconds=WAIT_SECONDS)
        store, _, _ = next(torch_distributed.rendezvous("env://", self.rank, self.size, timeout=patience))
        return store

    def join(self, *, gpus: bool) -> None:
        """Become a rank of torch.distributed; waits for all others."""
        import torch
        from torch.distributed import PrefixStore, init_process_group  # type: ignore[attr-defined]

        if self.local_size == self.size:
            stay_on_loopback()
        if gpus:
            torch.cuda.set_device(self.local_rank)
        init_process_group(
            "nccl" if gpus else "gloo",
            store=PrefixStore("ranks", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=WAIT_SECONDS),
        )

    def tells(self) -> bool:
        """Whether this rank is the one that tells what went wrong: the first that asks. The others fail by the same, or by its end."""
        try:
            return bool(self._store.add("failed", 1) == 1)
        except RuntimeError:  # whose store it was is gone
            return True

    def error(self, error: Exception) -> Exception:
        """What to say of it."""
        if not lost_contact(error):
            return error
        clear = WorkerLost(
            "another process that trains this student has ended",
            code="rank-lost",
            where=f"rank {self.rank} of {self.size}",
            hint="look at what that one printed; the same command resumes",
        )
        clear.__cause__ = error
        return clear

    # --- the first rank

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Inside the first rank plans and does what is to be done; behind it the others end."""
        _hush()
        end_with_torchrun()
        code = 1
        try:
            yield
            code = 0
        except Stopped:
            code = stopping.EXIT_CODE
            raise
        finally:
            with contextlib.suppress(RuntimeError):
                self._say({"end": code})
                if code != 1:
                    self._stay()

    def announce(self, stage: Stage, unit: Unit) -> None:
        """The others begin with this unit."""
        self._say({"do": unit.key, "plan": dict(stage.fingerprint.fields)})

    def _say(self, word: dict[str, Json]) -> None:
        self._store.set(f"word/{self._store.add('words', 1)}", json.dumps(word))

    def _stay(self) -> None:
        for _ in range(int(_SECONDS_TO_SEE_THE_END / _SECONDS_BETWEEN_LOOKS)):
            if self._store.add("seen", 0) >= self.size - 1:
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    # --- the others

    def follow(self, plan: Callable[[], Stage], out: Location, grace: float) -> None:
        """What another rank than the first does, from its first look to its end. It prints nothing, unless it is to tell an error.

        Args:
            plan: makes the stage, once the first rank has planned it.
            out: the output.
            grace: as for the first rank.

        Raises:
            Stopped: all have left off.
            SystemExit: the first rank has failed, or this one.
        """
        _hush()
        end_with_torchrun()
        stderr = sys.stderr
        sys.stderr = _Nowhere()
        interrupt.mark_line_printed()
        stopping.arm(0)
        unit: Unit | None = None
        try:
            stage: Stage | None = None
            for number in range(1, sys.maxsize):
                word = self._hear(number)
                if "end" in word:
                    self._store.add("seen", 1)
                    break
                stage = stage or _as_planned(plan(), word, self.rank)
                unit = next(one for one in stage.plan() if one.key == word["do"])
                stopping.arm(grace)
                self._do(stage, unit, Ledger(out, stage.name))
                stopping.arm(0)
        except Stopped:
            with contextlib.suppress(RuntimeError):
                while "end" not in self._hear(number := number + 1):
                    pass
                self._store.add("seen", 1)
            raise
        except Exception as error:
            if self.tells():
                clear = self.error(error)
                if unit is not None and not isinstance(clear, WorkerLost):
                    failed(Ledger(out, stage.name if stage else ""), unit, clear)
                self._print(clear, stderr)
            raise SystemExit(stopping.EXIT_CODE if stopping.asked() else 1) from error
        if word["end"]:
            raise SystemExit(word["end"])

    def _do(self, stage: Stage, unit: Unit, ledger: Ledger) -> None:
        with self.at_work(stage), contextlib.closing(Worker(stage, ledger)) as worker:
            worker.attempt(unit, commit=False)

    @contextlib.contextmanager
    def at_work(self, stage: Stage) -> Iterator[None]:
        """Inside this process is a rank, with its share of the machine."""
        import torch.distributed as dist

        from ..cores import assign_cores, usable_cores

        assign_cores(max(1, usable_cores() // self.local_size))
        self.join(gpus=stage.resources.gpus > 0)
        yield
        dist.destroy_process_group()  # not behind an error: it would wait for ranks that are gone

    def _hear(self, number: int) -> dict[str, Any]:
        """The first rank's n-th word. Looks again and again: a signal is not handled inside torch."""
        key = f"word/{number}"
        while not self._store.check([key]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        word: dict[str, Any] = json.loads(self._store.get(key))
        return word

    def _print(self, error: Exception, stderr: Any) -> None:
        if isinstance(error, TeachonceError):
            print(printable_lines(f"Error: rank {self.rank}: {error.line}"), file=stderr, flush=True)
        else:
            traceback.print_exception(error, file=stderr)


def _hush() -> None:
    """torch, before it is imported: no warnings of native code, which each rank would print in several lines."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def end_with_torchrun() -> None:
    """Let the kernel end this process with torchrun, its parent, however that ends. Each rank has a session of its own: killed, torchrun
    would leave them without anybody who waits for them. Linux only; under srun and others there is nothing to do."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0 and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)  # it ended in between


class _Nowhere(io.TextIOBase):
    """Takes what is written, and keeps none of it."""

    def write(self, text: str) -> int:
        return len(text)


def _as_planned(stage: Stage, word: dict[str, Any], rank: int) -> Stage:
    stage.fingerprint.check(
        word["plan"],
        what="the ranks have planned different work",
        code="ranks-differ",
        where=f"rank {rank}",
        hint="give all ranks the same command line, files and versions, and where machines differ --threads and --device",
        whose=("this rank", "the first rank"),
    )
    return stage


def refuse(option: str, found: object) -> NoReturn:
    """An option that says where work runs, where that is decided."""
    raise InputError(
        "torchrun has started the processes that train together",
        code="options-exclude-each-other",
        where=option,
        found=found,
        hint="leave the option out, or start the command without torchrun",
    )
