"""Owns which samples of a store are taken: a mark for every row, and a range of the teacher's confidence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...pipeline.user_files import UserFile
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.near_names import did_you_mean
from ...storage_schemas.plain_text import counted
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import Arrays, read_marks
from ..corpora.shards import ShardSet
from ..corpora.text_file import read_lines
from ..settings.recode import RecodeSettings


@dataclass(frozen=True, kw_only=True)
class RowChoice:
    """Which rows are taken. It travels to all workers, so it takes a bit a row.

    Attributes:
        marks: `numpy.packbits` of bool (row,); None for all rows.
        confidence: least and largest probability of the first class; None for any.
    """

    marks: bytes | None = None
    confidence: tuple[float, float] | None = None

    @property
    def is_all(self) -> bool:
        return self.marks is None and self.confidence is None

    def marked(self, rows: slice) -> NDArray[np.bool_]:
        """bool (row,) of some rows: whether they are marked."""
        if self.marks is None:
            return np.ones(rows.stop - rows.start, np.bool_)
        bits = np.frombuffer(self.marks, np.uint8)[rows.start // 8 : -(-rows.stop // 8)]
        first = rows.start % 8
        return np.unpackbits(bits)[first : first + rows.stop - rows.start].astype(np.bool_)

    def to_json(self) -> Json:
        """What decides which rows these are: for fingerprints."""
        facts: dict[str, Json] = {}
        if self.marks is not None:
            facts["rows"] = hashlib.blake2b(self.marks, digest_size=16).hexdigest()
            facts["count"] = int(np.unpackbits(np.frombuffer(self.marks, np.uint8)).sum())
        if self.confidence is not None:
            facts["confidence"] = list(self.confidence)
        return facts


def choose_rows(
    settings: RecodeSettings, root: Arrays, spec: StoreSpec, shards: ShardSet | None, store: Location
) -> RowChoice:
    """The rows that a user's settings choose: those that fit all of what is given.

    Args:
        settings: of `recode`.
        root: the store's, for keys.
        spec: of its rows.
        shards: for paths and labels; None where they are not needed.
        store: for errors.

    Raises:
        InputError: shards or samples that the store does not have; or nothing is left.
    """
    confidence = settings.confidence
    if confidence is not None and confidence[0] > confidence[1]:
        raise InputError(
            "impossible range",
            code="setting-impossible",
            where="--confidence",
            expected="the least first",
            found=",".join(f"{end:g}" for end in confidence),
        )
    if settings.samples is None and not settings.label and not settings.only_shards:
        return RowChoice(confidence=confidence)
    wanted = None if settings.samples is None else _Listed(settings.samples)
    numbers, labels = _shard_numbers(settings, spec, store), set(settings.label)
    seen: set[str] = set()
    end = spec.rows(spec.num_shards - 1).stop
    marks = np.zeros(end, np.bool_)
    usable = 0
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        keys_N, valid_N = read_marks(root, spec, shard)
        chosen_N = np.full(len(keys_N), numbers is None or shard in numbers)
        if wanted is not None or labels:
            keys = [key.decode("ascii") for key in keys_N.tolist()]
            entries = [None] * len(keys) if shards is None else shards.manifest().shard(shard)
            for place, (key, entry) in enumerate(zip(keys, entries, strict=True)):
                if wanted is not None:
                    chosen_N[place] &= wanted.has(key, None if entry is None else entry.path)
                if labels:
                    label = None if entry is None else entry.label
                    chosen_N[place] &= label in labels
                    seen.add(label or "")
        marks[rows] = chosen_N
        usable += int((chosen_N & valid_N).sum())
    if wanted is not None:
        wanted.refuse_missing(store)
    _refuse_unknown_labels(settings.label, seen, store)
    if not usable:
        raise empty(store)
    return RowChoice(marks=np.packbits(marks).tobytes(), confidence=confidence)


def empty(store: Location, found: str = "none") -> InputError:
    """The error for a choice that no usable sample fits."""
    return InputError(
        "no sample is left",
        code="samples-none-left",
        where=store,
        expected="at least one usable sample that fits all of what was given",
        found=found,
        hint="choose more with --samples, --label, --confidence and --only-shards",
    )


class _Listed:
    """Keys and paths that a user's file names, a line each; blank lines are passed over."""

    def __init__(self, file: str) -> None:
        self._file = file
        names = (line.strip() for _, line in read_lines(UserFile.of(file)))
        self._found = dict.fromkeys(filter(None, names), False)
        if not self._found:
            raise InputError(
                "no sample is named", code="samples-list-empty", where=file, hint="write a key or a path a line"
            )

    def has(self, key: str, path: str | None) -> bool:
        for name in (key, path):
            if name is not None and name in self._found:
                self._found[name] = True
                return True
        return False

    def refuse_missing(self, store: Location) -> None:
        missing = [name for name, found in self._found.items() if not found]
        if missing:
            raise InputError(
                f"{counted(len(missing), 'sample')} of {len(self._found)} are not in the store",
                code="samples-not-in-store",
                where=f"{self._file}, the first is {missing[0]}",
                expected=f"keys or paths of {store}",
                found=missing[0],
                hint="`teachonce inspect` tells keys and paths; paths need the shards (--shards)",
            )


def _shard_numbers(settings: RecodeSettings, spec: StoreSpec, store: Location) -> set[int] | None:
    beyond = [number for number in settings.only_shards if number >= spec.num_shards]
    if beyond:
        raise InputError(
            "the store does not have this shard",
            code="shards-not-in-store",
            where=store,
            expected=f"numbers from 0 to {spec.num_shards - 1}",
            found=f"--only-shards {beyond[0]}",
            hint="see `teachonce inspect`",
        )
    return set(settings.only_shards) or None


def _refuse_unknown_labels(labels: tuple[str, ...], seen: set[str], store: Location) -> None:
    for label in labels:
        if label not in seen:
            raise InputError(
                "no image has this label",
                code="label-not-in-store",
                where=store,
                expected="a class of the corpus",
                found=label,
                hint=did_you_mean(label, sorted(seen - {""}), "labels are the names that `teachonce shard` found"),
            )
