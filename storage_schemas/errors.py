"""The errors a user can meet. Each is one clear line; anything else that escapes is a bug and shows a traceback.

Each has a code, such as `corpus-missing`: it says what has happened, and stays when the words are changed. What has
happened in several places has one code. docs/errors.md lists them all.

TeachonceError
├── InputError            what the user gave cannot be used (missing, empty, malformed)
├── MismatchError         two things that must belong together do not (fingerprints, class lists, corpora)
├── IncompleteError       an earlier stage has not finished
├── DamagedError          bytes on disk are not the bytes that a receipt vouches for
├── StorageError          the disk is full, read-only or forbidden
│   └── Unreachable       something to read cannot be had at the moment; the same command may get it later
├── BusyError             another command writes to the same output at this moment
├── MissingDependency     an optional package is needed
├── Stopped              a stop was asked for, and work is left; what was finished is kept
├── WorkerError           the process that works cannot do any unit: its device has too little memory
│   └── WorkerLost        it cannot go on: its device failed, or a process that it needs died; another one may
└── UnitsFailed           some units of work failed; the others are done and kept
"""

from __future__ import annotations

import re
from typing import Any

from .plain_text import printable

_FIELDS = ("code", "where", "expected", "found", "hint")
_LINE_BREAKS = re.compile(r"[ \t]*[\t\r\n\f\v][\s]*")


class TeachonceError(Exception):
    """Base of all errors that a user can act on.

    Args:
        what: what is wrong, in a few words.
        code: the same for programs and for searching: short words with hyphens between them, one meaning each.
        where: the file, store, field or option that it concerns.
        expected: what was expected there.
        found: what was found there.
        hint: what to type or do next.

    `str(error)` is one line: ``what: where: expected E, found F. Next: hint``. Control characters in it are escaped.
    `error.line` holds the code too, `error.fields` all but the words of `what`.
    """

    def __init__(
        self,
        what: str,
        *,
        code: str,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.code = code
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        line = self.what
        if self.where is not None:
            line += f": {self.where}"
        if self.expected is not None:
            line += f": expected {self.expected}, found {self.found}"
        elif self.found is not None:
            line += f": found {self.found}"
        if self.hint:
            line += f". Next: {self.hint}"
        return printable(_LINE_BREAKS.sub(" ", line).strip())  # blanks stay: they may be a path's

    @property
    def fields(self) -> dict[str, str]:
        """The code, and `where`, `expected`, `found` and `hint` where they were given, as text: for programs."""
        given = {name: self.__dict__[name] for name in _FIELDS}
        return {name: str(value) for name, value in given.items() if value is not None}

    @property
    def line(self) -> str:
        """What people are shown: the sentence with its code before the hint, which can be pasted from the line's end."""
        return with_code(str(self), self.code)

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are lost by the default; errors cross process borders (Ray, loader workers).
        fields = {k: self.__dict__[k] for k in _FIELDS}
        return _rebuild, (type(self), self.what, fields)


def with_code(sentence: str, code: str) -> str:
    """A sentence of an error with the code in it: ``what: where [code]. Next: hint``."""
    facts, mark, hint = sentence.partition(". Next: ")
    return f"{facts} [{code}]{mark}{hint}"


def _rebuild(cls: type[TeachonceError], what: str, fields: dict[str, Any]) -> TeachonceError:
    error = cls.__new__(cls)
    TeachonceError.__init__(error, what, **fields)
    return error


#: Of an error that torch's loader made anew from its text alone, as it does with those of its processes. Nowhere else is a
#: code left out: for whoever checks types, it is required.
LOST_CODE = "worker-failed"
TeachonceError.__init__.__kwdefaults__["code"] = LOST_CODE  # type: ignore[index]


class InputError(TeachonceError):
    """What the user gave cannot be used."""


class MismatchError(TeachonceError):
    """Two things that must belong together do not. `where` names the differing field."""


class IncompleteError(TeachonceError):
    """An earlier stage has not finished."""


class DamagedError(TeachonceError):
    """Bytes on disk are not the bytes that a receipt vouches for."""


class StorageError(TeachonceError):
    """The disk is full, read-only or forbidden."""


class Unreachable(StorageError):
    """Something to read cannot be had at the moment: a server is down, a disk or a mount gives an error.

    What would have been read may have no fault; the same command may get it later.
    """


class BusyError(TeachonceError):
    """Another command writes to the same output at this moment."""


class Stopped(TeachonceError):
    """A stop was asked for by a signal, and work is left. What was finished is kept; the same command goes on with the rest."""


class MissingDependency(TeachonceError):
    """An optional package is needed: `what` names the purpose, `install` the command that brings it."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(what, code="package-missing", hint=install)


class WorkerError(TeachonceError):
    """The process that works can do no unit as it is: its device has too little memory."""


class WorkerLost(WorkerError):
    """It cannot go on: its device failed, or a process that it needs died. Another process may go on."""


class UnitsFailed(TeachonceError):
    """Some units of work failed; every other unit is done and kept. The code is that of the first one's error."""
