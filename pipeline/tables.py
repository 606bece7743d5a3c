"""Owns tables on a terminal: aligned columns, byte counts, bars; no control characters get through."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from ..storage_schemas.plain_text import printable


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), align: str = "", indent: int = 2) -> str:
    """Rows of cells as lines.

    Args:
        rows: cells; rows may be shorter than the widest.
        head: names of the columns; they get a line of their own.
        align: `l` or `r` for each column; those beyond it are `l`.
        indent: blanks before each line.
    """
    cells = [[printable(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    columns = max((len(row) for row in cells), default=0)
    widths = [max(_width(row[i]) for row in cells if i < len(row)) for i in range(columns)]
    lines = []
    for row in cells:
        padded = [
            _pad(cell, width, align[i : i + 1] == "r") for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append((" " * indent + "  ".join(padded)).rstrip())
    return "\n".join(lines)


def section(title: str, *parts: str) -> str:
    """A titled block of lines; empty parts are left out."""
    return "\n".join([title, *(part for part in parts if part)])


def clip(text: str, columns: int = 40) -> str:
    """The text, its end replaced by `…` where it is longer than so many characters."""
    return text if len(text) <= columns else text[: columns - 1].rstrip(" ,") + "…"


def bytes_text(count: float) -> str:
    """`950 B`, `3.2 MB`: decimal units, two digits or more."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `71 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bar(share: float, width: int = 20) -> str:
    """A bar for a share of 0 to 1; whatever is above 0 shows, be it as a line."""
    return "█" * round(share * width) or ("▏" if share > 0 else "")


def _pad(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if right else cell + blanks


def _width(text: str) -> int:
    """Columns that a text takes: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
