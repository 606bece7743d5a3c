"""Codes of errors: each has one meaning and one class, is described once, and is raised somewhere; docs/errors.md is up to date."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from teachonce.storage_schemas.errors import (
    LOST_CODE,
    InputError,
    MismatchError,
    MissingDependency,
    TeachonceError,
    UnitsFailed,
    with_code,
)
from torch._utils import ExceptionWrapper

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference(load_module) -> ModuleType:
    return load_module("make_error_reference", CHECKOUT / "docs" / "make_error_reference.py")


def test_every_code_is_raised_and_described_once(reference):
    described = Counter(code for codes in reference.sections().values() for code in codes)
    assert [code for code, times in described.items() if times > 1] == []
    assert {site.code for site in reference.sites()} == set(described)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", code) for code in described)


def test_every_code_has_one_class(reference):
    kinds: dict[str, set[str | None]] = {}
    for site in reference.sites():
        kinds.setdefault(site.code, set()).add(site.kind)
    assert {code: found for code, found in kinds.items() if None in found or len(found) > 1} == {}


def test_words_have_one_code(reference):
    """Places that say the same mean the same."""
    codes: dict[tuple[str, str], set[str]] = {}
    for site in reference.sites():
        if site.what is not None:
            codes.setdefault((site.what, site.kind or ""), set()).add(site.code)
    assert {words: found for words, found in codes.items() if len(found) > 1} == {}


def test_the_page_is_up_to_date(reference):
    assert reference.REFERENCE.read_text(encoding="utf-8") == reference.reference(), "Next: make docs"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("bad", code="a-b"), "bad [a-b]"),
        (InputError("bad", code="a-b", where="x", found=1), "bad: x: found 1 [a-b]"),
        (MismatchError("bad", code="a-b", hint="ls x. Next: y"), "bad [a-b]. Next: ls x. Next: y"),
        (MissingDependency("Ray", "pip install ray"), "Ray [package-missing]. Next: pip install ray"),
        (UnitsFailed("1 failed", code="c-d", where="bad: x. Next: ls"), "1 failed: bad: x [c-d]. Next: ls"),
    ],
)
def test_the_line_has_the_code_before_the_hint(error: TeachonceError, line: str):
    assert error.line == line
    assert error.line == with_code(str(error), error.code)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.line, copy.code) == (type(error), line, error.code)


def test_fields_are_those_that_were_given_as_text():
    error = InputError("bad", code="a-b", where=Path("x"), found=0, hint="ls")
    assert error.fields == {"code": "a-b", "where": "x", "found": "0", "hint": "ls"}
    assert InputError("bad", code="a-b").fields == {"code": "a-b"}


def test_an_error_made_anew_of_its_text_alone_keeps_its_class():
    """As torch's loader does with errors of its processes."""
    wrapped = ExceptionWrapper((InputError, InputError("bad", code="a-b"), None), where="in a process")
    with pytest.raises(InputError, match="bad") as error:
        wrapped.reraise()
    assert error.value.code == LOST_CODE
