"""Owns text for people: safe to show, since a terminal acts on control characters; counted things; text to type."""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    """The text with everything that a terminal would act on, or that would break a line, as `\\x..` escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """The same of each line; the lines stay."""
    return "\n".join(map(printable, text.split("\n")))


def counted(number: int, noun: str) -> str:
    """A number of things as text: `1 class`, `2 classes`, `0 entries`.

    Args:
        noun: in the singular; of several words the last one changes.
    """
    return f"{number} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Of English nouns that follow the rules, and of those that do not and are in use here."""
    if noun.endswith("epoch"):
        return f"{noun}s"
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def typed(value: object) -> str:
    """A path or a name as a person types it into a shell."""
    return shlex.quote(str(value))


def brief(error: Exception) -> str:
    """The message of another library's error, on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
