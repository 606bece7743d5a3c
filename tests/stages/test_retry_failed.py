"""Failed images that are mended fill just their rows: against `shard` over the mended files, and a plain loop."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.measures.failed import FailedImage, by_kind
from teachonce.stages.pairs.join import open_pair
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.reports.failed_text import failed_text
from teachonce.stages.retry_failed import failed_images, plan_retry, retry_text
from teachonce.stages.settings.retry_failed import RetrySettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.status import folder_status
from teachonce.storage_schemas.errors import (
    IncompleteError,
    InputError,
    MismatchError,
    TeachonceError,
    UnitsFailed,
)

SIZE = 10

#: Cut in the middle, empty, and gone before the shards are made.
CUT, EMPTY = "Blue_Jay/20b.jpg", "red fox/07b.jpg"


def shard(corpus, out, *, append=False, **options):
    sources = [str(c) for c in (corpus if isinstance(corpus, (list, tuple)) else [corpus])]
    stage = plan_shard(sources, out=out, settings=ShardSettings(append=append, **{"shard_size": SIZE, **options}))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(out)


def retry(out, *sources, stores=()):
    settings = RetrySettings(source=tuple(str(source) for source in sources))
    found = plan_retry(out, settings=settings, stores=stores)
    if found.stage is not None:
        run_stage(found.stage, found.stage.out, SerialExecutor(), progress=False)
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def data_of(folder: Path) -> dict[str, bytes]:
    """Tars, indexes and manifest."""
    return {name: data for name, data in tree(folder).items() if name.endswith((".tar", ".npy", ".parquet"))}


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    """48 files, of which two are broken."""
    return Path(shutil.copytree(pictures, tmp_path / "photos"))


def mend(pictures: Path, folder: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        shutil.copyfile(sorted((pictures / "house-cat").glob("*.jpg"))[number], folder / path)


@pytest.mark.parametrize("order", ["hash", "source"])
def test_mended_files_fill_just_their_rows_as_if_they_had_been_good_before(pictures, folder, tmp_path, order):
    out = tmp_path / "out"
    before = shard(folder, out, order=order)
    old, receipts = tree(out), {row.row: row for s in range(5) for row in before.receipt(s).invalid_rows}
    rows = {bad.path: row for row, bad in receipts.items()}
    mend(pictures, folder, CUT, EMPTY)
    found = retry(out, folder)
    assert {one.row: one.path for one in found.mended} == {row: path for path, row in rows.items()}
    after, fresh = ShardSet.open(out), shard(folder, tmp_path / "fresh", order=order)
    assert data_of(out).keys() == data_of(tmp_path / "fresh").keys()
    assert {n: d for n, d in data_of(out).items() if d != data_of(tmp_path / "fresh")[n]} == {}
    assert after.corpus.corpus_id == fresh.corpus.corpus_id
    assert list(after.manifest()) == list(fresh.manifest())
    assert (after.corpus.mended, after.corpus.replaced) == (tuple(sorted(rows.values())), ())
    shards = sorted({row // SIZE for row in rows.values()})
    changed = {name for name, data in tree(out).items() if old.get(name) != data}
    assert changed == {
        "corpus.json",
        "manifest.parquet",
        "ledger/retry-failed.2/plan.json",
        *(f"ledger/retry-failed.2/receipts/{s:06d}.json" for s in shards),
        *(f"{s:06d}{ending}" for s in shards for ending in (".tar", ".index.npy")),
    }
    assert old.keys() < tree(out).keys()  # the receipts of what was are there still
    assert [after.ledger_of(s).stage for s in range(5)] == [
        "retry-failed.2" if s in shards else "shard" for s in range(5)
    ]
    assert failed_images(out) == []
    reader = after.reader(rows[CUT] // SIZE)
    assert reader.read(rows[CUT]) == (folder / CUT).read_bytes()
    reader.close()
    # Nothing is left to do: neither for this command nor for shard.
    assert retry(out, folder).retried == ()
    facts = folder_status(out)
    assert facts["state"] == "complete"
    assert [(stage["stage"], stage["invalid_rows"], stage["damaged"]) for stage in facts["stages"]] == [
        ("shard", 0, 0),
        ("retry-failed.2", 0, 0),
    ]
    shard(folder, out, order=order)
    assert tree(out) == tree(out)


def test_the_table_names_all_failed_images_with_their_stage(pictures, folder, tmp_path, make_store):
    (folder / "red fox" / "nothing.jpg").symlink_to("nowhere")
    (folder / "red fox" / "text.jpg").write_text("no image at all")
    shards = shard(folder, tmp_path / "out", order="source")
    store = make_store(shards, tmp_path / "s.zarr", num_views=1, also_invalid=(5, 30))
    paths = [entry.path for entry in shards.manifest()]
    keys = [entry.key for entry in shards.manifest()]
    expected = {
        CUT: ("truncated image", "shard"),
        EMPTY: ("empty file", "shard"),
        "red fox/nothing.jpg": ("cannot be read: No such file or directory", "shard"),
        "red fox/text.jpg": ("not an image that Pillow reads", "shard"),
        paths[5]: ("no image", "cache"),
        paths[30]: ("no image", "cache"),
    }
    found = failed_images(tmp_path / "out", [store.location])
    assert [one.row for one in found] == sorted(paths.index(path) for path in expected)
    assert {one.path: (one.reason, one.stage) for one in found} == expected
    assert all(one.key == keys[one.row] for one in found)
    assert {one.store for one in found if one.stage == "cache"} == {str(store.location)}
    assert [kind for kind, _ in by_kind(found)] == [
        "no image",
        "cannot be read",
        "empty file",
        "not an image that Pillow reads",
        "truncated image",
    ]
    text = failed_text(found)
    assert text.splitlines()[:5] == [
        "6 failed images",
        "",
        "2 × no image",
        f"  row 5   {paths[5].ljust(max(len(paths[5]), len(paths[30])))}  cache ({store.location})",
        f"  row 30  {paths[30].ljust(max(len(paths[5]), len(paths[30])))}  cache ({store.location})",
    ]
    assert failed_text([]) == "no failed images"
    assert FailedImage(row=1, key="k", path="p", reason="a: b", stage="shard").to_json() == {
        "row": 1,
        "key": "k",
        "path": "p",
        "reason": "a: b",
        "stage": "shard",
    }


def test_a_file_that_is_still_broken_has_its_new_reason_where_its_shard_is_written_anew(pictures, folder, tmp_path):
    other = "red fox/08b.jpg"
    (folder / other).write_bytes(b"")
    shard(folder, tmp_path / "out", shard_size=100)
    mend(pictures, folder, CUT)
    (folder / EMPTY).write_text("no image at all")
    found = retry(tmp_path / "out", folder)
    assert retry_text(found) == [
        "3 failed images read again, 1 mended",
        f"1 still × empty file (first: row {found.failing[0].row if found.failing[0].path == other else found.failing[1].row}, {other})",
        "1 still × not an image that Pillow reads (first: row "
        f"{next(one.row for one in found.failing if one.path == EMPTY)}, {EMPTY})",
    ]
    assert {one.path: one.reason for one in failed_images(tmp_path / "out")} == {
        EMPTY: "not an image that Pillow reads",
        other: "empty file",
    }
    fresh = shard(folder, tmp_path / "fresh", shard_size=100)
    assert ShardSet.open(tmp_path / "out").corpus.corpus_id == fresh.corpus.corpus_id
    assert data_of(tmp_path / "out") == data_of(tmp_path / "fresh")


def test_nothing_is_written_where_nothing_is_mended(folder, tmp_path):
    shard(folder, tmp_path / "out")
    before = tree(tmp_path / "out")
    (folder / CUT).unlink()
    found = retry(tmp_path / "out", folder)
    assert found.stage is None
    assert {one.path: one.reason for one in found.failing} == {
        CUT: "not among the sources any more",
        EMPTY: "empty file",
    }
    assert tree(tmp_path / "out") == before


def test_images_that_were_good_may_be_gone_or_other_ones(pictures, folder, tmp_path):
    """They are taken from the tars."""
    shard(folder, tmp_path / "out")
    mend(pictures, folder, CUT)
    mended = tmp_path / "photos2"
    (mended / "Blue_Jay").mkdir(parents=True)
    shutil.copyfile(folder / CUT, mended / CUT)
    retry(tmp_path / "out", f"photos={mended}")
    fresh = shard(folder, tmp_path / "fresh")
    assert data_of(tmp_path / "out") == data_of(tmp_path / "fresh")
    assert ShardSet.open(tmp_path / "out").corpus.corpus_id == fresh.corpus.corpus_id


@pytest.mark.parametrize("kind", ["tar", "list", "resized"])
def test_other_sources(pictures, folder, tmp_path, kind):
    options = {"resize": 20} if kind == "resized" else {}

    def source() -> Path:
        if kind == "tar":
            with tarfile.open(tmp_path / "photos.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
                for path in sorted(folder.rglob("*.*")):
                    archive.add(path, path.relative_to(folder).as_posix())
            return tmp_path / "photos.tar"
        if kind == "list":
            rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*/*.*"))]
            (tmp_path / "photos.csv").write_text("\n".join(["path,label", *rows, f"{folder}/later.jpg,x"]))
            return tmp_path / "photos.csv"
        return folder

    shard(source(), tmp_path / "out", **options)
    mend(pictures, folder, CUT, EMPTY, *(["later.jpg"] if kind == "list" else []))
    found = retry(tmp_path / "out", source())
    assert len(found.mended) == (3 if kind == "list" else 2)
    fresh = shard(source(), tmp_path / "fresh", **options)
    tars = {name: data for name, data in data_of(tmp_path / "out").items() if "manifest" not in name}
    assert tars == {name: data for name, data in data_of(tmp_path / "fresh").items() if "manifest" not in name}
    assert ShardSet.open(tmp_path / "out").corpus.corpus_id == fresh.corpus.corpus_id


def test_growing_and_mending_take_turns(pictures, folder, tmp_path, make_store):
    out = tmp_path / "out"
    states = [shard(folder, out)]
    old = make_store(states[0], tmp_path / "old.zarr", num_views=1)
    mend(pictures, folder, CUT)
    retry(out, folder)
    states.append(ShardSet.open(out))
    (folder / "new.jpg").write_bytes(b"")
    shutil.copyfile(folder / CUT, folder / "other.jpg")
    states.append(shard(folder, out, append=True))
    mend(pictures, folder, "new.jpg", EMPTY)
    found = retry(out, folder)
    assert {one.path for one in found.mended} == {"new.jpg", EMPTY}
    now = ShardSet.open(out)
    assert [ledger.stage for ledger in now.ledgers] == ["shard", "retry-failed.2", "shard.3", "retry-failed.4"]
    for state in states:
        then = now.as_of(state.corpus.corpus_id)
        assert then.corpus.layout == state.corpus.layout
    mended, replaced = now.as_of(states[0].corpus.corpus_id).changed_since()
    assert ({e.path for i, e in enumerate(now.manifest()) if i in mended}, replaced) == ({CUT, EMPTY}, set())
    assert failed_images(out) == []
    # A store of the first state is what it was: without the mended rows.
    facts = open_pair(now, old.location)[1]
    assert int(facts.valid_rows.sum()) == 46
    with TargetStream(now, old.location, image_size=8, batch_size=4, drop_last=False) as stream:
        rows = np.concatenate([batch.rows_N.numpy() for batch in stream])
    assert sorted(rows) == np.flatnonzero(old.valid).tolist()
    # Shards that lose a receipt of any generation are written anew.
    whole = tree(out)
    for ledger, number in (("shard", 0), ("retry-failed.2", None), ("shard.3", 5), ("retry-failed.4", 5)):
        receipts = sorted((out / "ledger" / ledger / "receipts").glob("*.json"))
        own = [r for r in receipts if now.ledger_of(int(r.stem)).stage == ledger]
        if not own:
            continue
        assert number is None or any(int(r.stem) == number for r in receipts)
        own[0].unlink()
        (out / f"{own[0].stem}.tar").unlink()
        stage = plan_shard([str(folder)], out=out, settings=ShardSettings(shard_size=SIZE))
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        assert tree(out) == whole, ledger


def broken_inside(path: Path) -> None:
    """A JPEG that ends as one should, so that `shard` takes it, and cannot be decoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    start = data.index(b"\xff\xc4")
    data[start + 5 : start + 21] = b"\xff" * 16  # how many codes there are of each length
    path.write_bytes(data)


def test_an_image_that_only_the_teachers_pass_could_not_use(pictures, folder, tmp_path, make_store):
    victim = "house-cat/02.jpg"
    broken_inside(folder / victim)
    out = tmp_path / "out"
    shards = shard(folder, out)
    row = [entry.path for entry in shards.manifest()].index(victim)
    strict = make_store(shards, tmp_path / "strict.zarr", num_views=1, also_invalid=(row,))
    assert [one.path for one in failed_images(out, [strict.location]) if one.stage == "cache"] == [victim]
    assert len(retry(out, folder).retried) == 2  # without the store nobody knows
    found = retry(out, folder, stores=[strict.location])
    assert found.stage is None
    assert any(one.path == victim and one.same for one in found.failing)
    mend(pictures, folder, victim)
    found = retry(out, folder, stores=[strict.location])
    assert [one.path for one in found.mended] == [victim]
    now = ShardSet.open(out)
    assert (now.corpus.mended, now.corpus.replaced) == ((row,), (row,))
    fresh = shard(folder, tmp_path / "fresh")
    assert data_of(out) == data_of(tmp_path / "fresh")
    assert now.corpus.corpus_id == fresh.corpus.corpus_id
    assert int(open_pair(now, strict.location)[1].valid_rows.sum()) == 45
    assert next(one for one in failed_images(out, [strict.location]) if one.stage == "cache").path == victim


def test_targets_of_an_image_that_was_replaced_are_refused(pictures, folder, tmp_path, make_store):
    """Another store has targets of the image as it was."""
    victim, out = "house-cat/02.jpg", tmp_path / "out"
    shards = shard(folder, out)
    row = [entry.path for entry in shards.manifest()].index(victim)
    strict = make_store(shards, tmp_path / "strict.zarr", num_views=1, also_invalid=(row,))
    lenient = make_store(shards, tmp_path / "lenient.zarr", num_views=1)
    shutil.copyfile(folder / "house-cat/05.png", folder / victim)
    retry(out, folder, stores=[strict.location])
    open_pair(ShardSet.open(out), strict.location)
    with pytest.raises(MismatchError) as caught:
        open_pair(ShardSet.open(out), lenient.location)
    assert str(caught.value) == (
        f"an image was replaced since the teacher saw it: {lenient.location}, row {row}: expected targets of the image that is in "
        f"{out} now, found those of the image before. Next: teachonce cache {out} --teacher … --out {lenient.location} --grow"
    )


class Killed(BaseException):
    """What no code catches."""

    def __init__(self, name: str) -> None:
        super().__init__(name)


def test_killed_at_any_write_the_rows_are_there_and_the_same_command_finishes(pictures, folder, tmp_path):
    place = MemoryPlace()
    start = shard(folder, Location(place, "calm"))
    base = {name: data for name, data in place.files().items() if name.startswith("calm/")}
    old = [repr(e) for e in start.manifest()]
    good = {row: start.reader(s).read(row) for s in range(5) for row in start.reader(s).index["row"].tolist()}
    mend(pictures, folder, CUT, EMPTY)
    place.written.clear()
    retry(Location(place, "calm"), folder)

    def files_of(name: str) -> dict[str, bytes]:
        found = place.files()
        return {n.removeprefix(name): d for n, d in found.items() if n.startswith(name) and "/timings/" not in n}

    writes, calm, switched = len(place.written), files_of("calm/"), 0
    assert not [name for name in calm if ".next" in name or name.endswith(".2")]
    for nth in range(1, writes + 1):
        for name, data in base.items():
            place.write(f"k{nth}/{name.removeprefix('calm/')}", data)
        out = Location(place, f"k{nth}")
        place.faults = [Fault(nth=nth, name=f"k{nth}/*", error=Killed if nth % 2 else Fault.error)]
        with pytest.raises((TeachonceError, Killed)):
            retry(out, folder)
        place.faults = []
        found = ShardSet.open(out)
        entries = [repr(e) for e in found.manifest()]
        is_new = len(found.corpus.states) == 2
        switched += is_new
        assert is_new or entries == old
        for number in range(5):
            reader = found.reader(number)
            rows = reader.index["row"].tolist()
            assert all(reader.read(row) == good.get(row, reader.read(row)) for row in rows)
            assert len(rows) + len(reader.invalid) == len(found.corpus.rows(number))
        assert found.as_of(start.corpus.corpus_id) is not None
        retry(out, folder)
        assert files_of(f"k{nth}/") == calm, nth
    assert switched > 1  # behind corpus.json tars and manifest take their places


def test_what_is_begun_is_finished_first(pictures, folder, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    mend(pictures, folder, CUT)
    settings = RetrySettings(source=(str(folder),))
    plan_retry(out, settings=settings)
    for append in (False, True):
        with pytest.raises(IncompleteError) as caught:
            shard(folder, out, append=append)
        assert (caught.value.code, caught.value.expected) == (
            "append-unfinished",
            "the same `teachonce retry-failed` command again",
        )
    again = plan_retry(out, settings=settings)
    assert retry_text(again) == ["what was begun goes on"]
    (folder / CUT).unlink()
    assert again.stage is not None
    with pytest.raises(UnitsFailed) as failed:
        run_stage(again.stage, again.stage.out, SerialExecutor(), progress=False)
    assert f"or give up what was begun: rm {out}/corpus.next.json" in str(failed.value)
    (out / "corpus.next.json").unlink()
    mend(pictures, folder, EMPTY)
    assert [one.path for one in retry(out, folder).mended] == [EMPTY]
    assert len(ShardSet.open(out).corpus.states) == 2

    shutil.copyfile(folder / EMPTY, folder / "new.jpg")
    plan_shard([str(folder)], out=out, settings=ShardSettings(shard_size=SIZE, append=True))
    with pytest.raises(IncompleteError) as caught:
        retry(out, folder)
    assert caught.value.expected == "the same `teachonce shard --append` command again, with the sources photos"


def test_sources_are_needed_and_are_those_of_the_corpus(folder, tmp_path, make_store, pictures):
    out = tmp_path / "out"
    shard(folder, out)
    with pytest.raises(InputError) as caught:
        retry(out)
    assert caught.value.fields == {
        "code": "retry-needs-source",
        "where": "--source",
        "expected": "--source photos=PATH",
        "hint": f"name them, or see what failed: teachonce retry-failed {out} --list",
    }
    with pytest.raises(InputError) as caught:
        retry(out, folder / "red fox")
    assert (caught.value.code, caught.value.where, caught.value.expected) == (
        "retry-other-source",
        "red fox",
        "photos",
    )
    other = make_store(shard(pictures / "red fox", tmp_path / "other"), tmp_path / "o.zarr", num_views=1)
    with pytest.raises(MismatchError, match="these shards are another corpus's"):
        retry(out, folder, stores=[other.location])
    with pytest.raises(InputError, match="no shards here"):
        retry(tmp_path, folder)


def test_on_the_command_line(python, folder, pictures, tmp_path):
    def run(*words: object, code: int = 0) -> tuple[str, str]:
        process = python.start("-m", "teachonce", *words)
        assert process.wait() == code, process.stderr
        return process.stdout, process.stderr

    out = tmp_path / "out"
    run("shard", folder, "--out", out, "--shard-size", SIZE, "--executor", "serial")
    shown, _ = run("retry-failed", out, "--list")
    assert shown.startswith("2 failed images\n\n1 × empty file\n  row ")
    listed = json.loads(run("retry-failed", out, "--list", "--json")[0])
    assert {one["path"]: one["reason"] for one in listed["failed"]} == {EMPTY: "empty file", CUT: "truncated image"}
    words = ("retry-failed", out, "--source", folder, "--executor", "serial")
    _, told = run(*words)
    assert told.splitlines()[-1] == f"Nothing to fill in. Output: {out}"
    mend(pictures, folder, CUT)
    told = json.loads(run(*words, "--json")[0])
    assert (told["stage"], told["units"], told["done_now"]) == ("retry-failed", 1, 1)
    assert ([one["path"] for one in told["mended"]], [one["path"] for one in told["failing"]]) == ([CUT], [EMPTY])
    assert "2 failed images" not in run("retry-failed", out, "--list")[0]
    _, told = run("retry-failed", tmp_path, "--list", code=1)
    assert told.startswith("Error: no shards here")
