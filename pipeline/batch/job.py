"""Owns jobs: what a scheduler is to run of one stage, whichever scheduler it is, and the files that tell it to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...storage_schemas.errors import InputError
from ..contents import Kind, kind_of
from ..storage import Location

#: What begins the jobs of a run, one after another.
SUBMIT = "submit.sh"

#: Seconds between a scheduler's warning, or its SIGTERM, and its SIGKILL, beyond what `--grace` allows.
MARGIN = 60


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job. Those of a run are done in their order, each after the one before has ended well.

    Attributes:
        name: unique in its run, such as `2-cache` and `2-cache-finish`.
        argv: the command of teachonce, without the program's name and without `--slice`.
        slices: how many tasks share out its work; None for a single one.
        on_gpu: whether its command computes on a GPU where there is one.
        grace: seconds that it takes at most after a signal asks for a stop; None where it does not stop by itself.
    """

    name: str
    argv: tuple[str, ...]
    slices: int | None = None
    on_gpu: bool = False
    grace: float | None = None

    @property
    def warning_seconds(self) -> int | None:
        """How long before its end a job has to be told."""
        return None if self.grace is None else int(self.grace) + MARGIN


@dataclass(frozen=True, kw_only=True)
class Run:
    """The jobs of a run file.

    Attributes:
        file: name of the run file.
        name: of the run, for the scheduler's lists: lower-case letters, digits and hyphens.
        folder: that relative paths in the jobs begin at.
    """

    file: str
    name: str
    folder: str
    jobs: tuple[Job, ...]


def jobs_of_stage(
    number: int,
    command: str,
    argv: Iterable[str],
    *,
    slices: int | None,
    on_gpu: bool,
    grace: float | None,
) -> Iterator[Job]:
    """One job, or the slices and what comes after the last of them.

    Args:
        number: of the stage, from 1.
        argv: its options and arguments.
        slices: None where the work is not shared out.
        on_gpu, grace: see `Job`.
    """
    # The last job is like the others: what `auto` stands for, where it runs, is part of what it compares.
    name, words = f"{number}-{command}", (command, *argv)
    yield Job(name=name, argv=words, slices=slices, on_gpu=on_gpu, grace=grace)
    if slices is not None:
        yield Job(name=f"{name}-finish", argv=with_option(words, "--finish"), on_gpu=on_gpu, grace=grace)


def with_option(argv: tuple[str, ...], *option: str) -> tuple[str, ...]:
    """A command with an option more; options stand before `--`, arguments behind it."""
    return (argv[0], *option, *argv[1:])


def write_files(folder: Location, files: dict[str, str]) -> None:
    """Write what was made for a run, into a folder that is new, empty or of an earlier call.

    Raises:
        InputError: it holds something else.
    """
    kind = kind_of(folder)
    if kind not in (Kind.NOTHING, Kind.EMPTY) and not (folder / SUBMIT).is_file():
        raise InputError(
            "the output folder is in use",
            code="submit-output-in-use",
            where=folder,
            expected=f"no folder, an empty one, or one with {SUBMIT}",
            found=kind,
            hint="give --out another folder",
        )
    folder.make_dir()
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
