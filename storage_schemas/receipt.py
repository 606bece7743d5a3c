"""Owns the receipt: the small JSON file whose existence means that a unit of work is done."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass

from .fingerprint import Json, canonical_json
from .json_file import Count, read_sealed, seal


@dataclass(frozen=True, kw_only=True)
class Output:
    """One file that a receipt vouches for: path relative to the stage's output folder, size, sha256 (hex).

    Attributes:
        place: where it lies, if that is not its path: a tar that is used in place. As `Location.reach` takes it from the folder.
        version: its ETag, where it lies in a bucket and is used in place; '' where none is known.
    """

    path: str
    bytes: Count
    sha256: str
    place: str = ""
    version: str = ""

    def to_json(self) -> Json:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("place", "version")}


#: The reason of a sample that was not wanted, though it could be used.
LEFT_OUT = "left out"


@dataclass(frozen=True, kw_only=True)
class InvalidRow:
    """A sample that could not be used, or was not wanted: it keeps its row, and this has the reason."""

    row: Count
    path: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without what is this sample's own: "too many pixels" of "too many pixels: 60000x60000, …"."""
        return self.reason.partition(": ")[0]

    @property
    def is_left_out(self) -> bool:
        """Whether nothing is wrong with the sample."""
        return self.reason == LEFT_OUT


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Facts about one finished unit; byte-identical on every run, so no times and no host names.

    Attributes:
        key: the unit's key (for shards: six digits).
        outputs: files written, each with size and sha256.
        rows: number of rows that the unit owns, valid or not.
        invalid_rows: those without usable content, with reasons, in row order.
        digest: blake2b-128 (hex) of the unit's content, independent of codecs (tar bytes, decoded targets).
        fingerprint: digest of the fingerprint under which the unit ran.
    """

    key: str
    outputs: tuple[Output, ...]
    rows: Count
    invalid_rows: tuple[InvalidRow, ...]
    digest: str
    fingerprint: str

    def to_bytes(self) -> bytes:
        """Canonical JSON with a final newline."""
        return canonical_json(seal({**asdict(self), "outputs": [one.to_json() for one in self.outputs]})) + b"\n"

    @staticmethod
    def from_bytes(data: bytes, where: object) -> Receipt:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedError: the bytes are not a receipt, or they changed since they were written.
        """
        old = shlex.quote(str(where))
        hint = f"restore it from a copy, or mv {old} {old}.old, then run the same command again"
        return read_sealed(data, Receipt, what="not a receipt", code="receipt-malformed", where=where, hint=hint)
