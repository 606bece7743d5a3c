"""Owns why a file is not the one that its receipt vouches for: missing, cut, another shard's, a flipped bit, or written anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...pipeline.ledger import is_version
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.receipt import Output


@dataclass(frozen=True, kw_only=True)
class VouchedFile:
    """A file that a receipt names.

    Attributes:
        noun: what it is, for people: `tar`, `offset index`, `chunk`.
        place: where it lies.
        output: its line in the receipt.
        hint: what to do about it.
    """

    noun: str
    place: Location
    output: Output
    hint: str

    def size_error(self) -> DamagedError | None:
        """The error for a file of another size or version, by a look at its name alone; None where it has the right ones."""
        found = self.place.stat()
        if found is None or found.size != self.output.bytes or is_version(found, self.output):
            return self._wrong_size(None if found is None else found.size)
        return DamagedError(
            f"a {self.noun} was written anew since it was indexed",
            code="file-other-version",
            where=self.place,
            expected=f"ETag {self.output.version}",
            found=found.version,
            hint=self.hint,
        )

    def error(
        self, *, found_bytes: int | None, found_sha256: str, others: Mapping[str, str], flipped: str = ""
    ) -> DamagedError | None:
        """The error for a file that was read; None where it is the right one.

        Args:
            found_bytes: that were read; None where there is no such file.
            found_sha256: of them.
            others: whose file has which sha256, of other shards.
            flipped: which single bit was flipped, as text, where that is known.
        """
        if found_bytes == self.output.bytes and found_sha256 == self.output.sha256:
            return None
        owner = others.get(found_sha256) if found_bytes else None
        if owner is not None:
            return DamagedError(
                f"the {self.noun} of another shard lies in place of this one",
                code="file-of-another-shard",
                where=self.place,
                expected=f"sha256 {self.output.sha256}",
                found=f"that of {owner}",
                hint=self.hint,
            )
        if found_bytes != self.output.bytes:
            return self._wrong_size(found_bytes)
        if flipped:
            return DamagedError(
                f"a bit of a {self.noun} is flipped",
                code="file-bit-flipped",
                where=self.place,
                found=flipped,
                hint=self.hint,
            )
        return DamagedError(
            f"a {self.noun} is not the one that its receipt vouches for",
            code="file-not-as-vouched",
            where=self.place,
            expected=f"sha256 {self.output.sha256}",
            found=found_sha256,
            hint=self.hint,
        )

    def _wrong_size(self, found: int | None) -> DamagedError | None:
        if found == self.output.bytes:
            return None
        if found is None:
            return DamagedError(
                f"a {self.noun} is missing",
                code="file-missing",
                where=self.place,
                expected=f"{self.output.bytes} bytes",
                found="no file",
                hint=self.hint,
            )
        is_cut = found < self.output.bytes
        return DamagedError(
            f"a {self.noun} was cut" if is_cut else f"a {self.noun} is longer than its receipt has it",
            code="file-cut" if is_cut else "file-longer",
            where=self.place,
            expected=f"{self.output.bytes} bytes",
            found=f"{found} bytes",
            hint=self.hint,
        )
