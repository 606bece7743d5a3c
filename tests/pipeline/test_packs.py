"""Receipts and outputs of many units in a place that is far: few requests, and nothing that is not there is taken for done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from teachonce.pipeline import packs, runner
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.packs import FilesThere, Packs
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.pipeline.types import Resources, Unit
from teachonce.stages.status import folder_status
from teachonce.storage_schemas.errors import DamagedError
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import InvalidRow, Output, Receipt

UNITS = 12


@dataclass(frozen=True)
class Many:
    """Units `009995` to `010006`, which are in two packs, with two outputs each."""

    out: Location
    count: int = UNITS
    name = "shard"
    fingerprint = Fingerprint(fields={})
    resources = Resources()

    def plan(self) -> Iterator[Unit]:
        return (Unit(key=f"{i:06d}", rows=10) for i in range(9995, 9995 + self.count))

    def open(self):
        def run(unit, timer):
            outputs = []
            for name in (f"{unit.key}.tar", f"deep/c/{unit.key}"):
                (self.out / name).write_bytes(unit.key.encode())
                outputs.append(Output(path=name, bytes=6, sha256=""))
            timer.add("read", 0.5)
            bad = (InvalidRow(row=1, path="a.jpg", reason="empty file"),)
            return Receipt(
                key=unit.key,
                outputs=tuple(outputs),
                rows=10,
                invalid_rows=bad,
                digest="",
                fingerprint=self.fingerprint.digest,
            )

        return run


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr(packs, "LEAST", 5)
    monkeypatch.setattr(packs, "LEAST_NEW", 2)
    monkeypatch.setattr("teachonce.pipeline.ledger.LEAST", 5)


@pytest.fixture
def out() -> Location:
    return Location(MemoryPlace(), "out")


def run(out: Location, count: int = UNITS) -> int:
    return run_stage(Many(out, count), out, SerialExecutor(), progress=False).done_now


def packed(out: Location) -> dict[str, list[str]]:
    folder = out / "ledger/shard/packs"
    return {name: sorted(json.loads((folder / name).read_bytes())["units"]) for name in folder.names()}


def test_a_finished_run_leaves_packs_that_hold_what_the_files_hold(out):
    assert run(out) == UNITS
    assert {name: len(keys) for name, keys in packed(out).items()} == {"009.json": 5, "010.json": 7}
    ledger = Ledger(out, "shard")
    found = {receipt.key: (receipt.to_bytes(), seconds) for receipt, seconds in ledger.done()}
    folder = ledger.folder
    assert found == {key: ((folder / f"receipts/{key}.json").read_bytes(), {"read": 0.5}) for key in ledger.done_keys()}
    assert run(out) == 0


def test_a_receipt_from_a_pack_is_not_read_and_one_that_is_gone_or_new_is(out):
    run(out)
    folder = Ledger(out, "shard").folder / "receipts"
    read = []

    class Counting(Packs):
        def _read(self, key, *, seconds):
            read.append(key)
            return super()._read(key, seconds=seconds)

    (folder / "009996.json").remove()
    (folder / "010001.json").write_bytes((folder / "010001.json").read_bytes())  # as new
    keys = [key for key, _ in Counting(folder.folder).notes(seconds=True)]
    assert keys == sorted({f"{i:06d}" for i in range(9995, 9995 + UNITS)} - {"009996"})
    assert read == ["010001"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"units": {"009995": 3}}'])
def test_a_damaged_pack_is_as_none(out, damage):
    run(out)
    (Ledger(out, "shard").folder / "packs" / "009.json").write_bytes(damage)
    assert len(list(Ledger(out, "shard").receipts())) == UNITS


def test_a_receipt_that_was_changed_in_a_pack_is_refused(out):
    run(out)
    pack = Ledger(out, "shard").folder / "packs" / "009.json"
    pack.write_bytes(pack.read_bytes().replace(b'\\"rows\\":10', b'\\"rows\\":11', 1))
    with pytest.raises(DamagedError) as refused:
        list(Ledger(out, "shard").receipts())
    assert refused.value.code == "description-changed"


@pytest.mark.parametrize("name", ["009996.tar", "deep/c/010001"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_packed_unit_whose_file_is_gone_or_cut_is_done_again(out, name, damage):
    run(out)
    if damage == "gone":
        (out / name).remove()
    else:
        (out / name).write_bytes(b"00999")
    stage = folder_status(out)["stages"][0]
    assert (stage["done"], stage["damaged"]) == (UNITS - 1, 1)
    assert run(out) == 1
    assert folder_status(out)["state"] == "complete"


def test_status_sums_what_the_packs_hold(out):
    run(out)
    (Ledger(out, "shard").folder / "timings").remove_folder()
    stage = folder_status(out)["stages"][0]
    assert (stage["seconds"], stage["invalid_rows"], stage["rows_done"]) == ({"read": UNITS * 0.5}, UNITS, 10 * UNITS)


def test_a_long_run_packs_as_it_goes(out, monkeypatch):
    monkeypatch.setattr(runner, "_PACK_AT", 3)  # too few then; six are enough

    class Killed(SerialExecutor):
        def map(self, *arguments):
            for number, outcome in enumerate(super().map(*arguments), 1):
                yield outcome
                if number == 8:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(Many(out), out, Killed(), progress=False)
    assert packed(out) == {"009.json": [f"{i:06d}" for i in range(9995, 10000)]}  # one more is too few to pack
    assert run(out) == UNITS - 8


def test_few_units_and_local_folders_have_no_packs(tmp_path, out):
    for folder, count in ((out, 4), (Location.of(tmp_path / "out"), UNITS)):
        run(folder, count)
        assert not (folder / "ledger/shard/packs").exists()


def test_a_place_that_refuses_a_pack_does_not_stop_the_run(out):
    out.place.faults.append(Fault(name="*/packs/*", always=True))
    assert run(out) == UNITS
    assert packed(out) == {}


def test_names_with_sizes_are_remembered_in_eight_bytes_each(out):
    for name in ("a/b/c", "a/d", "e", "f/g"):
        (out / name).write_bytes(b"xy")
    there = FilesThere(out)
    assert there.have([("a/b/c", 2), ("a/d", 2), ("e", 2)])
    assert [there.have([one]) for one in (("a/b/c", 3), ("a/b", 2), ("e/f", 2), ("f", 2), ("g/x", 1))] == [False] * 5
    assert {top: marks.nbytes for top, marks in there._listed.items()} == {"a": 16, "": 8, "e": 0, "g": 0}


def test_in_a_bucket_looking_takes_as_many_requests_for_more_units(bucket, object_store, object_proxy):
    """While a listing of their names is one page, which a thousand are."""
    from teachonce.pipeline.storage import s3_endpoint

    counts = []
    for count in (UNITS, 2 * UNITS):
        where = f"{bucket}/{count}"
        run(Location.of(where), count)
        with object_proxy.Proxy(object_store.endpoint).running() as proxy, s3_endpoint(proxy.endpoint):
            assert folder_status(where)["state"] == "complete"
            first = len(proxy.seen)
            assert run(Location.of(where), count) == 0
            counts.append((first, len(proxy.seen) - first))
    assert counts[0] == counts[1]
