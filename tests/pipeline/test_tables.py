"""Tables on a terminal."""

from __future__ import annotations

import pytest
from teachonce.pipeline.tables import bar, bytes_text, clip, seconds_text, table
from teachonce.storage_schemas.plain_text import printable


def test_columns_line_up_and_wide_characters_count_twice():
    text = table([["fox", "1"], ["東京", "12", "more"]], head=["name", "n"], align="lr")
    assert text.splitlines() == ["  name   n", "  fox    1", "  東京  12  more"]


def test_names_cannot_obey_the_terminal():
    assert printable("a\x1b[31m\nb\u202e") == "a\\x1b[31m\\nb\\u202e"
    assert table([["x\r", "y"]], indent=0) == "x\\r  y"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_240_000, "3.2 MB"),
        (123_400_000, "123 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.424, "0.42 s"), (71.2, "71 s"), (600, "10 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


def test_bars_and_clipping():
    assert [bar(share, 4) for share in (0, 0.01, 0.5, 1)] == ["", "▏", "██", "████"]
    assert [clip("short"), clip("a long, long name", 8)] == ["short", "a long…"]
