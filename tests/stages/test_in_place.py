"""`shard --in-place` against plain tarfile: tars of other programs are shards where they lie, and a changed one is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.places.memory import Fault, MemoryPlace
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.inputs.image_set import open_images
from teachonce.stages.pairs.local_copies import LocalCache
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.retry_failed import plan_retry
from teachonce.stages.settings.retry_failed import RetrySettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import has_grown, plan_shard
from teachonce.storage_schemas.errors import TeachonceError, UnitsFailed
from teachonce.storage_schemas.row_layout import RowLayout
from teachonce.storage_schemas.samples import content_digest, sample_key


class Killed(BaseException):
    """What a kill -9 looks like from inside."""


def index(corpus, out, *, append=False, **options) -> ShardSet:
    """Run the stage with the tars in place."""
    names = [str(c) for c in (corpus if isinstance(corpus, (list, tuple)) else [corpus])]
    stage = plan_shard(names, out=out, settings=ShardSettings(in_place=True, append=append, **options))
    if list(stage.plan()):
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(out)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "timings" not in p.parts
    }


def pack(path: Path, members: list[tuple[str, bytes | str | None]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of another program: bytes are a file, a text is a hard link to that name, None is a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1.5  # a PAX header of its own
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def images_of(path: Path) -> dict[str, bytes]:
    """The images of a tar by plain tarfile, in its order."""
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith((".jpg", ".png")):
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


@pytest.fixture(scope="module")
def photos(pictures) -> list[bytes]:
    return [p.read_bytes() for p in sorted(pictures.rglob("*.*")) if p.name not in ("07b.jpg", "20b.jpg")]


@pytest.fixture
def tars(photos, tmp_path) -> Path:
    """Three tars of 5, 3 and 4 images, and one without any: whatever other programs do."""
    long, data = "long/" * 30, iter(photos)

    def image() -> bytes:
        return next(data)

    folder = tmp_path / "tars"
    beside = json.dumps({"label": "from json"}).encode()
    pack(
        folder / "000.tar",
        [
            ("000002.txt", b"a caption"),
            ("000002.jpg", image()),
            ("000000.cls", b"7"),
            ("000000.jpg", image()),
            ("000001.json", beside),
            ("000001.jpg", image()),
            ("000001.seg.png", image()),  # two images in a sample
            ("000003.txt", b"a sample without an image"),
            ("000004.jpg", b"no image"),
        ],
    )
    pack(
        folder / "001.tar",
        [("a", None), ("a/b", None), (f"{long}x.jpg", image()), ("a/b/000000.jpg", image()), ("000002.jpg", image())],
        tarfile.GNU_FORMAT,
    )
    pack(
        folder / "002.tar",
        [(f"./{n}.jpg", image()) for n in "dca"] + [("link.jpg", "./c.jpg"), ("c.json", b"{}")],
        tarfile.USTAR_FORMAT,
    )
    pack(folder / "003.tar", [("only.txt", b"nothing to see")])
    return folder


def test_tars_of_other_programs_are_shards_where_they_lie(tars, tmp_path):
    out, before = tmp_path / "index", tree(tars)
    shards = index(f"{tars}/*.tar", out, name="wds")
    corpus = shards.corpus
    assert (corpus.version, corpus.shard_size, corpus.num_shards, corpus.num_samples) == (3, 5, 3, 12)
    assert [list(corpus.rows(s)) for s in range(3)] == [[0, 1, 2, 3, 4], [5, 6, 7], [10, 11, 12, 13]]
    assert {name.rpartition(".")[2] for name in tree(out)} == {"parquet", "json", "npy"}  # nothing is copied
    assert tree(tars) == before
    labels = {}
    for shard in range(3):
        name, plain = f"{shard:03d}", images_of(tars / f"{shard:03d}.tar")
        entries, reader = shards.manifest().shard(shard), shards.reader(shard)
        expected = [f"{name}/{path.removeprefix('./')}" for path in plain]
        if shard == 2:  # a link has its target's place
            expected = ["002/d.jpg", "002/c.jpg", "002/link.jpg", "002/a.jpg"]
        assert [entry.path for entry in entries] == expected
        for row, entry in zip(corpus.rows(shard), entries, strict=True):
            assert entry.key == sample_key("wds", entry.path)
            inner = entry.path.removeprefix(f"{name}/")
            data = plain.get(inner, plain.get(f"./{inner}"))
            assert data is not None
            assert entry.digest == content_digest(data)
            labels[entry.path] = entry.label
            if row not in reader.invalid:
                assert (reader.key(row), reader.read(row)) == (entry.key, data)
        receipt, output = shards.receipt(shard), shards.receipt(shard).outputs[0]
        tar = (tars / f"{name}.tar").read_bytes()
        assert (output.path, output.place, output.version) == (f"00000{shard}.tar", f"../tars/{name}.tar", "")
        assert (output.bytes, output.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
        assert [bad.path for bad in receipt.invalid_rows] == (["000/000004.jpg"] if shard == 0 else [])
        reader.close()
    assert labels["000/000000.jpg"] == "7"
    assert labels["000/000001.jpg"] == labels["000/000001.seg.png"] == "from json"
    assert labels["001/a/b/000000.jpg"] == "b"


def test_tars_and_index_move_together(tars, tmp_path):
    index(tars, tmp_path / "index")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("tars", "index"):
        shutil.move(tmp_path / name, moved / name)
    shards = ShardSet.open(moved / "index")
    assert shards.file(1, shards.receipt(1).outputs[0]) == Location.of(moved / "tars/001.tar")
    shards.reader(1).close()


def test_pairs_of_short_shards(tars, tmp_path, make_store):
    shards = index(tars, tmp_path / "index")
    store = make_store(shards, tmp_path / "store.zarr")
    rows = []
    with TargetStream(shards.location, store.location, image_size=16, batch_size=4, seed=0, drop_last=False) as stream:
        for batch in stream:
            rows += batch.rows_N.tolist()
            for place, row in enumerate(batch.rows_N.tolist()):
                np.testing.assert_array_equal(batch.targets["logits"][place], store.targets["logits"][row, 0])
    assert sorted(rows) == [0, 1, 2, 3, 5, 6, 7, 10, 11, 12, 13]


def test_more_tars_become_what_all_of_them_at_once_are(tars, tmp_path):
    names = [tars / f"{n:03d}.tar" for n in range(4)]
    out = tmp_path / "index"
    index(names[0], out, name="wds")
    old = tree(out)
    grown = index([names[1], names[3], names[2]], out, append=True)
    at_once = index(tars, tmp_path / "at-once", name="wds")
    assert grown.corpus.corpus_id == at_once.corpus.corpus_id
    for name, data in tree(tmp_path / "at-once").items():
        if name.endswith((".npy", ".parquet")):
            assert (out / name).read_bytes() == data
    assert {name for name, data in old.items() if (out / name).read_bytes() != data} == {
        "corpus.json",
        "manifest.parquet",
    }
    then = grown.as_of(json.loads(old["corpus.json"])["corpus_id"])
    assert then is not None
    assert (then.corpus.num_samples, then.corpus.num_shards, then.corpus.num_rows) == (5, 1, 5)
    again = plan_shard([str(n) for n in names], out=out, settings=ShardSettings(in_place=True, append=True, name="wds"))
    assert again.appended is not None
    assert (again.appended.new, again.appended.known) == (0, 12)


def files_of(folder: Location) -> dict[str, bytes]:
    start = f"{folder.full_name}/"
    assert isinstance(folder.place, MemoryPlace)
    found = folder.place.files()
    return {n.removeprefix(start): data for n, data in found.items() if n.startswith(start) and "/timings/" not in n}


def test_killed_at_any_write_the_same_command_ends_with_the_same_bytes(tars, tmp_path):
    place, calm = MemoryPlace(), Location(MemoryPlace(), "calm")
    first, more = [f"{tars}/{{000,001}}.tar"], [f"{tars}/{{000..002}}.tar"]

    def both(out: Location) -> None:
        if not has_grown(out):
            index(first, out)
        index(more, out, append=True)

    both(calm)
    assert isinstance(calm.place, MemoryPlace)
    writes = len(calm.place.written)
    assert writes > 15
    for nth in range(1, writes + 1):
        out = Location(place, f"k{nth}")
        place.faults = [Fault(nth=nth, name=f"k{nth}/*", error=Killed if nth % 2 else Fault.error)]
        with pytest.raises((TeachonceError, Killed)):
            both(out)
        place.faults = []
        both(out)
        assert files_of(out) == files_of(calm), nth


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


HINT = "Next: put the tar back as it was, or index the tars as they are now: teachonce shard … --in-place --out ANOTHER"


def test_a_tar_that_changed_is_refused(tars, tmp_path):
    shards = index(tars, tmp_path / "index")
    tar = tars / "001.tar"
    whole, row = tar.read_bytes(), 5

    def refused() -> str:
        with pytest.raises(TeachonceError) as error:
            ShardSet.open(tmp_path / "index").reader(1).read(row)
        return str(error.value)

    tar.write_bytes(whole + bytes(512))
    assert refused() == (
        f"a tar that is used in place has changed: {tar}: expected {len(whole)} bytes, found {len(whole) + 512} bytes. {HINT}"
    )
    with pytest.raises(TeachonceError, match=r"used in place has changed: .*001\.tar"):
        index(tars, tmp_path / "index")
    tar.unlink()
    assert refused() == (
        f"a tar that is used in place is gone: {tar}: expected {len(whole)} bytes, found no file. {HINT}"
    )
    tar.write_bytes(whole)
    record = shards.reader(1).index[0]
    tar.write_bytes(flipped(whole, int(record["offset"]) + 40))
    key = record["key"].decode()
    assert refused() == f"an image in a tar changed: {tar}, row 5, {key}. {HINT}"


def test_a_tar_that_changes_while_it_is_indexed_is_refused(tars, tmp_path):
    place = MemoryPlace()
    out = Location(place, "index")
    place.faults = [Fault(nth=1, name="index/000001.index.npy", error=Killed)]
    with pytest.raises(Killed):
        index(tars, out)
    place.faults = []
    other = images_of(tars / "001.tar")
    first = next(iter(other.values()))
    data = (tars / "001.tar").read_bytes()
    (tars / "001.tar").write_bytes(data.replace(first, bytes(len(first))))
    with pytest.raises(UnitsFailed) as error:
        index(tars, out)
    assert "a tar that is used in place has changed" in str(error.value)
    (tars / "001.tar").write_bytes(data)
    index(tars, out)


def codes(shards: ShardSet, store: Location, *, quick: bool = False) -> list[str]:
    """What `verify` finds."""
    words = ["verify", str(shards.location), str(store), "--executor", "serial", "--json", *(["--quick"] * quick)]
    result = CliRunner().invoke(main, words)
    return [finding["code"] for finding in json.loads(result.stdout)["findings"]]


def test_verify_tells_what_happened_to_a_tar(tars, tmp_path, make_store):
    shards = index(tars, tmp_path / "index")
    store = make_store(shards, tmp_path / "store.zarr").location
    whole = {n: (tars / f"{n:03d}.tar").read_bytes() for n in range(3)}
    assert (codes(shards, store), codes(shards, store, quick=True)) == ([], [])
    reader = shards.reader(0)
    image = int(reader.index[1]["offset"])
    reader.close()
    cases = [
        (whole[0][:-512], ["file-cut"], ["file-cut"]),
        (whole[0] + bytes(512), ["file-longer"], ["file-longer"]),
        (flipped(whole[0], image + 30), ["file-bit-flipped"], []),
        (flipped(whole[0], 520), ["file-not-as-vouched"], []),  # what stands beside the images
        ((whole[1] + bytes(len(whole[0])))[: len(whole[0])], None, []),
    ]
    for data, full, quick in cases:
        (tars / "000.tar").write_bytes(data)
        found = codes(shards, store)
        assert (found == full) if full is not None else "sample-not-of-manifest" in found
        assert codes(shards, store, quick=True) == quick
    (tars / "000.tar").unlink()
    assert codes(shards, store) == codes(shards, store, quick=True) == ["file-missing"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["FOLDER/photos"], "a folder without tars: FOLDER/photos: expected NAME.tar in it, found 1 entry, the first is a.jpg"),
        (["FOLDER/photos/a.jpg"], "only tars can be used in place: FOLDER/photos/a.jpg"),
        (["FOLDER/tars/{000,004,005}.tar"], "2 of 3 tars are not there: the first is FOLDER/tars/004.tar"),
        (["FOLDER/tars/004.tar"], "no such corpus: FOLDER/tars/004.tar. Next: did you mean FOLDER/tars/00"),
        (["FOLDER/tars/9*.tar"], "nothing fits a pattern: FOLDER/tars/9*.tar"),
        (["FOLDER/tars/{000.tar"], "a pattern whose braces do not close: FOLDER/tars/{000.tar"),
        (["FOLDER/z.tar.gz"], "a compressed tar cannot be used in place: nothing in it can be read without all that is before it"),
        (["FOLDER/z.tar"], "not an uncompressed tar: FOLDER/z.tar: found a file compressed by gzip"),
        (["FOLDER/cut.tar"], "not a whole, uncompressed tar: FOLDER/cut.tar, byte 5632: unexpected end of data"),
        (["FOLDER/tars/000.tar", "FOLDER/again/000.tar"], "two sources have the same name: 000"),
        (["a=FOLDER/tars/000.tar", "a/b=FOLDER/tars"], "1 of 2 tars are not there: a/b=FOLDER/tars"),
        (["FOLDER/tars/003.tar"], "no images: 003: expected at least one image file, found 1 × no image name"),
        (["coop:pets/train=FOLDER"], "only tars can be used in place: coop:pets/train=FOLDER"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_in_place(images, message, tars, photos, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(photos[0])
    (tmp_path / "again").mkdir()
    shutil.copyfile(tars / "000.tar", tmp_path / "again/000.tar")
    for name in ("z.tar.gz", "z.tar"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.add(tars / "000.tar", "x.jpg")
    (tmp_path / "cut.tar").write_bytes((tars / "001.tar").read_bytes()[:5120])
    with pytest.raises(TeachonceError) as error:
        index([name.replace("FOLDER", str(tmp_path)) for name in images], tmp_path / "index")
    assert str(error.value).startswith(message.replace("FOLDER", str(tmp_path)))
    assert not (tmp_path / "index/corpus.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 64}, "--resize goes only with tars that are written: --resize: found --in-place"),
        ({"order": "hash"}, "--order hash goes only with tars that are written"),
        ({"shard_size": 4}, "a tar holds more images than a shard has rows: TARS/000.tar: expected 4 at most, found 5"),
    ],
)
def test_options_that_do_not_go_with_it(options, message, tars, tmp_path):
    with pytest.raises(TeachonceError) as error:
        index(tars, tmp_path / "index", **options)
    assert str(error.value).startswith(message.replace("TARS", str(tars)))


def test_copies_and_tars_in_place_are_not_mixed(tars, tmp_path):
    out = tmp_path / "index"
    index(tars, out)
    with pytest.raises(TeachonceError, match=r"field 'in_place'.*expected false \(this command\), found true"):
        plan_shard([str(tars / "000.tar")], out=out, settings=ShardSettings(name="tars", shard_size=5))
    with pytest.raises(
        TeachonceError, match=r"these are not the tars of the first run: 003: expected 4 tars.* 1 missing"
    ):
        index(f"{tars}/{{000..002}}.tar", out)
    copied = tmp_path / "copied"
    stage = plan_shard([str(tars / "000.tar")], out=copied, settings=ShardSettings(name="tars"))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    with pytest.raises(TeachonceError, match=r"field 'in_place'.*expected true \(this command\), found false"):
        index(tars / "000.tar", copied, append=True, name="tars")
    with pytest.raises(TeachonceError, match="a tar is named as a folder of others: a, a/000"):
        index([f"a={tars}/000.tar", f"a={tars}/00*.tar"], tmp_path / "nested")


def test_room_for_larger_tars_later(tars, photos, tmp_path):
    out = tmp_path / "index"
    index(tars / "001.tar", out, shard_size=4)
    with pytest.raises(TeachonceError, match=r"a tar holds more images than a shard has rows: .*000\.tar"):
        index(tars / "000.tar", out, append=True)
    assert index(tars / "002.tar", out, append=True).corpus.num_rows == 8


def test_an_image_that_failed_is_mended_by_a_tar_of_our_own(tars, photos, tmp_path):
    out, mended = tmp_path / "index", tmp_path / "mended"
    old = {row: index(tars, out).reader(0).read(row) for row in range(4)}
    mended.mkdir()
    (mended / "000004.jpg").write_bytes(photos[40])
    before = tree(tars)
    found = plan_retry(out, settings=RetrySettings(source=(f"000={mended}",)))
    assert found.stage is not None
    run_stage(found.stage, found.stage.out, SerialExecutor(), progress=False)
    shards = ShardSet.open(out)
    reader = shards.reader(0)
    assert {row: reader.read(row) for row in range(5)} == {**old, 4: photos[40]}
    assert shards.file(0, shards.receipt(0).outputs[0]) == Location.of(out / "000000.tar")
    assert shards.receipt(1).outputs[0].place == "../tars/001.tar"
    assert tree(tars) == before


def test_a_mended_copy_goes_beside_the_tar_not_over_it(tars, photos, tmp_path):
    index(tars, tmp_path / "index")
    old = (tars / "000.tar").read_bytes()
    before = tree(tmp_path / "index")
    pack(tars / "000.tar", [("000004.jpg", photos[40])])
    with pytest.raises(TeachonceError, match=r"a tar that is used in place has changed: .*000\.tar"):
        plan_retry(tmp_path / "index", settings=RetrySettings(source=(str(tars / "000.tar"),)))
    assert tree(tmp_path / "index") == before
    shutil.move(tars / "000.tar", tmp_path / "000.tar")
    (tars / "000.tar").write_bytes(old)
    assert plan_retry(tmp_path / "index", settings=RetrySettings(source=(str(tmp_path / "000.tar"),))).stage is not None


# In a bucket.


def put(bucket: str, tars: Path) -> str:
    folder = Location.of(bucket) / "wds"
    for tar in sorted(tars.iterdir()):
        (folder / tar.name).write_bytes(tar.read_bytes())
    return folder.address


def test_in_a_bucket_each_tar_is_asked_for_as_a_whole(tars, bucket, object_store, object_proxy, tmp_path, monkeypatch):
    folder = put(bucket, tars)
    local = index(tars, tmp_path / "local", name="wds")
    with object_proxy.Proxy(object_store.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        far = index(f"{folder}/{{000..003}}.tar", tmp_path / "far")
        asked = [seen.method for seen in proxy.seen if seen.path.endswith("/001.tar")]
    assert asked.count("GET") == 2  # for the manifest, and for the index
    assert far.corpus.corpus_id == local.corpus.corpus_id
    output = far.receipt(1).outputs[0]
    assert output.place == f"{folder}/001.tar"
    assert output.version == Location.of(output.place).stat().version != ""
    for shard in range(3):
        readers = far.reader(shard), local.reader(shard)
        for row in readers[0].index["row"].tolist():
            assert readers[0].read(row) == readers[1].read(row)
    beside = index(f"{folder}/*.tar", f"{bucket}/index")
    assert beside.receipt(1).outputs[0].place == "../wds/001.tar"
    beside.reader(1).close()


def test_in_a_bucket_a_tar_of_another_etag_is_refused_until_its_images_are_compared(tars, bucket, tmp_path):
    folder = put(bucket, tars)
    index(folder, tmp_path / "far", name="wds")
    tar, data = Location.of(folder) / "001.tar", (tars / "001.tar").read_bytes()
    before = tar.stat().version
    tar.write_bytes(flipped(data, 40))  # of a header, beside all images
    with pytest.raises(TeachonceError) as error:
        ShardSet.open(tmp_path / "far").reader(1)
    assert str(error.value) == (
        f"a tar that is used in place has changed: {tar}: expected ETag {before}, found {tar.stat().version}. "
        "Next: run the same `teachonce shard … --in-place` command again: it takes the tar if its "
        "images are the same; else put it back as it was"
    )
    index(folder, tmp_path / "far", name="wds").reader(1).close()
    image = next(iter(images_of(tars / "001.tar").values()))
    tar.write_bytes(data.replace(image, bytes(len(image))))
    with pytest.raises(UnitsFailed, match="a tar that is used in place has changed"):
        index(folder, tmp_path / "far", name="wds")


def test_a_local_cache_keeps_tars_that_lie_elsewhere(
    tars, bucket, object_store, object_proxy, tmp_path, make_store, monkeypatch
):
    shards = index(put(bucket, tars), tmp_path / "far")
    store = make_store(shards, tmp_path / "store.zarr")
    cache = LocalCache(folder=str(tmp_path / "copies"), gb=1)
    options: dict[str, Any] = {"image_size": 16, "batch_size": 4, "seed": 0, "drop_last": False, "local_cache": cache}
    with object_proxy.Proxy(object_store.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        counts = []
        for _ in range(2):
            proxy.seen.clear()
            with TargetStream(shards.location, store.location, **options) as stream:
                assert sum(len(batch.rows_N) for batch in stream) == 11
            counts.append([seen.method for seen in proxy.seen if seen.path.endswith(".tar")])
    assert counts[0].count("GET") == 3
    assert counts[1] == []


def test_a_plan_counts_the_tars(tars, tmp_path):
    from teachonce.stages.planning.corpus import look_at_shards

    corpus = look_at_shards(index(tars, tmp_path / "index"), most=4)
    layout = RowLayout.of(corpus.shard_size, corpus.parts)
    assert [len(layout.rows(shard)) for shard in range(layout.num_shards)] == [5, 3, 4]


def test_a_pattern_names_tars_that_are_copied_too(tars, tmp_path):
    stage = plan_shard([f"{tars}/00[01].tar"], out=tmp_path / "out", settings=ShardSettings(name="wds"))
    assert [source.source.name for source in stage.sources] == ["000", "001"]
    assert stage.corpus.num_samples == 8
    with pytest.raises(TeachonceError) as error:
        open_images(f"{tars}/00[01].tar")
    assert str(error.value).startswith(
        f"a pattern names several corpora where one is wanted: {tars}/00[01].tar: found 000, 001. "
    )
