"""`shard --append` against a plain loop over the folder, webdataset's own writer, and `shard` over other folders."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.pairs.join import open_pair
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import (
    IncompleteError,
    InputError,
    MismatchError,
    TeachonceError,
    UnitsFailed,
    Unreachable,
)
from teachonce.storage_schemas.samples import content_digest, sample_key

SIZE = 10


def shard(corpus, out, *, append=False, **options):
    """Run the stage; returns it."""
    sources = [str(c) for c in (corpus if isinstance(corpus, (list, tuple)) else [corpus])]
    stage = plan_shard(sources, out=out, settings=ShardSettings(append=append, **{"shard_size": SIZE, **options}))
    if list(stage.plan()):
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


@pytest.fixture(scope="module")
def halves(pictures, tmp_path_factory) -> tuple[list[Path], list[Path]]:
    """27 and 21 of the pictures, in no order of paths; each half has one that is broken."""
    every = sorted(p for p in pictures.rglob("*.*"))
    early = [p for i, p in enumerate(every) if i % 16 < 9]
    return early, [p for p in every if p not in early]


def put(files: list[Path], pictures: Path, folder: Path) -> Path:
    for file in files:
        target = folder / file.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder


@pytest.fixture
def folder(halves, pictures, tmp_path) -> Path:
    return put(halves[0], pictures, tmp_path / "photos")


def plain_tar(rows: list[tuple[int, str, str, bytes]]) -> bytes:
    """A shard's tar by webdataset, from (row, key, path, content)."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0) as writer:
        for row, key, path, data in rows:
            facts = {"digest": content_digest(data), "label": path.split("/")[-2], "path": path, "row": row}
            metadata = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
            writer.write({"__key__": key, path.rpartition(".")[2]: data})
            writer.write({"__key__": key, "json": metadata})
    return buffer.getvalue()


def plain_part(files: dict[str, bytes], name: str, order: str, first_shard: int, bad: set[str]) -> list[bytes]:
    """Tars of these files as a part that begins with a shard: a plain loop."""
    keys = {path: sample_key(name, path) for path in files}
    paths = sorted(files, key=(lambda p: keys[p]) if order == "hash" else (lambda p: p.encode()))
    tars = []
    for start in range(0, len(paths), SIZE):
        here = [((first_shard * SIZE) + start + i, p) for i, p in enumerate(paths[start : start + SIZE])]
        tars.append(plain_tar([(row, keys[p], p, files[p]) for row, p in here if p not in bad]))
    return tars


BAD = {"red fox/07b.jpg", "Blue_Jay/20b.jpg"}


@pytest.mark.parametrize("order", ["hash", "source"])
def test_new_images_become_shards_behind_the_old_ones(folder, halves, pictures, tmp_path, order):
    out = tmp_path / "out"
    shard(folder, out, order=order)
    before, old_rows = tree(out), list(ShardSet.open(out).manifest())
    put(halves[1], pictures, folder)
    stage = shard(folder, out, append=True)
    assert (stage.ledger, len(list(stage.plan()))) == ("shard.2", 3)
    assert stage.appended.to_json() == {
        "new": 21,
        "known": 27,
        "changed": {},
        "maybe_mended": {"images": 0, "first": None},
        "vanished": {"images": 0, "first": None},
        "new_sources": [],
    }
    shards = ShardSet.open(out)
    after, corpus = tree(out), shards.corpus
    assert [name for name in before if before[name] != after.get(name)] == ["corpus.json", "manifest.parquet"]
    assert (corpus.num_samples, corpus.num_shards, corpus.num_rows) == (48, 6, 51)
    assert [len(corpus.rows(shard)) for shard in range(6)] == [10, 10, 7, 10, 10, 1]
    files = {p.relative_to(pictures).as_posix(): p.read_bytes() for p in halves[1]}
    for number, tar in enumerate(plain_part(files, "photos", order, 3, BAD), 3):
        assert after[f"{number:06d}.tar"] == tar, number
    assert list(shards.manifest())[:27] == old_rows
    rows = []
    for number in range(6):
        reader = shards.reader(number)
        for row in reader.index["row"].tolist():
            entry = shards.manifest().shard(number)[row - number * SIZE]
            assert reader.read(row) == (pictures / entry.path).read_bytes()
            rows.append(row)
        reader.close()
    bad = {row for number in range(6) for row in (b.row for b in shards.receipt(number).invalid_rows)}
    assert len(bad) == 2
    assert sorted([*rows, *bad]) == [*range(27), *range(30, 51)]


@pytest.mark.parametrize("order", ["hash", "source"])
def test_the_images_of_an_append_are_those_of_shards_of_them_alone(folder, halves, pictures, tmp_path, order):
    """Members, names and order are equal; the row in each member's metadata counts from the first new shard on."""
    shard(folder, tmp_path / "grown", order=order)
    put(halves[1], pictures, folder)
    shard(folder, tmp_path / "grown", append=True)
    shard(put(halves[1], pictures, tmp_path / "new" / "photos"), tmp_path / "alone", order=order)

    def members(tar: Path, shift: int) -> list[tuple[str, bytes]]:
        found = []
        with tarfile.open(tar) as opened:
            for member in opened:
                data = opened.extractfile(member).read()
                if member.name.endswith(".json"):
                    facts = json.loads(data)
                    data = json.dumps(facts | {"row": facts["row"] - shift}).encode()
                found.append((member.name, data))
        return found

    for number in range(3):
        assert members(tmp_path / f"grown/{number + 3:06d}.tar", 30) == members(tmp_path / f"alone/{number:06d}.tar", 0)
        grown, alone = (
            np.load(tmp_path / n) for n in (f"grown/{number + 3:06d}.index.npy", f"alone/{number:06d}.index.npy")
        )
        assert (grown["row"] - 30 == alone["row"]).all()
        assert (grown[["key", "crc32", "length"]] == alone[["key", "crc32", "length"]]).all()


def test_whole_shards_in_the_order_of_the_sources_grow_into_what_shard_makes_at_once(pictures, tmp_path):
    every = sorted((p for p in pictures.rglob("*.*")), key=lambda p: p.relative_to(pictures).as_posix().encode())
    folder = put(every[:20], pictures, tmp_path / "photos")
    shard(folder, tmp_path / "grown", order="source")
    put(every[20:], pictures, folder)
    shard(folder, tmp_path / "grown", append=True)
    shard(folder, tmp_path / "once", order="source")
    grown, once = tree(tmp_path / "grown"), tree(tmp_path / "once")
    same = [name for name in once if "ledger" not in name and name != "corpus.json"]
    assert len(same) == 11
    assert {name: grown[name] for name in same} == {name: once[name] for name in same}
    ids = [ShardSet.open(tmp_path / name).corpus for name in ("grown", "once")]
    assert ids[0].corpus_id == ids[1].corpus_id
    assert ids[0].layout == ids[1].layout


def test_growing_again_and_again(folder, halves, pictures, tmp_path):
    out, states = tmp_path / "out", []
    for start in range(0, 21, 7):
        shard(folder, out, append=start > 0)
        states.append(ShardSet.open(out).corpus)
        put(halves[1][start : start + 7], pictures, folder)
    shards = ShardSet.open(out)
    assert [s.corpus_id for s in shards.corpus.states] == [s.corpus_id for s in states]
    assert shards.corpus.layout.parts == (27, 7, 7)
    assert [ledger.stage for ledger in shards.ledgers] == ["shard", "shard.2", "shard.3"]
    assert [shards.ledger_of(shard).stage for shard in range(5)] == ["shard"] * 3 + ["shard.2", "shard.3"]
    for state in states:
        then = shards.as_of(state.corpus_id)
        assert [e.path for e in then.manifest()] == [e.path for e in shards.manifest()][: state.num_samples]
        assert (then.corpus.num_rows, then.corpus.num_shards) == (state.num_rows, state.num_shards)
    assert shards.as_of("0" * 32) is None


def test_a_store_of_an_earlier_state_is_read_with_the_grown_shards(folder, halves, pictures, tmp_path, make_store):
    out = tmp_path / "out"
    shard(folder, out)
    old = make_store(ShardSet.open(out), tmp_path / "old.zarr", num_views=1)

    def batches(store) -> list:
        with TargetStream(out, store, image_size=8, batch_size=4, drop_last=False) as stream:
            return [(b.images_NCHW.numpy(), b.targets["logits"].numpy(), b.rows_N.numpy()) for b in stream]

    before = batches(old.location)
    put(halves[1], pictures, folder)
    shard(folder, out, append=True)
    shards = ShardSet.open(out)
    after = batches(old.location)
    for one, other in zip(before, after, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    new = make_store(shards, tmp_path / "new.zarr", num_views=1)
    rows = np.concatenate([rows for _, _, rows in batches(new.location)])
    assert sorted(rows) == sorted(np.flatnonzero(new.valid))
    assert len(rows) == 46
    facts = open_pair(shards, new.location)[1]
    assert (facts.spec.parts, facts.spec.num_rows, facts.valid_rows.sum()) == ((27, 21), 51, 46)
    logits = np.concatenate([values for _, values, _ in batches(new.location)])
    np.testing.assert_array_equal(logits, new.targets["logits"][rows, 0])
    other = tmp_path / "other"
    shard(folder, other)
    with pytest.raises(MismatchError) as caught:
        open_pair(ShardSet.open(other), old.location)
    assert (caught.value.code, str(caught.value.where)) == ("store-other-corpus", f"{old.location}: field 'corpus_id'")


def test_another_source_gets_its_name_before_its_paths(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    more = put(halves[1], pictures, tmp_path / "more")
    tar = tmp_path / "packed.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(halves[0][0], "x/" + halves[0][0].name)
    listed = tmp_path / "listed.csv"
    listed.write_text(f"path,label\n{halves[0][1]},seen\n")
    stage = shard([more, tar, listed], out, append=True)
    assert stage.appended.lines() == ["23 new images, 0 there already; new to this corpus: listed, more, packed"]
    shards = ShardSet.open(out)
    entries = {e.path: e for e in shards.manifest()}
    assert [(s.name, s.prefix) for s in shards.corpus.sources] == [
        ("photos", ""),
        ("listed", "listed/"),
        ("more", "more/"),
        ("packed", "packed/"),
    ]
    assert {e.path.partition("/")[0] for e in list(shards.manifest())[27:]} == {"listed", "more", "packed"}
    assert entries[f"packed/x/{halves[0][0].name}"].label == "x"
    assert next(e.label for p, e in entries.items() if p.startswith("listed/")) == "seen"
    # The same again adds nothing; nor does the first source, whose paths have no name before them.
    for sources in ([more, tar, listed], folder, [folder, more]):
        assert not list(shard(sources, out, append=True).plan())
    assert ShardSet.open(out).corpus == shards.corpus


def test_a_corpus_of_several_sources_grows_in_one_of_them(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    other = put(halves[1][:5], pictures, tmp_path / "other")
    shard([folder, other], out)
    put(halves[1][5:], pictures, other)
    stage = shard([other], out, append=True)
    assert stage.appended.lines() == ["16 new images, 5 there already"]
    entries = list(ShardSet.open(out).manifest())
    assert [e.path.partition("/")[0] for e in entries[32:]] == ["other"] * 16
    assert {e.source for e in entries[32:]} == {0}  # sources are numbered by their names: other, photos


def test_what_changed_is_left_alone_and_named(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    before = tree(out)
    victim, gone, mended = halves[0][3], halves[0][4], "Blue_Jay/20b.jpg"
    (folder / victim.relative_to(pictures)).write_bytes(halves[0][5].read_bytes())
    (folder / gone.relative_to(pictures)).unlink()
    broken = next(p for p in BAD if (folder / p).exists())
    (folder / broken).write_bytes(halves[0][5].read_bytes())
    put(halves[1][:1], pictures, folder)
    stage = shard(folder, out, append=True)
    assert stage.appended.lines() == [
        "1 new image, 26 there already",
        f"1 image left as in the shards, with another size by now (first: {victim.relative_to(pictures)})",
        f"1 image that could not be used may be mended by now (first: {broken}): see `teachonce retry-failed`",
        f"1 image of the shards not among the sources any more (first: {gone.relative_to(pictures)})",
    ]
    after = tree(out)
    assert all(after[f"00000{number}.tar"] == before[f"00000{number}.tar"] for number in range(3))
    assert mended in BAD


def test_another_label_in_a_list_is_named(halves, tmp_path):
    listed = tmp_path / "photos.csv"
    rows = [f"{path},a" for path in halves[0][:4]]
    listed.write_text("\n".join(["path,label", *rows]))
    shard(listed, tmp_path / "out")
    listed.write_text("\n".join(["path,label", rows[0][:-1] + "b", *rows[1:], f"{halves[0][5]},c"]))
    stage = shard(listed, tmp_path / "out", append=True)
    first = next(e.path for e in ShardSet.open(tmp_path / "out").manifest() if e.path.endswith(halves[0][0].name))
    assert stage.appended.lines() == [
        "1 new image, 4 there already",
        f"1 image left as in the shards, with another label by now (first: {first})",
    ]
    assert sorted(str(e.label) for e in ShardSet.open(tmp_path / "out").manifest()) == ["a", "a", "a", "a", "c"]


def test_new_images_that_are_all_broken_get_rows(folder, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    (folder / "new.jpg").write_bytes(b"")
    shard(folder, out, append=True)
    shards = ShardSet.open(out)
    (bad,) = shards.receipt(3).invalid_rows
    assert (bad.row, bad.path, bad.reason) == (30, "new.jpg", "empty file")
    assert not len(shards.reader(3).index)


def test_without_append_grown_shards_are_checked_and_done_anew(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    put(halves[1], pictures, folder)
    with pytest.raises(MismatchError) as caught:
        shard(folder, out)
    assert caught.value.hint == (
        "to add what is new, run the same command with --append; or write the changed corpus to another --out"
    )
    shard(folder, out, append=True)
    whole = tree(out)
    for receipt, files in (("shard/receipts/000001", 1), ("shard.2/receipts/000004", 4)):
        (out / f"ledger/{receipt}.json").unlink()
        (out / f"{files:06d}.tar").unlink()
        with pytest.raises(IncompleteError, match="run the same `teachonce shard` command again"):
            ShardSet.open(out)
        shard(folder, out)
        assert tree(out) == whole
    put(halves[0][:1], pictures, folder / "deeper")
    with pytest.raises(MismatchError) as caught:
        shard(folder, out)
    assert (caught.value.code, caught.value.found) == (
        "corpus-changed",
        "1 new image, 0 with another size or label, 0 missing",
    )


def test_other_options_are_refused(folder, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    for options, field in (({"shard_size": 11}, "shard_size"), ({"name": "x"}, "name"), ({"order": "source"}, "order")):
        with pytest.raises(MismatchError, match=f"corpus.json: field '{field}'"):
            shard(folder, out, append=True, **options)
    with pytest.raises(InputError, match="no shards here"):
        shard(folder, tmp_path / "nothing", append=True)


def test_shards_that_are_not_finished_do_not_grow(folder, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    (out / "ledger/shard/receipts/000002.json").unlink()
    with pytest.raises(IncompleteError) as caught:
        shard(folder, out, append=True)
    assert (caught.value.code, caught.value.hint) == (
        "stage-unfinished",
        "run the same `teachonce shard` command again",
    )


def test_two_sources_never_share_a_path(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    name = halves[0][0].relative_to(pictures).parts[0]
    more = put(halves[0][:1], pictures, tmp_path / "elsewhere") / name
    with pytest.raises(InputError) as caught:
        shard(f"{name}={more}", out, append=True)
    assert (caught.value.code, caught.value.found) == (
        "path-in-two-sources",
        f"in '{name}', and in another source of this corpus",
    )
    shard(f"later={put(halves[1][:1], pictures, tmp_path / 'later')}", out, append=True)
    put(halves[1][1:2], pictures, folder / "later")
    with pytest.raises(InputError, match=r"path-in-two-sources|an image of one path"):
        shard(folder, out, append=True)


def test_shards_that_do_not_record_their_sources(folder, halves, pictures, tmp_path):
    """As early versions wrote them."""
    out = tmp_path / "out"

    def forget() -> None:
        facts = json.loads((out / "corpus.json").read_bytes())
        del facts["sources"], facts["seal"]
        (out / "corpus.json").write_text(json.dumps(facts))

    shard(folder, out, name="named")
    forget()
    put(halves[1], pictures, folder)
    with pytest.raises(InputError) as caught:
        shard([folder, put(halves[1], pictures, tmp_path / "more")], out, append=True)
    assert caught.value.code == "sources-not-recorded"
    moved = folder.rename(tmp_path / "moved")
    assert shard(moved, out, append=True).appended.lines() == ["21 new images, 27 there already"]

    shutil.rmtree(out)
    shard([moved, tmp_path / "more"], out)
    forget()
    put(halves[0], pictures, tmp_path / "more")
    stage = shard(tmp_path / "more", out, append=True)
    assert stage.appended.lines() == ["27 new images, 21 there already"]
    assert {e.path.partition("/")[0] for e in list(ShardSet.open(out).manifest())[69:]} == {"more"}


class Killed(BaseException):
    """What no code catches."""

    def __init__(self, name: str) -> None:
        super().__init__(name)


def files_of(folder: Location) -> dict[str, bytes]:
    start = f"{folder.full_name}/"
    assert isinstance(folder.place, MemoryPlace)
    found = folder.place.files()
    return {n.removeprefix(start): data for n, data in found.items() if n.startswith(start) and "/timings/" not in n}


def test_killed_at_any_write_the_old_corpus_is_there_and_the_same_command_finishes(folder, halves, pictures, tmp_path):
    place = MemoryPlace()
    shard(folder, Location(place, "calm"))
    base = {name: data for name, data in place.files().items() if name.startswith("calm/")}
    old = [repr(e) for e in ShardSet.open(Location(place, "calm")).manifest()]
    put(halves[1], pictures, folder)
    place.written.clear()
    shard(folder, Location(place, "calm"), append=True)
    writes, calm = len(place.written), files_of(Location(place, "calm"))
    assert {"corpus.next.json", "manifest.next.parquet", "manifest.draft.parquet"} & set(calm) == set()
    switched = 0
    for nth in range(1, writes + 1):
        for name, data in base.items():
            place.write(f"k{nth}/{name.removeprefix('calm/')}", data)
        out = Location(place, f"k{nth}")
        place.faults = [Fault(nth=nth, name=f"k{nth}/*", error=Killed if nth % 2 else Fault.error)]
        with pytest.raises((TeachonceError, Killed)):
            shard(folder, out, append=True)
        place.faults = []
        found = ShardSet.open(out)
        entries = [repr(e) for e in found.manifest()]
        switched += len(entries) == 48
        assert entries == old if len(entries) == 27 else entries[:27] == old
        for number in range(found.corpus.num_shards):
            reader = found.reader(number)
            assert all(reader.read(row) for row in reader.index["row"].tolist())
        shard(folder, out, append=True)
        assert files_of(out) == calm, nth
    assert switched == 1  # between corpus.json and the manifest


def test_more_files_than_when_an_append_was_begun_come_with_the_next(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    put(halves[1][:5], pictures, folder)
    stage = plan_shard([str(folder)], out=out, settings=ShardSettings(shard_size=SIZE, append=True))
    assert (out / "corpus.next.json").exists()
    put(halves[1][5:], pictures, folder)
    with pytest.raises(IncompleteError) as caught:
        shard(folder, out)
    assert caught.value.fields == {
        "code": "append-unfinished",
        "where": str(stage.out),
        "expected": "the same `teachonce shard --append` command again, with the sources photos",
        "hint": f"finish that first; or give it up: rm {out}/corpus.next.json",
    }
    with pytest.raises(IncompleteError):
        shard([folder, put(halves[0][:1], pictures, tmp_path / "x")], out, append=True)
    assert len(ShardSet.open(out).corpus.states) == 1
    shard(folder, out, append=True)
    assert ShardSet.open(out).corpus.num_samples == 32
    shard(folder, out, append=True)
    assert ShardSet.open(out).corpus.layout.parts == (27, 5, 16)


def test_an_append_that_cannot_be_finished_may_be_given_up(folder, halves, pictures, tmp_path):
    out = tmp_path / "out"
    shard(folder, out)
    before = tree(out)
    put(halves[1], pictures, folder)
    new = [p.relative_to(pictures).as_posix() for p in halves[1]]
    last = max(new, key=lambda path: sample_key("photos", path))
    stage = plan_shard([str(folder)], out=out, settings=ShardSettings(shard_size=SIZE, append=True))
    (folder / last).unlink()
    with pytest.raises(UnitsFailed) as caught:
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    assert str(caught.value.where).endswith(
        f"Next: put the file back, then run the same command again; or give up what was begun: rm {out}/corpus.next.json"
    )
    assert (out / "000004.tar").exists()
    (out / "corpus.next.json").unlink()
    shard(folder, out, append=True)
    assert ShardSet.open(out).corpus.num_samples == 47
    assert not (out / "000005.tar").exists()
    for name in ("000000.tar", "000001.tar", "000002.tar", "ledger/shard/plan.json"):
        assert tree(out)[name] == before[name]


def test_a_file_that_cannot_be_read_at_the_moment_is_not_added(folder, halves, pictures, tmp_path):
    if os.geteuid() == 0:
        listed = tmp_path / "l.txt"
        listed.write_text("http://127.0.0.1:9/a.jpg\n")  # nobody listens there
        new: object = listed
    else:
        put(halves[1][:1], pictures, folder)
        (folder / halves[1][0].relative_to(pictures)).chmod(0)
        new = folder
    out = tmp_path / "out"
    shard(halves[0][0].parent, out)
    before = tree(out)
    with pytest.raises(Unreachable):
        shard(new, out, append=True)
    assert {name: data for name, data in tree(out).items() if name != "manifest.draft.parquet"} == before
    shard(new, out, append=True, give_up_on_unreachable=True)
    assert len(ShardSet.open(out).corpus.states) == 2


def test_resized_shards_grow(folder, halves, pictures, tmp_path):
    shard(folder, tmp_path / "out", resize=20)
    put(halves[1], pictures, folder)
    shard(folder, tmp_path / "out", append=True, resize=20)
    shards = ShardSet.open(tmp_path / "out")
    reader = shards.reader(4)
    from PIL import Image

    assert all(min(Image.open(io.BytesIO(reader.read(row))).size) == 20 for row in reader.index["row"].tolist())


@pytest.mark.ray
def test_on_the_command_line_and_by_any_number_of_workers(python, cluster, folder, halves, pictures, tmp_path):
    def run(out, *where: object, append: bool = False) -> str:
        words = ["shard", folder, "--shard-size", SIZE, "--out", out, "--json", *where]
        process = python.start("-W", "ignore", "-m", "teachonce", *words, *(["--append"] if append else []))
        assert process.wait() == 0, process.stderr
        return process.stdout

    ray = ("--ray-address", cluster.address, "--workers", 2)
    run(tmp_path / "ray", *ray)
    run(tmp_path / "serial", "--executor", "serial")
    put(halves[1], pictures, folder)
    told = json.loads(run(tmp_path / "ray", *ray, append=True))
    assert (told["stage"], told["units"], told["append"]["new"]) == ("shard", 3, 21)
    run(tmp_path / "serial", "--executor", "serial", append=True)
    assert tree(tmp_path / "ray") == tree(tmp_path / "serial")
    told = json.loads(run(tmp_path / "ray", *ray, append=True))
    assert (told["units"], told["append"]["new"], told["append"]["known"]) == (0, 0, 48)
    assert (tmp_path / "ray/corpus.json").read_bytes() == (tmp_path / "serial/corpus.json").read_bytes()


@pytest.mark.slow
def test_killed_processes_end_with_the_same_bytes(python, tmp_path):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def draw(first: int, last: int) -> None:
        for i in range(first, last):
            small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            small.resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg")

    def start(out, *more: object):
        words = ("shard", folder, "--out", out, "--shard-size", 6, "--executor", "serial", *more)
        return python.start("-m", "teachonce", *words)

    draw(0, 40)
    for name in ("calm", "killed"):
        assert start(tmp_path / name).wait() == 0
    draw(40, 200)
    assert start(tmp_path / "calm", "--append").wait() == 0
    old = ShardSet.open(tmp_path / "killed").corpus.corpus_id
    receipts, kills = tmp_path / "killed/ledger/shard.2/receipts", 0
    for goal in (0, 1, 5, 11, 18):
        process = start(tmp_path / "killed", "--append")
        while process.poll() is None and len(list(receipts.glob("*.json"))) < goal:
            pass
        process.kill()
        kills += process.wait() < 0
        assert ShardSet.open(tmp_path / "killed").as_of(old) is not None
    assert start(tmp_path / "killed", "--append").wait() == 0
    assert kills >= 3
    assert tree(tmp_path / "killed") == tree(tmp_path / "calm")
