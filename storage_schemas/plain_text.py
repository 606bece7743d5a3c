"""Owns text that is safe to show: a terminal obeys control characters, wherever a stranger's file put them."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, or that would break a line, as `\\x..` escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable_lines(text: str) -> str:
    """The same of each line; the lines stay."""
    return "\n".join(map(printable, text.split("\n")))
