"""Owns the drawing of rooms in docs/architecture.md: written from the imports themselves, for `make docs`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- written by make docs: rooms -->\n", "<!-- end -->\n"

#: Tops of the package; a room is a folder below them, or a module in the root.
TOPS = ("commands", "stages", "pipeline", "storage_schemas")
Arrows = dict[str, set[str]]


def arrows() -> Arrows:
    """Which rooms each room imports, at any depth of its code; not itself."""
    sources = [*ROOT.glob("*.py"), *(f for top in TOPS for f in sorted((ROOT / top).rglob("*.py")))]
    rooms = {room(f.relative_to(ROOT).with_suffix("").parts) for f in sources}
    found: Arrows = {name: set() for name in rooms}
    for source in sources:
        inside = source.relative_to(ROOT).with_suffix("").parts
        for target in imported(source, inside[:-1]):
            if (reached := room(target)) in rooms - {room(inside)}:
                found[room(inside)].add(reached)
    return found


def imported(source: Path, folder: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names, split at the dots, of what a module imports of the package; it does so by relative imports alone."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*folder[: len(folder) + 1 - node.level], *(node.module.split(".") if node.module else ()))
            yield from ((*base, alias.name) for alias in node.names)


def room(name: tuple[str, ...]) -> str:
    """The folder that a module, or a name in one, lies in."""
    parts = [part for n, part in enumerate(name) if (ROOT.joinpath(*name[: n + 1])).is_dir()]
    return "/".join(parts) or f"{name[0]}.py"


def floors(rooms: Arrows) -> list[list[list[str]]]:
    """From the top: the groups of rooms that stand above all that they import. More than one in a group: a circle."""
    reach = {name: _reach(name, rooms) for name in rooms}
    group = {name: frozenset({name} | {n for n in reach[name] if name in reach[n]}) for name in rooms}

    def height(members: frozenset[str]) -> int:
        below = {group[n] for name in members for n in rooms[name]} - {members}
        return 1 + max(map(height, below), default=-1)

    heights: dict[int, set[frozenset[str]]] = {}
    for members in set(group.values()):
        heights.setdefault(height(members), set()).add(members)
    return [sorted(map(sorted, heights[level])) for level in sorted(heights, reverse=True)]


def _reach(start: str, rooms: Arrows) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        below = rooms[left.pop()] - seen
        seen |= below
        left += below
    return seen


def drawing() -> str:
    """The table, in Markdown, highest floor first; rooms of a circle share a floor and are marked."""
    rooms = arrows()
    lines = ["| floor | room | it | imports |", "| ---: | --- | --- | --- |"]
    levels = floors(rooms)
    for number, groups in zip(range(len(levels) - 1, -1, -1), levels, strict=True):
        for members in groups:
            mark = " ⟲" if len(members) > 1 else ""
            for name in members:
                below = ", ".join(f"`{n}`" for n in sorted(rooms[name])) or "nothing of ours"
                lines.append(f"| {number}{mark} | `{name}` | {_first_line(name)} | {below} |")
    circles = [members for groups in levels for members in groups if len(members) > 1]
    said = "; ".join(", ".join(f"`{n}`" for n in c) for c in circles)
    lines += ["", f"Circles (⟲), rooms that import each other: {said}." if circles else "There is no circle."]
    return "\n".join(lines) + "\n"


def _first_line(name: str) -> str:
    path = ROOT / name
    module = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].rstrip(".:").replace("|", "\\|")


def page(text: str) -> str:
    """The page with the drawing of today in its place."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
