"""Owns what a label is: text or a whole number, whatever it was read from. Everything else is not a label, and its kind is recorded."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real

from ...storage_schemas.fingerprint import Json
from .tally import Tally
from .text_file import decode_text, json_value

#: Whole numbers up to here are exact in floating point.
_EXACT = 1 << 53

#: Larger files beside an image are not read for its label.
MOST_SIDECAR_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What was found where a label may stand.

    Attributes:
        text: the label; None where there is none.
        problem: what stands there instead of one, such as "a truth value"; empty where nothing does.
    """

    text: str | None = None
    problem: str = ""


class NoLabels(Tally):
    """The images with something else where a label may stand: how many of each kind, and the first of them."""

    def to_json(self) -> list[dict[str, Json]]:
        return [{"kind": kind, "images": n, "first": first} for kind, (n, first) in sorted(self.kinds.items())]


def no_labels_text(no_labels: Sequence[Mapping[str, Json]]) -> str:
    """One line of what `NoLabels.to_json` gave; empty where all labels are labels."""
    if not no_labels:
        return ""
    kinds = ", ".join(f"{k['images']} × {k['kind']} (first: {k['first']})" for k in no_labels)
    return f"labels are text or whole numbers; left out as none: {kinds}"


def label_of(value: object) -> Label:
    """The label that a value of JSON, Parquet, a list or a folder's name is.

    Text loses the blanks around it. A whole number is its digits, also where its type has fractions (1.0 is 1, as tables
    with missing labels write it). None, and an empty cell of a list or table, is no label and no problem.
    """
    if value is None:
        return Label()
    if isinstance(value, bytes | bytearray | memoryview):
        return _of_bytes(bytes(value))
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bool):
        return Label(problem="a truth value")
    if isinstance(value, Integral):
        return Label(text=str(int(value)))
    if isinstance(value, Decimal):
        return _of_fraction(value)
    if isinstance(value, Real):  # numpy's too
        return _of_fraction(float(value))
    return Label(problem=f"a value of type {type(value).__name__}")


def cls_label(data: bytes) -> Label:
    """The label in a `.cls` file."""
    return _of_bytes(data)


def json_label(data: bytes) -> Label:
    """The label in a `.json` file: what stands under "label" in its object. Other JSON has none."""
    try:
        value = json_value(decode_text(data))
    except UnicodeDecodeError:
        return Label(problem="a file that is not UTF-8")
    except ValueError:
        return Label(problem="a file that is not JSON")
    return label_of(value.get("label")) if isinstance(value, dict) else Label()


def _of_bytes(data: bytes) -> Label:
    try:
        return _of_text(decode_text(data))
    except UnicodeDecodeError:
        return Label(problem="bytes that are not UTF-8")


@functools.lru_cache(maxsize=1 << 12)  # tables name the same classes again and again
def _of_text(text: str) -> Label:
    text = text.strip()
    if not text:
        return Label(problem="empty text")
    if "\0" in text:
        return Label(problem="text with a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Label(problem="text with a lone surrogate")
    return Label(text=text)


def _of_fraction(value: float | Decimal) -> Label:
    if not math.isfinite(value):
        return Label(problem="NaN" if math.isnan(value) else "infinity")
    if value != int(value):
        return Label(problem="a number with a fraction")
    if isinstance(value, float) and abs(value) > _EXACT:
        return Label(problem="a number too large to be exact")
    return Label(text=str(int(value)))
