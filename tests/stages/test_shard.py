"""Shards against a plain WebDataset reader and the original files."""

from __future__ import annotations

import errno
import filecmp
import io
import json
import os
import shutil

import numpy as np
import pytest
import webdataset
from PIL import Image
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import plan_shard
from teachonce.storage_schemas.errors import (
    DamagedError,
    IncompleteError,
    InputError,
    MismatchError,
    StorageError,
    UnitsFailed,
    Unreachable,
)
from teachonce.storage_schemas.samples import sample_key

# What a half-read tar leaves open inside webdataset is not ours to close.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def shard(corpus, out, **options):
    sources = [str(c) for c in (corpus if isinstance(corpus, list) else [corpus])]
    stage = plan_shard(sources, out=str(out), settings=ShardSettings(**options))
    return run_stage(stage, stage.out, SerialExecutor(), progress=False)


def finished_files(folder) -> list[str]:
    """All files but the timings, which are allowed to differ."""
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "timings" not in p.parts
    )


def assert_same(a, b) -> None:
    assert finished_files(a) == finished_files(b)
    for name in finished_files(a):
        assert filecmp.cmp(a / name, b / name, shallow=False), name


def test_a_plain_webdataset_reader_finds_every_image_under_its_key(pictures, picture_shards):
    tars = sorted(str(p) for p in picture_shards.location.path.glob("*.tar"))
    assert len(tars) == 4
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == 46
    for sample in samples:
        facts = json.loads(sample["json"])
        image = sample.get("jpg", sample.get("png"))
        assert image == (pictures / facts["path"]).read_bytes()
        assert sample["__key__"] == sample_key("pictures", facts["path"])
        assert facts["label"] == facts["path"].partition("/")[0]
    rows = [json.loads(s["json"])["row"] for s in samples]
    assert rows == sorted(rows)
    paths = sorted((p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*")), key=lambda p: p.encode())
    assert [e.path for e in picture_shards.manifest()] == paths


def test_bad_files_keep_their_row_and_say_why(picture_shards):
    invalid = {bad.path: bad.reason for s in range(4) for bad in picture_shards.receipt(s).invalid_rows}
    assert invalid == {"red fox/07b.jpg": "empty file", "Blue_Jay/20b.jpg": "truncated image"}
    assert sum(picture_shards.receipt(s).rows for s in range(4)) == 48


def test_the_same_command_gives_the_same_bytes_and_does_nothing_twice(pictures, tmp_path):
    assert shard(pictures, tmp_path / "a", shard_size=13, name="n").done_now == 4
    shard(pictures, tmp_path / "b", shard_size=13, name="n")
    assert_same(tmp_path / "a", tmp_path / "b")
    assert shard(pictures, tmp_path / "a", shard_size=13, name="n").done_before == 4


def test_a_moved_corpus_keeps_its_identity(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
    shard(pictures, tmp_path / "a")
    shard(tmp_path / "elsewhere" / pictures.name, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_tars_folders_and_our_own_shards_mix(pictures, picture_shards, tmp_path):
    first = str(picture_shards.location / "000000.tar")
    shard([f"folder={pictures}", f"tar={first}"], tmp_path / "out")
    entries = list(ShardSet.open(str(tmp_path / "out")).manifest())
    assert {e.path.partition("/")[0] for e in entries} == {"folder", "tar"}
    from_tar = [e for e in entries if e.path.startswith("tar/")]
    originals = {e.digest: e.label for e in picture_shards.manifest().shard(0) if e.digest}
    assert {e.digest: e.label for e in from_tar}.items() <= originals.items()
    assert len(from_tar) >= 11


def test_resize_reduces_only_larger_images(pictures, tmp_path):
    shard(pictures, tmp_path / "out", resize=30, shard_size=100)
    shards = ShardSet.open(str(tmp_path / "out"))
    reader = shards.reader(0)
    for entry, row in zip(shards.manifest(), range(48), strict=True):
        if row in reader.invalid:
            continue
        data = reader.read(row)
        with Image.open(pictures / entry.path) as original:
            if min(original.size) <= 30:
                assert data == (pictures / entry.path).read_bytes()
            else:
                assert min(Image.open(io.BytesIO(data)).size) == 30
    reader.close()


def test_a_changed_corpus_or_other_options_are_refused(pictures, tmp_path):
    corpus = tmp_path / "c"
    shutil.copytree(pictures, corpus)
    out = tmp_path / "out"
    shard(corpus, out, shard_size=20)
    with pytest.raises(MismatchError) as caught:
        shard(corpus, out, shard_size=21)
    assert str(caught.value) == (
        f"{out} holds other shards: {out}/corpus.json: field 'shard_size': expected 21 (this command), found 20 (the folder). "
        "Next: use the options of the first run, or another --out"
    )
    (corpus / "house-cat" / "new.jpg").write_bytes(b"x")
    with pytest.raises(MismatchError) as error:
        shard(corpus, out, shard_size=20)
    assert (error.value.code, str(error.value.where)) == ("corpus-changed", "c")
    assert str(error.value.expected).startswith("48 images")


def test_a_file_that_changes_between_manifest_and_tar_fails_its_unit(pictures, tmp_path):
    corpus = tmp_path / "c"
    shutil.copytree(pictures, corpus)
    stage = plan_shard([str(corpus)], out=str(tmp_path / "out"), settings=ShardSettings(shard_size=100))
    victim = corpus / "house-cat" / "02.jpg"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(UnitsFailed) as error:
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
    assert error.value.code == "file-changed"
    assert str(error.value.where).startswith("a file has changed since the manifest was frozen: house-cat/02.jpg")
    with pytest.raises(IncompleteError) as incomplete:
        ShardSet.open(str(tmp_path / "out"))
    assert (incomplete.value.code, incomplete.value.what, str(incomplete.value.found)) == (
        "stage-unfinished",
        "shard has not finished",
        "0 of 1 unit",
    )


def test_empty_corpora_and_folders_without_shards_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        shard(tmp_path / "empty", tmp_path / "out")
    assert caught.value.fields == {
        "code": "images-missing",
        "where": "empty",
        "expected": "at least one image file",
        "found": "nothing",
        "hint": "for a folder of tars, name the tars: teachonce shard FOLDER/*.tar --out …",
    }
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    with pytest.raises(InputError) as error:
        ShardSet.open(str(tmp_path / "empty"))
    assert (error.value.code, str(error.value.found)) == ("shards-missing", "an empty folder")
    assert str(error.value.where).endswith("empty")
    assert str(error.value.hint).startswith("teachonce shard CORPUS --out ")


def test_damage_is_noticed(picture_shards, tmp_path):
    copy = tmp_path / "copy"

    def fresh() -> ShardSet:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(picture_shards.location.path, copy)
        return ShardSet.open(str(copy))

    shards = fresh()
    tar = copy / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-10240])
    with pytest.raises(DamagedError) as error:
        shards.reader(1)
    assert error.value.code == "shard-file-changed"
    assert str(error.value.where).endswith("000001.tar")
    assert error.value.expected is not None

    shards = fresh()
    row = int(picture_shards.reader(1).index["row"][3])
    offset = int(picture_shards.reader(1).index["offset"][3])
    data = bytearray(tar.read_bytes())
    data[offset + 20] ^= 1
    tar.write_bytes(data)
    reader = shards.reader(1)
    with pytest.raises(DamagedError) as error:
        reader.read(row)
    assert error.value.code == "image-in-tar-changed"
    assert f"000001.tar, row {row}, " in str(error.value.where)

    shards = fresh()
    index = np.load(copy / "000001.index.npy")
    index["key"][[3, 4]] = index["key"][[4, 3]]
    np.save(copy / "000001.index.npy", index)
    with pytest.raises(DamagedError) as error:
        shards.reader(1)
    assert error.value.code == "index-changed"
    assert str(error.value.where).endswith("000001.index.npy")

    shards = fresh()
    record = picture_shards.reader(1).index[3]
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) - 512] ^= 1  # in the member's name
    tar.write_bytes(data)
    with pytest.raises(DamagedError) as error:
        shards.reader(1).read(row)
    assert error.value.code == "tar-index-out-of-line"

    shards = fresh()
    reader = shards.reader(1)
    tar.write_bytes(tar.read_bytes()[: offset + 30])  # cut while it is open: a mapped file would end the process
    with pytest.raises(DamagedError) as error:
        reader.read(row)
    assert error.value.code == "shard-tar-cut"
    assert str(error.value.where).endswith(f", row {row}")
    assert str(error.value.expected).startswith("at least ")


def test_an_error_of_the_disk_is_told_and_blames_no_image(picture_shards, monkeypatch):
    reader = picture_shards.reader(1)

    def fail(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(Unreachable) as error:
        reader.read(int(reader.index["row"][0]))
    assert (error.value.code, str(error.value.found)) == ("unreachable-now", "Input/output error")
    assert str(error.value.where).endswith("000001.tar")
    assert error.value.hint is not None


def test_too_many_open_files_is_one_line(picture_shards, monkeypatch):
    def fail(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StorageError) as error:
        (picture_shards.location / "000001.tar").open_ranges()
    assert error.value.code == "open-files-too-many"
    assert str(error.value.where).endswith("000001.tar")
    assert str(error.value.hint).startswith("make larger shards")
