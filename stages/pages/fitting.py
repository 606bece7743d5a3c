"""Owns what a page leaves out so that it stays small enough to be mailed: steps in one order, each of them said on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .page import MOST_BYTES, Block, Page, Table

#: Characters of a name or a path, and rows of a table, that stay when a page is too large.
_TEXT, _ROWS = 160, 100

Data = dict[str, Any]


def fitted(page: Page, most: int = MOST_BYTES) -> bytes:
    """The file, of at most so many bytes: what is left out is the least that suffices, in the order of `_STEPS`."""
    file = page.to_bytes()
    words: list[str] = []
    for left_out, step in _STEPS:
        if len(file) <= most:
            break
        page = step(page)
        words.append(left_out)
        note = f"So that this page takes no more than {most / 1e6:g} MB, it leaves out: {'; '.join(words)}."
        file = replace(page, notes=[note, *page.notes]).to_bytes()
    return file


def _one_view(page: Page) -> Page:
    return _with_data(page, images={row: files[:1] for row, files in page.data.get("images", {}).items()})


def _fewer_found(page: Page) -> Page:
    """Samples stay that galleries and the map show."""
    samples = page.data.get("samples", {})
    shown = {
        str(row) for gallery in page.data.get("galleries", []) for group in gallery["groups"] for row in group["rows"]
    }
    shown |= set((page.data.get("sprite") or {}).get("places", {}))
    kept = {row: sample for row, sample in samples.items() if row in shown}
    return _with_data(page, samples=kept, all_here=False)


def _shorter_texts(page: Page) -> Page:
    samples = {
        row: [_cut(value) if isinstance(value, str) else value for value in sample]
        for row, sample in page.data.get("samples", {}).items()
    }
    changed = _with_data(page, samples=samples, classes=[_cut(name) for name in page.data.get("classes", [])])
    return _with_tables(
        changed, lambda table: replace(table, rows=[[_cut(cell) for cell in row] for row in table.rows])
    )


def _no_sheet(page: Page) -> Page:
    return _with_data(page, sprite=None)


def _fewer_rows(page: Page) -> Page:
    return _with_tables(page, lambda table: replace(table, rows=table.rows[:_ROWS]))


def _no_pictures(page: Page) -> Page:
    return _with_data(page, images={}, whole={})


def _no_samples(page: Page) -> Page:
    return _with_data(page, samples={}, galleries=[], images={}, whole={}, sprite=None)


def _no_tables(page: Page) -> Page:
    return replace(_with_tables(page, lambda table: replace(table, rows=[])), problems=page.problems[:_ROWS])


#: In their order: (what is left out, how).
_STEPS: tuple[tuple[str, Callable[[Page], Page]], ...] = (
    ("views of the galleries' pictures but the first", _one_view),
    ("samples that only a search would find", _fewer_found),
    (f"the middle of names and paths of more than {_TEXT} characters", _shorter_texts),
    ("the small pictures of the map", _no_sheet),
    (f"rows of tables after the first {_ROWS}", _fewer_rows),
    ("the galleries' pictures", _no_pictures),
    ("samples and galleries", _no_samples),
    (f"tables, and problems after the first {_ROWS}", _no_tables),
)


def _with_data(page: Page, **changed: Any) -> Page:
    """Only what a page has is changed."""
    return replace(page, data={**page.data, **{name: value for name, value in changed.items() if name in page.data}})


def _with_tables(page: Page, change: Callable[[Table], Table]) -> Page:
    def changed(block: Block) -> Block:
        return change(block) if isinstance(block, Table) else block

    sections = [replace(section, blocks=[changed(block) for block in section.blocks]) for section in page.sections]
    return replace(page, sections=sections)


def _cut(text: str) -> str:
    """Its beginning and its end: paths differ in both."""
    return text if len(text) <= _TEXT else f"{text[: _TEXT // 2]}…{text[-_TEXT // 2 :]}"
