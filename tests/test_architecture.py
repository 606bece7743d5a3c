"""docs/architecture.md draws the rooms of today and names files that exist."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).parent.parent
PAGE = CHECKOUT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def rooms(load_module) -> ModuleType:
    return load_module("make_rooms", CHECKOUT / "docs" / "make_rooms.py")


def test_the_drawing_is_of_today(rooms):
    text = PAGE.read_text(encoding="utf-8")
    assert text == rooms.page(text), "docs/architecture.md is out of date. Next: make docs"


def test_floors_and_circles(rooms):
    """a → b ⇄ c → d, and e alone above d."""
    arrows = {"a": {"b", "d"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"d"}}
    assert rooms.floors(arrows) == [[["a"]], [["b", "c"], ["e"]], [["d"]]]


def test_every_import_of_a_room_is_an_arrow(rooms):
    """By the text of the sources: `from ..models.names import …` in stages/teachers."""
    found = rooms.arrows()
    assert "stages/models" in found["stages/teachers"]
    assert found["storage_schemas"] == {"storage_schemas/encodings"}
    for source in (CHECKOUT / "stages" / "teachers").glob("*.py"):
        for sibling in re.findall(r"from \.\.(\w+)[. ]", source.read_text(encoding="utf-8")):
            folder = (CHECKOUT / "stages" / sibling).is_dir()
            assert (f"stages/{sibling}" if folder else "stages") in found["stages/teachers"]


def test_every_file_that_it_names_exists():
    named = re.findall(r"`([\w./]+(?:\.py|\.md|/))`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [name for name in named if not (CHECKOUT / name).exists()] == []
