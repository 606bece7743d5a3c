"""Owns tables on a terminal: aligned columns, byte counts, bars; no control characters get through."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from ..storage_schemas.plain_text import printable

#: Eighths of a block, from none to all.
BLOCKS = " ▁▂▃▄▅▆▇█"

#: A last column narrower than this is not broken into lines.
_LEAST_ROOM = 20


def table(
    rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), align: str = "", indent: int = 2, width: int = 0
) -> str:
    """Rows of cells as lines.

    Args:
        rows: cells; rows may be shorter than the widest.
        head: names of the columns; they get a line of their own.
        align: `l` or `r` for each column; those beyond it are `l`.
        indent: blanks before each line.
        width: of the lines: longer last cells go on in lines of their own; 0 for any.
    """
    cells = [[printable(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    columns = max((len(row) for row in cells), default=0)
    widths = [max(_width(row[i]) for row in cells if i < len(row)) for i in range(columns)]
    room = width - indent - sum(w + 2 for w in widths[:-1])
    if width and columns and room >= _LEAST_ROOM:
        cells = [part for row in cells for part in _continued(row, columns, room)]
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


def _continued(row: list[str], columns: int, room: int) -> list[list[str]]:
    """The row, and below it what its last cell has no room for."""
    if len(row) < columns or _width(row[-1]) <= room:
        return [row]
    first, *more = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
    return [[*row[:-1], first], *([""] * (columns - 1) + [line] for line in more)]


def histogram(counts: Sequence[int], columns: int = 40) -> str:
    """Counts as a line of blocks, the largest one full; whatever is above 0 shows. `columns` divides their number."""
    run = max(1, len(counts) // columns)
    sums = [sum(counts[i : i + run]) for i in range(0, len(counts), run)]
    most = max(sums, default=0)
    return "".join(" " if not n else BLOCKS[max(1, -(-n * (len(BLOCKS) - 1) // most))] for n in sums)


def _pad(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if right else cell + blanks


def _width(text: str) -> int:
    """Columns that a text takes: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
