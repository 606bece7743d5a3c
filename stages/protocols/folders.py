"""Owns what lies where in a benchmark's folder, and the note on which protocol it is of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...pipeline.contents import BENCHMARK_NOTE
from ...pipeline.output import check_output
from ...pipeline.storage import Location
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import canonical_json
from ...storage_schemas.json_file import read_json

#: The data set whose prompts teach all others in the cross-dataset protocol.
SOURCE = "imagenet"

#: The results, for programs and for people.
RESULTS, PAGE = "results.json", "results.md"

#: What a benchmark's note says which one it is of.
_KIND = "teachonce benchmark"


@dataclass(frozen=True, kw_only=True)
class DatasetFolders:
    """Folders of one data set below the benchmark's folder.

    Attributes:
        root: the benchmark's folder.
        dataset: its name.
        on_test: whether students are selected on test images; those lie apart.
    """

    root: Location
    dataset: str
    on_test: bool = False

    @property
    def folder(self) -> Location:
        return self.root / self.dataset

    @property
    def prompts(self) -> Location:
        return self.folder / "prompts"

    @property
    def shards(self) -> Location:
        return self.folder / "shards"

    @property
    def targets(self) -> Location:
        return self.folder / "targets"

    @property
    def test_shards(self) -> Location:
        return self.folder / "test-shards"

    @property
    def test_targets(self) -> Location:
        return self.folder / "test-targets"

    def bundle(self, student: str, seed: int) -> Location:
        """A student's bundle; `student` is the name of its folder."""
        return self.folder / self._students / f"{student}-{seed}"

    def measured(self, student: str, seed: int) -> Location:
        """The measured results of a student."""
        return self.folder / "measured" / self._students / f"{student}-{seed}.json"

    @property
    def _students(self) -> str:
        return "students-selected-on-test" if self.on_test else "students"


def claim(
    root: Location,
    protocol: str,
    inputs: Iterable[object] = (),
    models: Iterable[str | None] = (),
    *,
    benchmark: str = "promptkd",
) -> None:
    """Mark the folder as this protocol's; each has class vectors and students of its own.

    Args:
        root: the folder.
        protocol: of the benchmark; `inputs` and `models` are what it reads.
        benchmark: the name of its command.

    Raises:
        InputError: the folder holds something else, or an input.
        MismatchError: it is another protocol's.
    """
    hint, note = "give another --out", root / BENCHMARK_NOTE
    kind = f"{_KIND} {benchmark}"
    check_output(root, f"benchmark {benchmark}", inputs, names=models)
    if not note.exists():
        note.write_bytes(canonical_json({"kind": kind, "protocol": protocol}) + b"\n")
        return
    found = read_json(
        note.read_bytes(),
        dict[str, Any],
        what="not a benchmark's note",
        code="benchmark-note-malformed",
        where=note,
        hint=hint,
    )
    other = found.get("protocol")
    if (found.get("kind"), other) != (kind, protocol):
        raise MismatchError(
            "the folder holds another benchmark",
            code="benchmark-other",
            where=note,
            expected=f"{protocol} (this command)",
            found=f"{other} (the folder)",
            hint=hint,
        )


def keep(location: Location, text: str) -> None:
    """Write a file of results, unless it is there as it should be."""
    if not location.exists() or location.read_bytes() != text.encode():
        location.write_bytes(text.encode())
