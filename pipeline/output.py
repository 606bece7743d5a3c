"""Owns the rule for output folders: new, empty, or begun by the same command; and none that holds an input.

A command reads what marks its own folders before it writes anything. Whatever else lies in a folder that is its own (a
README, what a file manager leaves) is left alone.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable

from ..storage_schemas.errors import InputError
from .contents import (
    BENCHMARK_NOTE,
    DEMO_NOTE,
    DRIVER,
    EXPORT_NOTE,
    LEDGER,
    SLICES,
    STUDENTS_NOTE,
    free_name,
    is_shards,
    is_target_store,
    kind_of,
    option,
)
from .storage import Location, is_temporary
from .user_files import UserFile

#: What file managers and file systems put into folders that a person calls empty.
_SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}

#: Stages whose output is one and the same folder.
_TOGETHER = dict.fromkeys(("vectors", "cache", "recode STORE", "cache --grow", "vectors --grow"), ("vectors", "cache"))

#: Commands that write into what another one made.
_INTO = {"retry-failed": "shard"}

#: Commands whose folder is known by a note.
_NOTES = {
    "demo": DEMO_NOTE,
    "benchmark promptkd": BENCHMARK_NOTE,
    "benchmark vl2v": BENCHMARK_NOTE,
    "benchmark reverse-distillation": BENCHMARK_NOTE,
    "distill --seeds": STUDENTS_NOTE,
    "distill --students": STUDENTS_NOTE,
    "export": EXPORT_NOTE,
}

#: How models that are folders are spelled.
_PATHS = ("local-dir:", "teachonce:", "bundle:")

#: What a folder for the output of each command may be called.
_ENDINGS = {
    "shard": "shards",
    "vectors": "store",
    "cache": "store",
    "recode": "exported",
    "recode STORE": "store",
    "pretrain": "prompts",
    "labels": "labels",
    "captions": "captions",
    "distill": "student",
    "distill --seeds": "students",
    "distill --students": "students",
    "import": "imported",
    "export": "export",
    "anomalies": "anomalies",
    "demo": "demo",
    "benchmark promptkd": "benchmark",
    "benchmark vl2v": "benchmark",
    "benchmark reverse-distillation": "benchmark",
}


def check_output(out: Location, command: str, inputs: Iterable[object] = (), names: Iterable[str | None] = ()) -> None:
    """Refuse a folder that `command` may not write into. Nothing is written.

    Args:
        out: the output folder.
        command: without the program's name; for a stage, its name.
        inputs: paths that the user named as inputs, or spellings that end with one (`NAME=PATH`, `coop:NAME/SPLIT=PATH`);
            None for what was not given. What is not there is passed over.
        names: what may also be a name (a model, a tag, a class list): an input where it is a file, or `local-dir:PATH`,
            `teachonce:PATH` or `bundle:PATH`. So `--student ViT-B-16 --out ViT-B-16` is no mistake.

    Raises:
        InputError: a file; a folder that is or holds an input; or one that holds what this command did not make.
    """
    _check_place(out, command)
    if not out.exists():
        return
    named = [(given, _place_in(given)) for given in inputs] + [(given, _named_place(given)) for given in names]
    for given, place in named:
        if place is not None and place.is_inside(out):
            raise InputError(
                "the output folder is or holds an input",
                code="output-holds-input",
                where=out,
                expected="a folder apart from the inputs",
                found=given,
                hint=_elsewhere(out, command),
            )
    if is_begun(out, command):
        return
    names = foreign_names(out)
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            "the output folder holds something else",
            code="output-holds-other",
            where=out,
            expected=_expected(command),
            found=f"{kind_of(out)}: {names[0]}{more}",
            hint=_elsewhere(out, command),
        )


def claim_output(out: Location, stage: str) -> None:
    """Mark a folder that `check_output` let pass as this stage's, before a plan writes anything else into it.

    The mark is the ledger's own folder: a run that is killed before it has a plan is known by it.
    """
    (out / LEDGER / stage).make_dir()


def is_begun(out: Location, command: str) -> bool:
    """Whether this command, or one that shares its output, began to write here."""
    command = _INTO.get(command, command)
    if command in _NOTES:
        return (out / _NOTES[command]).exists()
    ledgers = [out / LEDGER / stage for stage in _TOGETHER.get(command, (command,))]
    # A folder `ledger` may be the user's own; ours has a plan, or nothing yet.
    if any((folder / "plan.json").exists() or _is_blank(folder) for folder in ledgers):
        return True
    if command in _TOGETHER:
        return is_target_store(out)
    return command == "shard" and is_shards(out)


def foreign_names(out: Location) -> list[str]:
    """Names in the folder beside system files, temporary files of killed writers, and ledgers in which nothing is written."""
    return [
        name
        for name in out.names()
        if name not in _SYSTEM_FILES
        and not (is_temporary(name) and not (out / name).is_dir())
        and not (name == LEDGER and _is_blank(out / name))
    ]


def another_output(out: Location, command: str) -> str:
    """What to type where the output of other options is in the way: it keeps what is there."""
    if command in _TOGETHER:
        other = shlex.quote(str(free_name(out, "2")))
        if command == "vectors":
            # The store may hold a teacher's targets, which are worth more than its class vectors.
            return f"keep {out} and write to another store: --out {other}, then teachonce distill … --vectors {other}"
        return f"keep {out} and write to another store: --out {other}"
    return f"keep {out} and write elsewhere: {option('--out', free_name(out, '2'))}"


def _check_place(out: Location, command: str) -> None:
    """There is a folder, or one can be made."""
    obstacle = out.obstacle()
    if obstacle is not None:
        raise InputError(
            "no folder can be here",
            code="output-blocked",
            where=obstacle[0],
            expected="a folder, or nothing",
            found=obstacle[1],
            hint=_elsewhere(obstacle[0], command),
        )


def _expected(command: str) -> str:
    return f"a folder that is new, empty, or begun by `teachonce {command}`"


def _elsewhere(out: Location, command: str) -> str:
    return f"teachonce {command} … {option('--out', free_name(out, _ENDINGS.get(command, 'output')))}"


def _is_blank(folder: Location) -> bool:
    """Whether no file is below it but locks of drivers, and what killed writers left."""
    files = (name.rpartition("/") for name in folder.entries(deep=True))
    return folder.is_dir() and all(
        name == DRIVER or above.rpartition("/")[2] == SLICES or is_temporary(name) for above, _, name in files
    )


def _place_in(given: object) -> Location | None:
    """What an input is, or ends with, if it is there."""
    if isinstance(given, UserFile):
        return given.location
    if given is None or isinstance(given, Location):
        return given
    text = str(given)
    return next(filter(None, (_there(part) for part in (text, text.partition("=")[2]))), None)


def _named_place(given: str | None) -> Location | None:
    """The folder or file that a model, its weights or a list of names is, if it is one."""
    if not given:
        return None
    if given.startswith(_PATHS):
        return Location.of(given.partition(":")[2])
    place = _place_in(given)
    return place if place is not None and place.is_file() else None


def _there(text: str) -> Location | None:
    """A path that a user typed, if it exists."""
    with contextlib.suppress(InputError, OSError, ValueError):
        place = Location.of(text) if text else None
        return place if place is not None and place.exists() else None
    return None
