"""Owns which encodings there are: finds the one that a user spells, or that a store's description names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from . import pca, pq
from .adaptive import Adaptive
from .encoding import Encoding
from .floats import ENCODINGS
from .int8 import Int8
from .int8_channel import Int8Channel
from .sampled import Sampled
from .spelling import Spelled
from .table import Table, TableOf

_UNFITTED: dict[str, Any] = {"int8": Int8, "int8-channel": Int8Channel, "adaptive": Adaptive, "sampled": Sampled}


def unfitted(spelled: Spelled) -> Encoding:
    """An encoding that is not fitted to data."""
    if spelled.name in ENCODINGS:
        return ENCODINGS[spelled.name]
    whole = spelled.known.whole
    parameters = {name: int(n) if whole or name in _WHOLE else n for name, n in spelled.parameters().items()}
    encoding: Encoding = _UNFITTED[spelled.name](**parameters)
    return encoding


#: Whole numbers among the parameters of encodings that have others too.
_WHOLE = {"levels"}


class OtherTableError(Exception):
    """A table is not the one that an encoding was made with: the digests of both."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


def encoding_from_json(found: Any, table_of: TableOf) -> Encoding:
    """What `Encoding.to_json` gave.

    Args:
        table_of: reads the target's table, where the encoding has one.

    Raises:
        ValueError: something else, or an encoding of a later version.
        OtherTableError: the table changed since.
    """
    if isinstance(found, str):
        if found not in ENCODINGS:
            raise ValueError(f"'{found}'")
        return ENCODINGS[found]
    name = found.get("name")
    fields = {field: value for field, value in found.items() if field != "name"}
    try:
        if name in _UNFITTED:
            encoding: Encoding = msgspec.convert(fields, _UNFITTED[name])
            return encoding
        if name == "pca":
            about = msgspec.convert(fields, _PcaFields)
            table = _checked(table_of(pca.PARTS), about.table)
            return pca.Pca(step=about.step, unit=about.unit, dtype=about.dtype, table=table)
        if name == "pq":
            return pq.Pq(table=_checked(table_of(pq.PARTS), msgspec.convert(fields, _Fitted).table))
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from error
    raise ValueError(f"'{name}'")


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """`table` is the digest of one."""

    table: str


@dataclass(frozen=True, kw_only=True)
class _PcaFields(_Fitted):
    step: float
    dtype: Literal["int8", "int16", "uint16"]
    unit: float = 1.0


def _checked(table: Table, digest: str) -> Table:
    if table.digest != digest:
        raise OtherTableError(digest, table.digest)
    return table
