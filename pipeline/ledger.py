"""Owns the ledger of one stage: `OUT/ledger/STAGE/` with plan.json, receipts/, timings/ and failures/.

Receipts are facts and byte-identical on every run; timings and failures lie beside them and are not.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..storage_schemas.errors import DamagedError, IncompleteError
from ..storage_schemas.fingerprint import Fingerprint, canonical_json
from ..storage_schemas.json_file import Count, Positive, read_json, read_sealed, seal
from ..storage_schemas.plain_text import counted
from ..storage_schemas.receipt import Output, Receipt
from .contents import LEDGER
from .output import check_output
from .packs import LEAST, FilesThere, Packs
from .storage import Location, Stat

#: What the rows of a stage are where they are no images.
_NOUNS = {"vectors": "class", "distill": "pair", "import": "tensor"}


def noun_of(stage: str) -> str:
    """What a row of a stage is, in the singular."""
    return _NOUNS.get(stage, "image")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage set out to do: its name, fingerprint fields, and number of units and rows.

    `command`: the one that does it; '' for that of the stage's name.
    """

    stage: str
    fingerprint: Fingerprint
    units: int
    rows: int
    command: str = ""

    @property
    def done_by(self) -> str:
        """The command that does it."""
        return self.command or self.stage

    def to_bytes(self) -> bytes:
        """Canonical JSON with a final newline, sealed."""
        fields = {
            "stage": self.stage,
            "fingerprint": dict(self.fingerprint.fields),
            "units": self.units,
            "rows": self.rows,
            **({} if self.done_by == self.stage else {"command": self.command}),
        }
        return canonical_json(seal(fields)) + b"\n"


@dataclass(frozen=True, kw_only=True)
class _PlanFile:
    stage: str
    fingerprint: dict[str, Any]
    units: Positive
    rows: Count
    command: str = ""


@dataclass(frozen=True)
class Ledger:
    """The ledger of one stage under its output folder.

    Attributes:
        stage: its name; `shard.2` is what `teachonce shard` added to an output as its second generation.
    """

    out: Location
    stage: str

    @property
    def command(self) -> str:
        """The command that writes it."""
        return self.stage.partition(".")[0]

    @property
    def folder(self) -> Location:
        return self.out / LEDGER / self.stage

    @property
    def _plan_file(self) -> Location:
        return self.folder / "plan.json"

    @staticmethod
    def stages(out: Location) -> list[str]:
        """Names of the stages that have a ledger under `out`, in the order in which they were planned."""
        folder = out / LEDGER
        names = [n for n in folder.names() if (folder / n / "plan.json").exists()]
        return sorted(names, key=lambda n: (folder / n / "plan.json").changed_at() or 0.0)

    def plan(self) -> Plan | None:
        """The recorded plan, or None where the stage has never started here."""
        location = self._plan_file
        try:
            data = location.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        found = read_sealed(
            data,
            _PlanFile,
            what="not a plan",
            code="plan-malformed",
            where=location,
            hint=f"restore it from a copy, or run `teachonce {self.command}` with another --out",
        )
        return Plan(
            stage=found.stage,
            fingerprint=Fingerprint(fields=found.fingerprint),
            units=found.units,
            rows=found.rows,
            command=found.command,
        )

    def begin(self, plan: Plan, hint: str, *, sweep: bool = True) -> None:
        """Record `plan`, or check it against the recorded one, and sweep up what killed writers left, where no other one is at work.

        Of two commands that a place without locks lets through at the same moment, one records its plan.

        Raises:
            MismatchError: the folder holds work that was done under another fingerprint.
            InputError: the folder holds what this stage did not make.
        """
        check_output(self.out, self.command)
        if self.plan() is None:
            self._plan_file.write_if_absent(plan.to_bytes())
        self.check(plan, hint)
        for name in ("receipts", "timings", "failures"):
            (self.folder / name).make_dir()
        if sweep:
            self.out.remove_temporaries()

    def check(self, plan: Plan, hint: str) -> None:
        """Check a plan against the recorded one, if there is one. Writes nothing.

        Raises:
            MismatchError: the folder holds work that was done under another fingerprint.
        """
        found = self.plan()
        if found is not None:
            plan.fingerprint.check(
                found.fingerprint.fields,
                what=f"{self.out} holds the output of another {found.done_by}",
                code="output-other-settings",
                where=self._plan_file,
                hint=hint,
                whose=("this command", "the folder"),
            )

    def receipt(self, key: str, plan: Plan | None = None) -> Receipt | None:
        """The unit's receipt, or None where it is not done.

        Args:
            plan: the ledger's, where it is known already.

        Raises:
            DamagedError: not a receipt, or another unit's, or another run's than the plan's.
        """
        return self._receipt(key, plan or self.plan())

    def receipts(self, *, pack: bool = False) -> Iterator[Receipt]:
        """All receipts in key order, one at a time.

        Args:
            pack: pack them first, where the place is far, so that reading them costs few requests from then on. For the driver.

        Raises:
            DamagedError: as `receipt`.
        """
        plan = self.plan()
        if self._is_far:
            packs = Packs(self.folder)
            if pack:
                packs.write()
            for key, notes in packs.notes(seconds=False):
                yield self._checked(key, notes.receipt, plan)
            return
        for key in self.done_keys():
            receipt = self._receipt(key, plan)
            if receipt is not None:
                yield receipt

    def reader(self) -> Callable[[Iterable[str]], Iterator[Receipt | None]]:
        """For many receipts by key: gives those of some keys in their order, None where a unit is not done. Errors as `receipt`."""
        plan = self.plan()
        if not self._is_far:
            return lambda keys: (self._receipt(key, plan) for key in keys)
        packs = Packs(self.folder)
        return lambda keys: (
            None if notes is None else self._checked(key, notes.receipt, plan) for key, notes in packs.notes_of(keys)
        )

    def done(self) -> Iterator[tuple[Receipt, dict[str, float]]]:
        """All receipts in key order, one at a time, each with the seconds that its unit took, by kind.

        Raises:
            DamagedError: as `receipt`; or a note of timings that is none.
        """
        if not self._is_far:
            for receipt in self.receipts():
                yield receipt, self.timings([receipt.key])
            return
        plan = self.plan()
        for key, notes in Packs(self.folder).notes(seconds=True):
            seconds = _parsed(notes.seconds, self.folder / "timings" / f"{key}.json", dict[str, float])
            yield self._checked(key, notes.receipt, plan), seconds

    def pack(self) -> None:
        """As `receipts` does, and read none."""
        if self._is_far:
            Packs(self.folder).write()

    @property
    def _is_far(self) -> bool:
        """Whether each file that is read costs a request."""
        return self.out.local_path() is None

    def _receipt(self, key: str, plan: Plan | None) -> Receipt | None:
        try:
            return self._checked(key, self._receipt_file(key).read_bytes(), plan)
        except FileNotFoundError:
            return None

    def _receipt_file(self, key: str) -> Location:
        return self.folder / "receipts" / f"{key}.json"

    def _checked(self, key: str, data: bytes, plan: Plan | None) -> Receipt:
        """A receipt from the bytes of its file."""
        location = self._receipt_file(key)
        receipt = Receipt.from_bytes(data, where=location)
        expected = key if plan is None else f"{key} of {plan.fingerprint.digest}"
        found = receipt.key if plan is None else f"{receipt.key} of {receipt.fingerprint}"
        if found != expected:
            raise DamagedError(
                "a receipt of another unit, or of another run",
                code="receipt-other-unit",
                where=location,
                expected=expected,
                found=found,
                hint=f"restore it from a copy, or {self.redo_hint(key)}",
            )
        return receipt

    def done_keys(self) -> list[str]:
        """Keys of the units that have a receipt, in order."""
        return _json_keys(self.folder / "receipts")

    def done_at(self) -> list[float]:
        """When each unit that has a receipt was done, as seconds since 1970, in any order."""
        return [stat.changed_at for name, stat in (self.folder / "receipts").listing() if name.endswith(".json")]

    def is_intact(self, receipt: Receipt, there: FilesThere | None = None) -> bool:
        """True if every file that the receipt vouches for is there with the right size. One stat a file, or none with `there`.

        A file that is to replace one of an earlier generation may still have its name with the generation's number behind it.
        """
        left = receipt.outputs
        if there is not None and there.have((o.path, o.bytes) for o in left if not o.place):
            left = tuple(o for o in left if o.place)
        return all(
            is_as_vouched(file_of(self.out, o), o)
            or (self.generation > 1 and is_as_vouched(self.out / f"{o.path}.{self.generation}", o))
            for o in left
        )

    def files_there(self) -> FilesThere | None:
        """For `is_intact` of many receipts, where a file in the listing of a folder costs less than a look at it."""
        plan = self.plan() if self._is_far else None
        return FilesThere(self.out) if plan is not None and plan.units >= LEAST else None

    def superseded(self) -> set[str]:
        """Keys of units whose files `teachonce retry-failed` has written anew since; the receipts here are of what was."""
        ledgers = (Ledger(self.out, name) for name in (self.out / LEDGER).names())
        later = [one for one in ledgers if one.command == "retry-failed" and one.generation > self.generation]
        return {key for ledger in later for key in ledger.done_keys()}

    @property
    def generation(self) -> int:
        """Of its output, from 1 on."""
        number = self.stage.partition(".")[2]
        return int(number) if number.isdecimal() else 1

    def intact_keys(self) -> set[str]:
        """Keys of the units that are done, and whose files are there."""
        there = self.files_there()
        return {receipt.key for receipt in self.receipts() if self.is_intact(receipt, there)}

    def commit(self, receipt: Receipt, seconds: dict[str, float]) -> None:
        """Write the receipt: the last thing that a worker does for a unit. Its timings go first, beside it."""
        timings = {kind: round(value, 6) for kind, value in seconds.items()}
        (self.folder / "timings" / f"{receipt.key}.json").write_note(canonical_json(timings) + b"\n")
        (self.folder / "receipts" / f"{receipt.key}.json").write_bytes(receipt.to_bytes())
        (self.folder / "failures" / f"{receipt.key}.json").remove()

    @property
    def again(self) -> str:
        """What to type so that what is left is done."""
        plan = self.plan()
        return f"run the same `teachonce {self.stage if plan is None else plan.done_by}` command again"

    def redo_hint(self, *keys: str) -> str:
        """What to type so that some units are done anew, and no others: their receipts are kept under other names."""
        again = f"then {self.again}"
        receipts = [shlex.quote(str(self.folder / "receipts" / f"{key}.json")) for key in keys]
        if len(receipts) == 1:
            return f"mv {receipts[0]} {receipts[0]}.old, {again}"
        return f"add .old to the names of their receipts in {self.folder / 'receipts'}, {again}"

    def fail(self, key: str, reason: str, detail: str, code: str | None) -> None:
        """Record why a unit failed; a later success removes it. What is a bug has no code."""
        fields = {"key": key, "reason": reason, "detail": detail, **({} if code is None else {"code": code})}
        (self.folder / "failures" / f"{key}.json").write_bytes(canonical_json(fields) + b"\n")

    def failures(self) -> dict[str, dict[str, Any]]:
        """Recorded failures by unit key."""
        folder = self.folder / "failures"
        return {key: _note(folder / f"{key}.json", dict[str, Any]) for key in _json_keys(folder)}

    def timings(self, keys: Iterable[str] | None = None) -> dict[str, float]:
        """Seconds by kind, summed over the units done.

        Args:
            keys: of the units; None for all.
        """
        total: dict[str, float] = {}
        folder = self.folder / "timings"
        for key in _json_keys(folder) if keys is None else keys:
            try:
                found = _note(folder / f"{key}.json", dict[str, float])
            except FileNotFoundError:
                continue
            for kind, seconds in found.items():
                total[kind] = total.get(kind, 0.0) + seconds
        return total

    def require_complete(self, hint: str) -> Plan:
        """The plan of a stage whose units all have receipts.

        Raises:
            IncompleteError: the stage never ran here, or units are left; gives their number.
        """
        plan = self.plan()
        if plan is None:
            raise IncompleteError(f"{self.stage} has not run here", code="stage-not-run", where=self.out, hint=hint)
        done = len(self.done_keys())
        if done != plan.units:
            raise IncompleteError(
                f"{plan.done_by} has not finished",
                code="stage-unfinished",
                where=self.out,
                found=f"{done} of {counted(plan.units, 'unit')}",
                hint=hint,
            )
        return plan


Fields = TypeVar("Fields")


def _note(location: Location, schema: type[dict[str, Fields]]) -> dict[str, Fields]:
    """A note beside the receipts. Notes are not synced: a machine that lost power may have left an empty one.

    Raises:
        DamagedError: it holds something else; it can be deleted.
    """
    return _parsed(location.read_bytes(), location, schema)


def _parsed(data: bytes, location: Location, schema: type[dict[str, Fields]]) -> dict[str, Fields]:
    """A note from the bytes of its file."""
    text = data.strip(b"\0")
    if not text:
        return {}
    return read_json(
        text,
        schema,
        what="not a note of this ledger",
        code="ledger-note-malformed",
        where=location,
        hint=f"rm {shlex.quote(str(location))}: nothing depends on it",
    )


def _json_keys(folder: Location) -> list[str]:
    return [n.removesuffix(".json") for n in folder.names() if n.endswith(".json") and not n.startswith(".")]


def file_of(out: Location, output: Output) -> Location:
    """Where a file lies that a receipt of a ledger in `out` vouches for."""
    return out.reach(output.place) if output.place else out / output.path


def is_as_vouched(file: Location, output: Output) -> bool:
    """Whether a file has the size, and where both are known the version, of its line in a receipt; in one look."""
    found = file.stat()
    return found is not None and found.size == output.bytes and is_version(found, output)


def is_version(found: Stat, output: Output) -> bool:
    """Whether a file has the version of its line in a receipt, as far as both are known."""
    return not output.version or not found.version or found.version == output.version


def record_outputs(folder: Location, paths: list[str]) -> tuple[Output, ...]:
    """Flush the given files to the disk and return their entries for a receipt.

    Raises:
        DamagedError: a file that was just written is not there.
    """
    outputs = []
    for path in paths:
        location = folder / path
        try:
            location.sync()
            data = location.read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(
                "a chunk is missing right after it was written", code="written-file-missing", where=location
            ) from error
        outputs.append(Output(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return tuple(outputs)
