"""A label is text or a whole number, wherever it comes from; what else stands in its place is named."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from teachonce.stages.corpora.label import Label, cls_label, json_label, label_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cat", "cat"),
        (" red fox\n", "red fox"),
        ("nan", "nan"),  # text is text
        ("1.0", "1.0"),
        ("Café", "Café"),
        (b"a", "a"),
        ("ä".encode(), "ä"),
        (7, "7"),
        (-3, "-3"),
        (np.int64(7), "7"),
        (2**63, "9223372036854775808"),
        (1.0, "1"),
        (-0.0, "0"),
        (2.0**53, "9007199254740992"),
        (np.float32(5), "5"),
        (Decimal("12.00"), "12"),
        (None, None),
    ],
)
def test_text_and_whole_numbers_are_labels(value, text):
    assert label_of(value) == Label(text=text)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "a truth value"),
        (float("nan"), "NaN"),
        (np.float32("nan"), "NaN"),
        (Decimal("NaN"), "NaN"),
        (float("-inf"), "infinity"),
        (1.5, "a number with a fraction"),
        (Decimal("0.1"), "a number with a fraction"),
        (1e300, "a number too large to be exact"),
        ("", "empty text"),
        (" \n\u00a0", "empty text"),
        (b"\xff", "bytes that are not UTF-8"),
        (b"\0\0\0\7", "text with a NUL character"),
        ("smile \ud83d", "text with a lone surrogate"),
        (["cat"], "a value of type list"),
        ({"id": 1}, "a value of type dict"),
    ],
)
def test_everything_else_is_none_and_says_what_it_is(value, problem):
    assert label_of(value) == Label(problem=problem)


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b"7\n", Label(text="7")),
        (b"\xef\xbb\xbf3\r\n", Label(text="3")),
        ("red fox\r\n".encode("utf-16"), Label(text="red fox")),
        ("Café".encode("latin-1"), Label(problem="bytes that are not UTF-8")),
        (b" \r\n", Label(problem="empty text")),
    ],
)
def test_cls_files(data, label):
    assert cls_label(data) == label


@pytest.mark.parametrize(
    ("data", "label"),
    [
        (b'{"label": "cat", "caption": 1}', Label(text="cat")),
        (b'\xef\xbb\xbf{"label": 7}', Label(text="7")),
        (b'{"label": 7.0}', Label(text="7")),
        ('{"label": "dog"}'.encode("utf-16"), Label(text="dog")),
        (b'{"label": "smile \\ud83d\\ude00"}', Label(text="smile 😀")),
        (b'{"label": "smile \\ud83d"}', Label(problem="text with a lone surrogate")),
        (b'{"label": true}', Label(problem="a truth value")),
        (b'{"label": NaN}', Label(problem="NaN")),
        (b'{"label": [1]}', Label(problem="a value of type list")),
        (b'{"label": null}', Label()),
        (b'{"caption": "x"}', Label()),
        (b'["cat"]', Label()),
        (b"cat", Label(problem="a file that is not JSON")),
        pytest.param(b"[" * 60_000, Label(problem="a file that is not JSON"), id="deep"),
        pytest.param(b'{"label": ' + b"9" * 5000 + b"}", Label(problem="a file that is not JSON"), id="digits"),
        (b'{"label": "\xe9"}', Label(problem="a file that is not UTF-8")),
    ],
)
def test_json_files(data, label):
    assert json_label(data) == label
