"""Copies of far shards on this machine: the same pairs, one request an object, a bounded folder, and nothing fetched twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.output import claim_output
from teachonce.pipeline.places import copies as copies_module
from teachonce.pipeline.storage import Copies, Location, s3_endpoint
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.pairs.caption_copies import CaptionCopies
from teachonce.stages.pairs.caption_source import Captions
from teachonce.stages.pairs.caption_store import open_caption_root
from teachonce.stages.pairs.local_copies import LocalCache
from teachonce.stages.pairs.other_store import OtherStore
from teachonce.stages.pairs.store import open_store, read_description
from teachonce.stages.pairs.stream import TargetStream
from teachonce.storage_schemas.caption_store import CaptionCounts, CaptionSpec, create_caption_store, write_captions
from teachonce.storage_schemas.errors import DamagedError, InputError
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt
from teachonce.storage_schemas.samples import shard_name

OPTIONS: dict[str, Any] = {"image_size": 16, "batch_size": 8, "seed": 3, "targets": ["logits"], "drop_last": False}


@pytest.fixture(scope="module")
def pair(pictures, make_shards, make_store, tmp_path_factory) -> Location:
    """Shards of three pictures, sixteen of them, and their store, below one folder."""
    root = Location.of(tmp_path_factory.mktemp("pair"))
    shards = make_shards(pictures, (root / "shards").path, shard_size=3)
    assert shards.corpus.num_shards >= 15
    make_store(shards, root / "store")
    return root


@pytest.fixture
def far(pair, bucket, object_proxy, object_store):
    """The same in a bucket behind a proxy that counts."""
    root = Location.of(bucket) / "pair"
    for name in pair.entries(deep=True):
        (root / name).write_bytes((pair / name).read_bytes())
    proxy = object_proxy.Proxy(object_store.endpoint)
    with proxy.running(), s3_endpoint(proxy.endpoint):
        yield proxy, Location.of(root.address)


def epochs(root: Location, cache: LocalCache | None = None, count: int = 2, **options: Any) -> list[Any]:
    with TargetStream(root / "shards", root / "store", local_cache=cache, **(OPTIONS | options)) as stream:
        return [
            (b.rows_N.tolist(), b.images_NCHW.numpy().tobytes(), b.targets["logits"].numpy().tobytes())
            for _ in range(count)
            for b in stream
        ]


def data_requests(proxy: Any) -> list[str]:
    """Paths of what makes up shards: tars, indexes, chunks, receipts of shards."""
    parts = (".tar", ".npy", "/c/", "/receipts/0")
    return [seen.path.partition("?")[0] for seen in proxy.seen if any(part in seen.path for part in parts)]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_pairs_and_no_object_is_asked_for_twice(num_workers, pair, far, tmp_path):
    proxy, root = far
    expected = epochs(pair)
    proxy.seen.clear()
    cache = LocalCache(folder=str(tmp_path / "cache"), gb=1)
    assert epochs(root, cache, num_workers=num_workers) == expected
    asked = data_requests(proxy)
    assert len(asked) == len(set(asked))
    assert {seen.method for seen in proxy.seen if ".tar" in seen.path} == {"GET"}
    tars = [path for path in asked if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) >= 15
    # Another run finds all of it here.
    proxy.seen.clear()
    assert epochs(root, cache, num_workers=num_workers) == expected
    assert data_requests(proxy) == []


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_store_that_is_read_beside_has_copies_too(num_workers, pair, far, make_store, tmp_path):
    proxy, root = far
    second = make_store(
        ShardSet.open(pair / "shards"), tmp_path / "second", widths={"embedding": 9, "logits": 4}
    ).location
    for name in second.entries(deep=True):
        (root / "second" / name).write_bytes((second / name).read_bytes())

    def read(root: Location, second: Location, cache: LocalCache | None = None) -> list[Any]:
        shards = ShardSet.open(root / "shards")
        first = root / "store"
        about = read_description(open_store(first), first)
        other = OtherStore.named(f"big={second.address}", shards, first, about, 1)
        proxy.seen.clear()
        names = ("logits", "big:embedding")
        options = OPTIONS | {"targets": names, "sources": (other,), "num_workers": num_workers}
        with TargetStream(root / "shards", root / "store", local_cache=cache, **options) as stream:
            return [
                (b.rows_N.tolist(), *(b.targets[name].tolist() for name in names)) for _ in range(2) for b in stream
            ]

    expected, cache = read(pair, second), LocalCache(folder=str(tmp_path / "cache"), gb=1)
    assert read(root, root / "second", cache) == expected
    chunks = [path for path in data_requests(proxy) if "/second/" in path]
    assert len(chunks) == len(set(chunks))
    assert sum("/second/embedding/c/" in path for path in chunks) >= 15
    assert not [path for path in chunks if "/logits/" in path]
    assert read(root, root / "second", cache) == expected  # and the next run finds all of it here
    assert data_requests(proxy) == []


def captions_of(root: Location, out: Location) -> Location:
    """Up to two captions of each picture, as `teachonce captions` stores them, of a teacher with the store's weights."""
    shards = ShardSet.open(root / "shards")
    about = read_description(open_store(root / "store"), root / "store")
    spec = CaptionSpec(
        corpus_id=shards.corpus.corpus_id, num_rows=shards.corpus.num_rows, shard_size=3, captions=2, embed_dim=4,
        encoding="fp16", texts="0" * 32, logit_scale=20.0, tokenizer={}, counts=CaptionCounts(samples=9, without=9, captions=9),
        teacher={"model": "m", "architecture": "a", "weights_digest": about.decided_by.teacher.weights, "embed_dim": 4},
    )  # fmt: skip
    claim_output(out, "captions")
    group = open_caption_root(out, mode="a")
    create_caption_store(group, spec)
    ledger, draw = Ledger(out, "captions"), np.random.default_rng(0)
    fingerprint = Fingerprint(fields={"texts": spec.texts})
    units = shards.corpus.num_shards
    ledger.begin(Plan(stage="captions", fingerprint=fingerprint, units=units, rows=spec.num_rows), "")
    for shard in range(units):
        rows = shards.corpus.rows(shard)
        count_N = (np.array(rows) % 3).astype(np.int32)
        values = draw.normal(size=(len(rows), 2, 4)).astype(np.float32)
        paths, digest = write_captions(group, spec, shard, values, count_N)
        outputs = record_outputs(out, paths)
        receipt = Receipt(
            key=shard_name(shard), outputs=outputs, rows=len(rows), invalid_rows=(), digest=digest,
            fingerprint=fingerprint.digest,
        )  # fmt: skip
        ledger.commit(receipt, {})
    return out


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_captions_have_copies_too(num_workers, pair, far, tmp_path):
    proxy, root = far
    near = captions_of(pair, Location.of(tmp_path / "captions"))
    for name in near.entries(deep=True):
        (root / "captions" / name).write_bytes((near / name).read_bytes())

    def read(root: Location, captions: Location, cache: LocalCache | None = None) -> list[Any]:
        about = read_description(open_store(root / "store"), root / "store")
        source = Captions.of(captions.address, about)
        proxy.seen.clear()
        names = ("logits", "caption", "caption_count")
        options = OPTIONS | {"targets": names, "sources": (source,), "num_workers": num_workers}
        with TargetStream(root / "shards", root / "store", local_cache=cache, **options) as stream:
            return [
                (b.rows_N.tolist(), *(b.targets[name].tolist() for name in names)) for _ in range(2) for b in stream
            ]

    expected, folder = read(pair, near), tmp_path / "cache"
    cache = LocalCache(folder=str(folder), gb=1)
    assert read(root, root / "captions", cache) == expected
    asked = [path for path in data_requests(proxy) if "/captions/" in path]
    assert len(asked) == len(set(asked))
    shards = ShardSet.open(pair / "shards").corpus.num_shards
    assert sum("/captions/embedding/c/" in path for path in asked) == 2 * shards
    assert read(root, root / "captions", cache) == expected  # and the next run finds all of it here
    assert data_requests(proxy) == []
    # A copy that changed is fetched again.
    chunk = (near / "embedding/c/0/0/0").read_bytes()
    (copy,) = [path for path in copies_of(folder) if path.read_bytes() == chunk]
    copy.write_bytes(chunk[:-1] + bytes([chunk[-1] ^ 1]))
    copies_module._verified.clear()
    about = read_description(open_store(pair / "store"), pair / "store")
    far_source = Captions.of((root / "captions").address, about)
    copies = CaptionCopies.of(cache, far_source.captions)
    copies.keep(0, verify=True)  # as the thread does before the trainer comes there
    assert read(root, root / "captions", cache) == expected
    # What changed there is not kept.
    (root / "captions/embedding/c/0/0/0").write_bytes(chunk[:-1] + bytes([chunk[-1] ^ 1]))
    with pytest.raises(DamagedError) as error:
        read(root, root / "captions", LocalCache(folder=str(tmp_path / "another"), gb=1))
    assert (error.value.code, str(error.value.where)) == ("far-file-changed", str(root / "captions/embedding/c/0/0/0"))


def test_the_folder_holds_no_more_than_it_may(pair, far, tmp_path):
    _, root = far
    expected = epochs(pair, count=3)
    whole = sum((pair / name).size() or 0 for name in pair.entries(deep=True) if name.endswith((".tar", ".npy")))
    limit = whole // 2
    sizes: list[int] = []
    create = copies_module.Copies._count

    def counting(self: Copies, more: int) -> int:
        sizes.append(size_of(tmp_path / "cache"))
        return create(self, more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies_module.Copies, "_count", counting)
        assert epochs(root, LocalCache(folder=str(tmp_path / "cache"), gb=limit / 1e9), count=3) == expected
    largest = max((pair / name).size() or 0 for name in pair.entries(deep=True))
    assert limit / 2 < max(sizes) <= limit + largest
    assert size_of(tmp_path / "cache") <= limit


def size_of(folder: Path) -> int:
    """Bytes of what lies below a folder that other threads write to."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def copies_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("??/*") if not path.name.startswith(".") and path.suffix != ".lock")


def test_a_copy_that_changed_here_is_fetched_again(pair, far, tmp_path):
    _, root = far
    cache = LocalCache(folder=str(tmp_path / "cache"), gb=1)
    expected = epochs(pair)
    epochs(root, cache)
    copies_module._verified.clear()
    for number, copy in enumerate(copies_of(tmp_path / "cache")):
        data = bytearray(copy.read_bytes())
        if number % 2:
            data[len(data) // 2] ^= 1
        else:
            del data[-3:]
        copy.write_bytes(data)
    with TargetStream(root / "shards", root / "store", local_cache=cache, **OPTIONS) as stream:
        # As the thread does before the trainer comes there.
        for shard in range(stream.shards.corpus.num_shards):
            stream._coming._copies.keep(shard, verify=True)  # type: ignore[union-attr]
    assert epochs(root, cache) == expected


def test_a_far_file_that_changed_is_not_kept(far, tmp_path):
    _, root = far
    tar = root / "shards" / "000002.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(DamagedError) as error:
        epochs(root, LocalCache(folder=str(tmp_path / "cache"), gb=1))
    assert (error.value.code, str(error.value.where)) == ("far-file-changed", str(tar))
    assert bytes(data) not in [copy.read_bytes() for copy in copies_of(tmp_path / "cache")]


KILLED = """
import json, sys
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.pairs.local_copies import LocalCache
from teachonce.stages.pairs.stream import TargetStream
root, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
with TargetStream(root + "/shards", root + "/store", local_cache=LocalCache(folder=folder, gb=1), **options) as stream:
    for step, _ in enumerate(stream):
        print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_and_resumed_it_fetches_only_what_is_not_there(python, pair, far, tmp_path):
    proxy, root = far
    process = python.start("-c", KILLED, root.address, tmp_path / "cache", json.dumps(OPTIONS))
    while "1\n" not in process.stdout:
        assert process.poll() is None, process.stderr
        time.sleep(0.01)
    process.kill()
    process.wait()
    there = {path.partition("?")[0] for path in data_requests(proxy)}
    done = len(copies_of(tmp_path / "cache"))
    assert 0 < done <= len(there)
    proxy.seen.clear()
    assert epochs(root, LocalCache(folder=str(tmp_path / "cache"), gb=1)) == epochs(pair)
    again = [path for path in data_requests(proxy) if path in there and "/receipts/" not in path]
    assert len(again) <= 1  # what was on its way


@pytest.mark.slow
def test_two_processes_share_one_folder(python, pair, far, tmp_path):
    proxy, root = far
    proxy.seen.clear()
    words = ("-c", KILLED, root.address, tmp_path / "cache", json.dumps(OPTIONS))
    processes = [python.start(*words) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    tars = [path for path in data_requests(proxy) if path.endswith(".tar")]
    assert len(tars) == len(set(tars)) >= 15


def test_what_is_no_folder_of_this_machine(pair, bucket, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (f"{bucket}/cache", str(tmp_path / "file")):
        with pytest.raises(InputError) as error:
            epochs(pair, LocalCache(folder=folder, gb=1))
        assert (error.value.code, str(error.value.found)) == ("local-cache-not-here", folder)


def test_rows_that_are_read_in_order_come_in_blocks(far):
    """As `cache` and `evaluate` read them, without copies."""
    proxy, root = far
    shards = ShardSet.open(root / "shards")
    found = []
    for in_order in (True, False):
        reader = shards.reader(0, in_order=in_order)
        rows = [int(row) for row in reader.index["row"]]
        proxy.seen.clear()
        images = [reader.read(row) for row in rows]
        found.append((images, sum(seen.path.endswith(".tar") for seen in proxy.seen)))
    (blocks, once), (ranges, each) = found
    assert blocks == ranges
    assert (once, each) == (1, len(rows))
