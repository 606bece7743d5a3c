"""Pages that would be too large: what is left out, in which order, and that the page says so."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from teachonce.stages.inspect import write_page
from teachonce.stages.measures.stored import Stored
from teachonce.stages.pages.fitting import fitted
from teachonce.stages.pages.page import MOST_BYTES, Page, Section, Table


def data_of(file: bytes) -> dict:
    found = re.search(rb'<script type="application/json" id="data">(.*?)</script>', file, re.S)
    assert found is not None
    return json.loads(found[1])


def large_page(path_length: int = 20, picture: int = 2000, rows: int = 10, cell: int = 20) -> Page:
    """4,000 samples, of which 168 are in galleries; four views of each of these."""
    sample: list[object] = ["ab" * 16, "p" * path_length, None, 0.5, 1.0, 1.0, 0.0, [], []]
    return Page(
        kicker="Target store",
        title="large",
        lead="",
        sections=[Section(id="t", title="t", blocks=[Table(title="t", head=[("a", "l")], rows=[["c" * cell]] * rows)])],
        data={
            "classes": [f"class {i}" for i in range(1000)],
            "samples": {str(row): sample for row in range(4000)},
            "galleries": [{"title": "g", "words": "", "groups": [{"rows": [row], "note": ""} for row in range(168)]}],
            "images": {str(row): ["x" * picture] * 4 for row in range(168)},
            "whole": {},
            "sprite": {"url": "y" * 1000, "columns": 1, "lines": 1, "places": {"500": 0}},
            "command": "teachonce inspect large",
            "all_here": True,
        },
    )


def left_out(file: bytes) -> list[str]:
    found = re.search(r"it leaves out: (.*?)\.</p>", file.decode())
    return unescape(found[1]).split("; ") if found else []


def test_a_page_that_fits_stays_as_it_is() -> None:
    assert fitted(large_page()) == large_page().to_bytes()


@pytest.mark.parametrize(
    ("page", "steps"),
    [
        (large_page(picture=6_000), 1),
        (large_page(path_length=900), 2),
        (large_page(path_length=900, rows=20_000, cell=1000), 5),
        (large_page(picture=40_000), 6),
    ],
)
def test_what_is_too_large_is_left_out_in_one_order_and_said(page, steps) -> None:
    assert len(page.to_bytes()) > MOST_BYTES
    file = fitted(page)
    assert len(file) <= MOST_BYTES
    every = [
        "views of the galleries' pictures but the first",
        "samples that only a search would find",
        "the middle of names and paths of more than 160 characters",
        "the small pictures of the map",
        "rows of tables after the first 100",
        "the galleries' pictures",
    ]
    assert left_out(file) == every[:steps]
    data = data_of(file)
    assert len(data["galleries"][0]["groups"]) == 168  # what they show is still there
    assert {str(row) for row in range(168)} < set(data["samples"])
    assert data["all_here"] is (steps == 1)
    if steps >= 2:
        assert len(data["samples"]) == 169  # and what the map shows
    if steps < 6:
        assert all(len(files) == 1 for files in data["images"].values())
    else:
        assert data["images"] == {}


def test_a_store_whose_page_would_be_too_large(evil_store, tmp_path, monkeypatch) -> None:
    """The limit is moved to where this small store's page exceeds it."""
    write_page(Stored.open(evil_store.location), str(tmp_path / "whole.html"))
    whole = (tmp_path / "whole.html").stat().st_size
    monkeypatch.setattr("teachonce.stages.pages.fitting.fitted.__defaults__", (whole - 40_000,))
    write_page(Stored.open(evil_store.location), str(tmp_path / "page.html"))
    file = (tmp_path / "page.html").read_bytes()
    assert len(file) <= whole - 40_000
    assert left_out(file)
    assert data_of(file)["samples"]
