"""`teachonce status`: what the books of real and hand-written ledgers say, for people and scripts."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger, Plan
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.pipeline.types import Resources, Unit
from teachonce.stages.status import exit_code, folder_status, status_text
from teachonce.storage_schemas.errors import InputError, UnitsFailed
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import InvalidRow, Receipt
from teachonce.storage_schemas.target_store import open_root

NOT_OURS = "no stage of teachonce has started here"
FINGERPRINT = Fingerprint(fields={"a": 1})


def write_ledger(out, stage, *, units, seconds=(), rows=10, invalid=0):
    """A ledger with one done unit for each entry of `seconds`; a store has its root."""
    if stage in ("vectors", "cache"):
        root = b'{"zarr_format": 3, "node_type": "group", "attributes": {"teachonce": {"kind": "target store", "schema_version": 1}}}'
        (Location.of(out) / "zarr.json").write_bytes(root)
    ledger = Ledger(Location.of(out), stage)
    ledger.begin(Plan(stage=stage, fingerprint=FINGERPRINT, units=units, rows=units * rows), hint="")
    for i, spent in enumerate(seconds):
        bad = tuple(InvalidRow(row=i * rows + j, path=f"{j}.jpg", reason="empty file") for j in range(invalid))
        ledger.commit(
            Receipt(
                key=f"{i:06d}",
                outputs=(),
                rows=rows,
                invalid_rows=bad,
                digest="d",
                fingerprint=FINGERPRINT.digest,
            ),
            spent,
        )
    return ledger


def lines(facts):
    return [" ".join(line.split()) for line in status_text(facts).splitlines()]


def test_finished_shards(picture_shards):
    facts = folder_status(picture_shards.location)
    (stage,) = facts["stages"]
    assert (facts["kind"], facts["state"], exit_code(facts)) == ("shards", "complete", 0)
    assert facts["next"] == f"teachonce cache {picture_shards.location} --teacher … --out STORE"
    assert (stage["stage"], stage["units"], stage["done"], stage["failed"], stage["left"]) == (
        "shard",
        4,
        4,
        0,
        0,
    )
    assert (stage["rows_done"], stage["invalid_rows"]) == (48, 2)
    assert stage["fingerprint"] == picture_shards.ledger.plan().fingerprint.digest
    assert set(stage["seconds"]) == {"read", "check", "write"}
    assert stage["rows_per_second"] == pytest.approx(48 / sum(stage["seconds"].values()))
    assert "images 48 done, 2 of them invalid" in lines(facts)


def test_time_and_bottleneck(tmp_path):
    # Decoding runs in threads beside the model; `wait` is what the model lost by it.
    forward = {"read": 3.0, "decode": 12.0, "wait": 1.0, "forward": 8.5, "write": 0.5}
    write_ledger(tmp_path, "cache", units=2, seconds=[forward, forward])
    (stage,) = folder_status(tmp_path)["stages"]
    assert stage["seconds"] == {"decode": 24.0, "forward": 17.0, "read": 6.0, "wait": 2.0, "write": 1.0}
    assert (stage["unit_seconds"], stage["rows_per_second"], stage["bottleneck"]) == (20.0, 1.0, "forward")
    found = lines(folder_status(tmp_path))
    assert "forward 17 s 34% ███████ the bottleneck" in found
    assert "wait 2.00 s 4% █ for the next images" in found
    assert "rate 1.0 images/s in each worker" in found


@pytest.mark.parametrize(
    ("seconds", "bottleneck"),
    [
        ({"read": 3.0, "decode": 12.0, "wait": 9.0, "forward": 8.5}, "decode"),
        ({"read": 13.0, "decode": 12.0, "wait": 9.0, "forward": 8.5}, "read"),
        ({"wait": 9.0, "train": 8.5}, "wait"),
        ({"wait": 1.0, "train": 8.5}, "train"),
        ({"read": 3.0, "check": 1.0, "write": 2.0}, "read"),
        ({}, None),
    ],
)
def test_what_the_rest_waits_for(tmp_path, seconds, bottleneck):
    write_ledger(tmp_path, "cache", units=1, seconds=[seconds])
    assert folder_status(tmp_path)["stages"][0]["bottleneck"] == bottleneck


def test_units_left(tmp_path):
    write_ledger(tmp_path, "cache", units=5, seconds=[{"forward": 1.0}] * 2, invalid=3)
    facts = folder_status(tmp_path)
    assert (facts["state"], exit_code(facts), facts["next"]) == ("units left", 3, None)
    assert lines(facts)[2:5] == [
        "cache",
        "units 2 of 5 units done, 3 left",
        "images 20 done, 6 of them invalid",
    ]
    assert "Next: run the same `teachonce cache` command again; finished units are kept" in lines(facts)


class EverySecondFails:
    """A stage of eight units whose odd ones fail."""

    name = "shard"
    fingerprint = FINGERPRINT
    resources = Resources()

    def plan(self):
        for i in range(8):
            yield Unit(key=f"{i:06d}", rows=2)

    def open(self):
        def run(unit, timer):
            if int(unit.key) % 2:
                raise InputError("no such thing", code="no-such-thing", where=f"unit\n{unit.key}")
            return Receipt(
                key=unit.key, outputs=(), rows=2, invalid_rows=(), digest="d", fingerprint=FINGERPRINT.digest
            )

        return run


def test_failed_units_of_a_real_run(tmp_path):
    with pytest.raises(UnitsFailed):
        run_stage(EverySecondFails(), Location.of(tmp_path), SerialExecutor(), progress=False)
    facts = folder_status(tmp_path, examples=3)
    (stage,) = facts["stages"]
    assert (stage["done"], stage["failed"], stage["left"]) == (4, 4, 0)
    assert stage["failures"][0] == {"unit": "000001", "reason": "no such thing: unit 000001", "code": "no-such-thing"}
    assert (facts["state"], exit_code(facts)) == ("failed units", 4)
    found = lines(facts)
    start = found.index("failed")
    assert found[start + 1 : start + 5] == [
        "000001 no such thing: unit 000001 [no-such-thing]",
        "000003 no such thing: unit 000003 [no-such-thing]",
        "000005 no such thing: unit 000005 [no-such-thing]",
        "and 1 more",
    ]
    assert found[-1] == (
        "Next: mend the cause, then run the same `teachonce shard` command again; finished units are kept"
    )


def test_units_whose_files_were_cut_are_left_to_do(picture_shards, tmp_path):
    out = tmp_path / "shards"
    shutil.copytree(picture_shards.location.path, out)
    (out / "000001.tar").write_bytes((out / "000001.tar").read_bytes()[:-512])
    facts = folder_status(str(out))
    (stage,) = facts["stages"]
    assert (stage["done"], stage["damaged"], stage["left"], exit_code(facts)) == (3, 1, 1, 3)
    assert "damaged 1 unit: a receipt is there, but files are gone or cut" in lines(facts)


def test_a_store_with_class_vectors_only_is_not_finished(tmp_path):
    open_root(str(tmp_path), mode="a")
    write_ledger(tmp_path, "vectors", units=1, seconds=[{"forward": 2.0}])
    facts = folder_status(tmp_path)
    assert (facts["kind"], facts["state"], exit_code(facts)) == ("target store", "units left", 3)
    assert facts["next"] == f"teachonce cache SHARDS --teacher … --out {Location.of(tmp_path)}"
    assert "classes 10 done" in lines(facts)


def test_stages_come_in_the_order_in_which_they_were_planned(known_store):
    facts = folder_status(known_store.location)
    assert (facts["kind"], facts["state"], [s["stage"] for s in facts["stages"]]) == (
        "target store",
        "complete",
        ["cache"],
    )


def test_a_run_folder_tells_of_all_that_it_holds(picture_shards, known_store, tmp_path):
    shutil.copytree(picture_shards.location.path, tmp_path / "shards")
    shutil.copytree(known_store.location.path, tmp_path / "store")
    facts = folder_status(tmp_path)
    assert [(s["stage"], s["folder"].rsplit("/", 1)[-1]) for s in facts["stages"]] == [
        ("shard", "shards"),
        ("cache", "store"),
    ]
    assert (facts["kind"], facts["state"], facts["next"]) == ("run folder", "complete", None)
    assert lines(facts)[2].startswith("shard in ")


def test_training_under_way(tmp_path):
    write_ledger(tmp_path, "distill", units=1)
    log = tmp_path / "run" / "log.jsonl"
    log.parent.mkdir()
    told = {"step": 40, "epoch": 2, "loss": 0.123456, "samples_per_second": 310.25}
    log.write_text(json.dumps({**told, "step": 20}) + "\n" + json.dumps(told) + '\n{"step": 6')
    facts = folder_status(tmp_path)
    assert facts["stages"][0]["training"] == told
    found = lines(facts)
    assert "training step 40, epoch 3, loss 0.1235" in found
    assert "rate 310.2 pairs/s in each worker" in found
    assert "units 0 of 1 unit done, 1 left" in found


def test_command(tmp_path, picture_shards):
    write_ledger(tmp_path / "out", "cache", units=2, seconds=[{"forward": 1.0}])
    result = CliRunner().invoke(main, ["status", str(tmp_path / "out")])
    assert (result.exit_code, result.stderr) == (3, "")
    told = CliRunner().invoke(main, ["status", "--json", str(picture_shards.location.path)])
    assert told.exit_code == 0
    assert json.loads(told.stdout) == folder_status(picture_shards.location)


@pytest.mark.parametrize(
    ("make", "what", "code"),
    [
        (lambda path: None, "no such folder", "folder-missing"),
        (lambda path: path.write_text("x"), "no such folder", "folder-missing"),
        (lambda path: path.mkdir(), NOT_OURS, "nothing-started"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), NOT_OURS, "nothing-started"),
        (
            lambda path: (path.mkdir(), (path / "zarr.json").write_text('{"attributes": {}}')),
            NOT_OURS,
            "nothing-started",
        ),
    ],
)
def test_what_is_not_ours_is_one_line(tmp_path, make, what, code):
    path = tmp_path / "it"
    make(path)
    result = CliRunner().invoke(main, ["status", str(path)])
    hint = "give a folder of shards, a store, a bundle or a run"
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {what}: {path} [{code}]. Next: {hint}\n"
