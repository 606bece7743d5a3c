"""`verify --repair`: the shards that are wrong are cached again, and no others; the bytes are those of the first run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages import cache


def repair(pair, teacher, *words: str):
    return CliRunner().invoke(
        main, ["verify", str(pair.shards), str(pair.store), "--repair", "--teacher-model", teacher.model, *words]
    )


def chunks(store: Path) -> dict[str, bytes]:
    """Every file that holds rows, and every receipt."""
    files = [f for f in store.rglob("*") if f.is_file() and ("c" in f.parts or f.parent.name == "receipts")]
    return {str(f.relative_to(store)): f.read_bytes() for f in files}


def test_damaged_shards_come_back_byte_for_byte(pair, plant, teacher, made):
    pair.chunk("embedding", 1).unlink()
    path = pair.chunk("logits", 3)
    path.write_bytes(path.read_bytes()[:-1])
    untouched = {f: f.stat().st_mtime_ns for shard in (0, 2) for f in [pair.chunk("embedding", shard)]}
    result = repair(pair, teacher)
    assert result.exit_code == 0, result.output
    assert "verify: caching 2 shards again; 2 old receipts kept as *.old" in result.stderr
    assert "cached again: shards 1, 3\n" in result.stdout
    after = chunks(pair.store)
    old = {name for name in after if name.endswith(".old")}
    assert {Path(name).name for name in old} == {"000001.json.old", "000003.json.old"}
    assert {name: data for name, data in after.items() if name not in old} == chunks(made.store)
    assert {f: f.stat().st_mtime_ns for f in untouched} == untouched
    assert pair.codes() == []


def test_values_that_only_the_teacher_finds_wrong_are_repaired_too(pair, plant, teacher, made):
    pair.rewrite(2, plant.changed("logits", lambda values: values * 3))
    assert pair.codes() == []
    result = repair(pair, teacher, "--teacher", "20")
    assert result.exit_code == 0, result.output
    assert "cached again: shards 2\n" in result.stdout
    now = {name: data for name, data in chunks(pair.store).items() if not name.endswith(".old")}
    assert now == chunks(made.store)


def test_an_old_receipt_of_other_bytes_has_another_name(pair, teacher):
    """The same bytes may be there of a repair that was killed as it set them aside: they are kept once."""
    folder = pair.store / "ledger" / "cache" / "receipts"
    shutil.copy(folder / "000001.json", folder / "000001.json.old")
    for expected in ([".old"], [".old", ".old2"]):
        pair.chunk("embedding", 1).unlink()
        assert repair(pair, teacher).exit_code == 0
        assert sorted(f.name for f in folder.glob("000001.json?*")) == [f"000001.json{ending}" for ending in expected]
        (folder / "000001.json.old").write_text("of another run")


def test_a_damaged_tar_is_beyond_it(pair, teacher):
    tar = pair.shards / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    pair.chunk("embedding", 1).unlink()
    before = chunks(pair.store)
    result = repair(pair, teacher)
    assert result.exit_code == 3
    assert "verify: nothing here can be repaired from the tars" in result.stderr
    assert "run the same `teachonce shard` command again" in result.stdout
    assert chunks(pair.store) == before


def test_another_teacher_mends_nothing(pair, teacher):
    pair.chunk("embedding", 1).unlink()
    before = chunks(pair.store)
    result = repair(pair, teacher, "--teacher-pretrained", "random")
    assert result.exit_code == 1
    assert "the store's class vectors are another teacher's" in result.stderr
    assert chunks(pair.store) == before


def test_a_store_is_repaired_by_what_made_it(made, teacher):
    from teachonce.stages.verifying.repair import check_same_run
    from teachonce.stages.verifying.whole import look_at_whole
    from teachonce.storage_schemas.errors import MismatchError
    from teachonce.storage_schemas.fingerprint import Fingerprint

    whole, _ = look_at_whole(str(made.shards), str(made.store))
    assert whole is not None
    fields = dict(whole.description.fingerprint)
    check_same_run(whole.store, fields, Fingerprint(fields=fields))
    other = Fingerprint(fields={**fields, "compute": {**fields["compute"], "threads": 9}})
    with pytest.raises(MismatchError, match="is not what the store was made with") as error:
        check_same_run(whole.store, fields, other)
    assert "field 'compute.threads'" in str(error.value)


def test_a_repair_that_was_killed_is_finished_by_the_same_command(pair, teacher):
    before = chunks(pair.store)
    for number, at in ((0, "000000.json"), (1, "000001.json")):
        receipt = pair.store / "ledger" / "cache" / "receipts" / at
        receipt.rename(receipt.with_name(f"{at}.old"))
        pair.chunk("embedding", number).unlink()
    assert pair.codes() == ["repair-unfinished", "repair-unfinished"]
    assert repair(pair, teacher).exit_code == 0
    assert {name: data for name, data in chunks(pair.store).items() if not name.endswith(".old")} == before


def test_a_store_that_cache_has_not_finished_is_not_finished_by_a_repair(pair, teacher):
    receipt = pair.store / "ledger" / "cache" / "receipts" / "000001.json"
    receipt.unlink()
    result = repair(pair, teacher)
    assert result.exit_code == 5
    assert not receipt.exists()


def test_the_lock_of_a_repair_that_was_killed_at_its_end_goes(pair, teacher):
    lock = pair.store / "ledger" / "driver.json"
    lock.write_text("{}")
    assert repair(pair, teacher).exit_code == 0
    assert not lock.exists()


def test_nothing_to_repair(made, teacher):
    result = repair(made, teacher, "--quick")
    assert result.exit_code == 0
    assert "verify: nothing to repair" in result.stderr


@pytest.mark.parametrize("views", ["center", "random"])
@pytest.mark.parametrize("encoding", ["fp16", "fp32"])
def test_stores_of_all_kinds_can_be_repaired(picture_shards, plant, teacher, tmp_path, views, encoding):
    spec = None if views == "center" else plant.VIEWS
    store = plant.make_store(picture_shards, tmp_path / "s.zarr", teacher, views=spec, encoding=encoding)
    pair = plant.Pair(picture_shards.location.path, store)
    before = chunks(store)
    pair.chunk("embedding", 0).write_bytes(b"")
    assert repair(pair, teacher).exit_code == 0
    assert {name: data for name, data in chunks(store).items() if not name.endswith(".old")} == before


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding": None, "max_kl": 0.05, "fit_views": 20},
        {"encoding": "embedding=int8", "max_bytes": 120.0},
        {"encoding": "logits=pca:0.5,embedding=pq:4", "fit_views": 30},
        {"encoding": "fp16", "chunk_views": 1},
    ],
)
def test_what_was_fitted_or_chosen_is_used_again(picture_shards, plant, teacher, tmp_path, monkeypatch, settings):
    store = plant.make_store(picture_shards, tmp_path / "s.zarr", teacher, **settings)
    pair = plant.Pair(picture_shards.location.path, store)
    before = chunks(store)
    pair.chunk("embedding", 0).write_bytes(b"")
    monkeypatch.setattr(cache, "choose_encodings", None)  # it would fit them anew
    result = repair(pair, teacher)
    assert result.exit_code == 0, result.output
    assert {name: data for name, data in chunks(store).items() if not name.endswith(".old")} == before
