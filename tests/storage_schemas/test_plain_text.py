"""Words for people: counted things, and what is typed into a shell."""

from __future__ import annotations

import shlex

import pytest
from teachonce.pipeline.storage import Location
from teachonce.storage_schemas.errors import InputError
from teachonce.storage_schemas.plain_text import counted, typed


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "unit", "1 unit"),
        (0, "unit", "0 units"),
        (2, "class", "2 classes"),
        (1, "base class", "1 base class"),
        (3, "batch", "3 batches"),
        (2, "epoch", "2 epochs"),
        (2, "entry", "2 entries"),
        (5, "key", "5 keys"),
        (2, "index", "2 indexes"),
    ],
)
def test_things_are_counted_in_words(number, noun, words):
    assert counted(number, noun) == words


@pytest.mark.parametrize("name", ["plain", "two words", "two  blanks", "it's", "$HOME", "a;b", "füchse"])
def test_a_suggested_command_can_be_pasted(name):
    location = Location.of(f"/data/{name}")
    error = InputError("not here", code="not-here", where=location, hint=f"teachonce status {typed(location)}")
    assert shlex.split(str(error).partition("Next: ")[2]) == ["teachonce", "status", f"/data/{name}"]


def test_an_error_is_one_line():
    assert str(InputError("a\n  b", code="a-b", where="c\td\r\n", hint=" e  f ")) == "a b: c d . Next:  e  f"
