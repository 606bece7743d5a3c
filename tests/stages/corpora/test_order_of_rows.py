"""The order of rows: by the keys' hashes unless the sources' own is asked for; what was frozen keeps its order for good."""

from __future__ import annotations

import filecmp
import random
import shutil
import tarfile

import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location, scratch_file
from teachonce.stages.corpora.draft import DRAFT
from teachonce.stages.corpora.key_order import by_key
from teachonce.stages.corpora.manifest_file import open_manifest
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.shard import ShardStage, plan_shard
from teachonce.storage_schemas.errors import MismatchError
from teachonce.storage_schemas.manifest import Entry, write_manifest
from teachonce.storage_schemas.samples import sample_key


def finished(corpus, out, **options) -> ShardStage:
    stage = plan_shard(
        [str(c) for c in corpus], out=str(out), settings=ShardSettings(shard_size=13, name="n", **options)
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return stage


def paths(out) -> list[str]:
    return [entry.path for entry in ShardSet.open(str(out)).manifest()]


def contents(out) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and "timings" not in p.parts
    }


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize("rows_at_once", [1, 7, 150, 299, 1000])
def test_a_manifest_is_sorted_in_little_memory(count, rows_at_once, tmp_path):
    def entry(i: int) -> Entry:
        path = f"é{i}/{'x' * random.Random(i).randrange(40)}.jpg"
        return Entry(
            key=sample_key("n", path),
            path=path,
            source=i % 3,
            offset=i * 512 - 1,
            size=1 << 40 | i,
            digest=f"{i:032x}",
            label=None if i % 5 == 0 else f"c{i % 7}",
            problem="gone" if i % 11 == 0 else None,
        )

    entries = [entry(i) for i in range(count)]
    with (tmp_path / "draft").open("wb") as file:
        write_manifest(file, [entries[i : i + 9] for i in range(0, count, 9)])
    with scratch_file(Location.of(tmp_path)) as scratch:
        draft = open_manifest(Location.of(tmp_path), None, "draft")
        found = list(by_key(draft, count, scratch, rows_at_once=rows_at_once))
    assert found == sorted(entries, key=lambda e: e.key)


def test_rows_come_in_the_order_of_the_hashes_of_their_names_from_whatever_source(pictures, tmp_path):
    every = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob("*.*"))
    expected = sorted(every, key=lambda path: sample_key("n", path))
    assert expected != every
    random.Random(1).shuffle(every)
    (tmp_path / "list.txt").write_text("\n".join(every))
    with tarfile.open(tmp_path / "tar.tar", "w") as tar:
        for path in every:
            tar.add(pictures / path, path)
    shutil.copytree(pictures, tmp_path / "folder")
    for path in every:  # the list's paths start at its folder
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(pictures / path, tmp_path / path)
    corpora = {}
    for source in ("list.txt", "tar.tar", "folder"):
        finished([tmp_path / source], tmp_path / f"{source}-out")
        corpora[source] = ShardSet.open(str(tmp_path / f"{source}-out")).corpus
        assert paths(tmp_path / f"{source}-out") == expected
    assert corpora["folder"].order == "hash"
    assert corpora["tar.tar"].corpus_id == corpora["folder"].corpus_id
    for shard in ("000000.tar", "000001.tar", "000002.tar", "000003.tar"):
        assert filecmp.cmp(tmp_path / "tar.tar-out" / shard, tmp_path / "folder-out" / shard, shallow=False)


def test_the_sources_own_order(pictures, tmp_path):
    sources = [f"b={pictures / 'red fox'}", f"a={pictures / 'Blue_Jay'}"]
    finished(sources, tmp_path / "out", order="source")
    found = paths(tmp_path / "out")
    assert found == sorted(found, key=str.encode)
    assert found[0].startswith("a/")
    assert b'"order"' not in (tmp_path / "out" / "corpus.json").read_bytes()


def test_orders_are_told_apart_even_where_they_are_alike(pictures, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(pictures / "red fox" / "03.jpg", one)
    hashed, source = (finished([one], tmp_path / order, order=order) for order in ("hash", "source"))
    assert hashed.corpus.listing_id == source.corpus.listing_id
    assert hashed.corpus.corpus_id != source.corpus.corpus_id
    assert hashed.fingerprint.digest != source.fingerprint.digest


@pytest.mark.parametrize(("order", "other"), [("hash", "source"), ("source", "hash")])
def test_what_was_begun_keeps_its_order(order, other, pictures, tmp_path):
    out = tmp_path / "out"
    finished([pictures], out, order=order)
    whole = contents(out)
    (out / "000002.tar").unlink()
    finished([pictures], out)
    assert contents(out) == whole
    with pytest.raises(MismatchError) as caught:
        finished([pictures], out, order=other)
    assert f"field 'order': expected '{other}' (this command), found '{order}' (the folder)" in str(caught.value)
    assert contents(out) == whole


def test_a_draft_does_not_outlive_the_manifest(pictures, tmp_path):
    out = tmp_path / "out"
    finished([pictures], out)
    whole = contents(out)
    assert DRAFT not in whole
    (out / DRAFT).write_bytes(b"PAR1")  # killed behind corpus.json
    finished([pictures], out)
    assert contents(out) == whole
    (out / "corpus.json").unlink()  # killed in front of it
    (out / DRAFT).write_bytes(b"PAR1")
    finished([pictures], out)
    assert contents(out) == whole


def test_the_order_is_an_option(pictures, tmp_path):
    for order in ("hash", "source"):
        arguments = ["shard", str(pictures), "--out", str(tmp_path / order), "--order", order, "--executor", "serial"]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert ShardSet.open(str(tmp_path / order)).corpus.order == order
