"""The stream of pairs: right pixels, right targets, one order, and nothing that does not belong together."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from teachonce.pipeline.ledger import Ledger
from teachonce.pipeline.storage import Location
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.decoding.processes import Processes
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.pairs.ahead import BATCHES_MODULE
from teachonce.stages.pairs.batches import Batches
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import (
    DamagedError,
    IncompleteError,
    InputError,
    MismatchError,
    WorkerLost,
)

SIZE = 16


def open_stream(known, *, shards=None, location=None, **options):
    defaults = {"image_size": SIZE, "batch_size": 8, "seed": 0, "targets": ["logits"], "drop_last": False}
    return TargetStream(shards or known.shards, location or known.location, **(defaults | options))  # type: ignore[arg-type]


def flat(stream, epoch, first_step=0, batch_size=8):
    """An epoch as comparable values: rows, and the bytes of pixels and targets."""
    return list(flat_batches(stream.batches(epoch, first_step * batch_size)))


def flat_batches(batches):
    for b in batches:
        yield b.rows_N.tolist(), raw(b.images_NCHW), {name: raw(values) for name, values in b.targets.items()}


def raw(tensor):
    return tensor.numpy().tobytes()


def error_of(kind, act):
    with pytest.raises(kind) as error:
        act()
    assert type(error.value) is kind
    return str(error.value)


@pytest.fixture
def copy(known_store, tmp_path):
    """Shards and store, copied to be damaged."""
    shutil.copytree(known_store.shards.location.path, tmp_path / "shards")
    shutil.copytree(known_store.location.path, tmp_path / "store")
    return ShardSet.open(str(tmp_path / "shards")), Location.of(tmp_path / "store")


def test_pairs_are_what_pillow_and_zarr_say(known_store, pictures):
    """Pixels from the original files, boxes and targets from plain Zarr arrays: no code of ours."""
    stream = open_stream(known_store, targets=["logits", "embedding"])
    assert (stream.num_samples, stream.num_views, stream.steps_per_epoch) == (45, 3, 6)
    params = zarr.open_group(str(known_store.location), mode="r")["view_params"][:]
    files = sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*.*"))
    files.sort(key=os.fsencode)
    for epoch in range(4):
        view, rows = epoch % 3, []
        for batch in stream.batches(epoch):
            assert batch.images_NCHW.dtype == torch.uint8
            assert batch.images_NCHW.is_contiguous()
            assert batch.rows_N.dtype == torch.int64
            for row, image_CHW in zip(batch.rows_N.tolist(), batch.images_NCHW.numpy(), strict=True):
                top, left, height, width, flip = params[row, view].tolist()
                image = Image.open(pictures / files[row]).convert("RGB")
                image = image.crop((left, top, left + width, top + height))
                image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
                assert np.array_equal(np.asarray(image).transpose(2, 0, 1), image_CHW)
            for name, values in batch.targets.items():
                assert values.dtype == torch.float32
                assert np.array_equal(values.numpy(), known_store.targets[name][batch.rows_N.numpy(), view])
            rows += batch.rows_N.tolist()
        assert sorted(rows) == np.flatnonzero(known_store.valid).tolist()
        assert len(rows) == 45
    stream.close()


def test_centre_views_render_at_the_students_size(picture_shards, make_store, tmp_path, pictures):
    views = ViewSpec(kind="center", interpolation="bilinear")
    known = make_store(picture_shards, tmp_path / "s", views=views, encoding="fp16")
    batch = next(open_stream(known, batch_size=48, image_size=12).batches(0))
    row = batch.rows_N.tolist().index(0)
    image = Image.open(sorted((pictures / "Blue_Jay").iterdir())[0]).convert("RGB")
    side = min(image.size)
    size = tuple(12 if n == side else int(12 * n / side) for n in image.size)
    left, top = (round((n - 12) / 2) for n in size)
    expected = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 12, top + 12))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(expected).transpose(2, 0, 1), batch.images_NCHW[row].numpy())
    stored = known.targets["logits"][batch.rows_N.numpy(), 0]
    assert np.allclose(batch.targets["logits"].numpy(), stored, atol=0.02)


def test_any_step_can_be_the_first(known_store):
    stream = open_stream(known_store)
    whole = flat(stream, 1)
    for first in (0, 1, 4, 6, 9):
        assert flat(open_stream(known_store), 1, first) == whole[first:]


def test_order_changes_with_epoch_and_seed_only(known_store):
    rows = [rows for rows, _, _ in flat(open_stream(known_store), 0)]
    assert [rows for rows, _, _ in flat(open_stream(known_store, image_size=8), 0)] == rows
    assert [rows for rows, _, _ in flat(open_stream(known_store), 3)] != rows
    assert [rows for rows, _, _ in flat(open_stream(known_store, seed=1), 0)] != rows


def test_last_batch_is_shorter_or_dropped_as_declared(known_store):
    assert [len(b.rows_N) for b in open_stream(known_store).batches(0)] == [8, 8, 8, 8, 8, 5]
    dropping = open_stream(known_store, drop_last=True)
    assert [len(b.rows_N) for b in dropping.batches(0)] == [8] * 5 == [8] * dropping.steps_per_epoch


def test_the_global_generators_are_left_alone(known_store):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    flat(open_stream(known_store), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_an_abandoned_epoch_cannot_be_read_on(known_store):
    stream = open_stream(known_store)
    first = stream.batches(0)
    next(first)
    assert len(flat(stream, 1)) == 6
    with pytest.raises(RuntimeError, match="another epoch was started"):
        next(first)


def test_only_the_windows_at_hand_stay_open(picture_shards, make_store, tmp_path, make_shards, pictures):
    shards = make_shards(pictures, tmp_path / "shards", shard_size=2)
    known = make_store(shards, tmp_path / "s")
    stream = open_stream(known, batch_size=4)
    stream._pairs._any_order = replace(stream._pairs._any_order, window=4)
    for _ in stream.batches(0):
        assert len(stream._pairs._open) <= 8
    stream.close()
    assert not stream._pairs._open


def test_processes_change_nothing(known_store):
    """Two processes, kept over epochs, entered anywhere: the same bytes; and they are gone after `close`."""
    alone = open_stream(known_store, targets=["embedding", "logits"])
    state = torch.get_rng_state()
    with open_stream(known_store, targets=["embedding", "logits"], num_workers=2) as stream:
        assert flat(stream, 0) == flat(alone, 0)
        processes = processes_of(stream)
        assert flat(stream, 1) == flat(alone, 1)
        next(stream.batches(1))  # left half-way: what is under way is thrown away
        assert flat(stream, 2, 3) == flat(alone, 2, 3)
        assert processes_of(stream) == processes
        stream.close()
        assert not any(is_running(process) for process in processes)
        assert flat(stream, 0) == flat(alone, 0)
        assert not set(processes_of(stream)) & set(processes)
        processes += processes_of(stream)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(processes) == 4
    assert not any(is_running(process) for process in processes)


def processes_of(stream):
    """Ids of the processes that prepare its batches."""
    first = stream._ahead._own._first._process.pid
    return [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_a_pool_that_others_use_too(known_store, kind):
    """Two streams take turns, and a closed one leaves it open."""
    alone = open_stream(known_store)
    pool = Processes(2, [BATCHES_MODULE]) if kind == "processes" else Threads(3)
    first, second = (open_stream(known_store, pool=pool, num_workers=1) for _ in range(2))
    expected = flat(alone, 0)
    turns = zip(flat_batches(first.batches(0)), flat_batches(second.batches(0)), strict=True)
    assert list(turns) == [(batch, batch) for batch in expected]
    first.close()
    assert flat(second, 0) == flat(first, 0) == expected
    for stream in (first, second):
        stream.close()
    pool.close()
    with pytest.raises(CancelledError):
        next(first.batches(0))


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_the_next_epoch_is_begun_before_one_is_at_its_end(known_store, monkeypatch, kind):
    """And nothing but the next one is read on: an epoch that is entered elsewhere, or again, starts anew."""
    alone = open_stream(known_store)
    layout, begun = Batches.layout, []
    monkeypatch.setattr(Batches, "layout", lambda self, task: begun.append((self, task)) or layout(self, task))
    with contextlib.closing(Processes(1, [BATCHES_MODULE]) if kind == "processes" else Threads(1)) as pool:
        stream = open_stream(known_store, pool=pool)
        assert flat(stream, 0) == flat(alone, 0)
        deadline = time.monotonic() + 30
        while (stream._pairs, (1, 0, 8)) not in begun:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for epoch, step in ((1, 0), (2, 0), (3, 4), (4, 0), (4, 0), (0, 6), (0, 5), (1, 0)):
            assert flat(stream, epoch, step) == flat(alone, epoch, step)
        next(stream.batches(2))
        assert flat(stream, 2) == flat(alone, 2)
        stream.close()


def test_processes_import_no_torch():
    """It takes two seconds, in which nothing is read."""
    code = f"import sys, {BATCHES_MODULE}; assert not {{'torch', 'ray', 'open_clip'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_that_forks_others_has_one_thread(known_store):
    """A lock that another thread holds at that moment would stay locked for ever."""
    with open_stream(known_store, num_workers=1) as stream:
        next(stream.batches(0))
        first = stream._ahead._own._first._process.pid
        threads = [(thread / "comm").read_text().strip() for thread in Path(f"/proc/{first}/task").iterdir()]
        assert len(set(threads) - {"jemalloc_bg_thd"}) == 1  # Arrow's allocator knows of forks
        assert len(threads) <= 2


def test_batches_may_be_kept(known_store):
    """Memory is used again only when nothing shares it, whole or cut to views."""
    alone = open_stream(known_store, batch_size=3)
    with open_stream(known_store, batch_size=3, num_workers=1) as stream:
        for epoch in (0, 1):
            for batch in stream.batches(epoch):
                del batch
            assert len(stream._ahead._opened.slabs.alive) <= 5  # three ahead, one waited for, one in hand
        kept = [(b.images_NCHW[1], b.images_NCHW.numpy()[0], b.rows_N) for b in stream.batches(2)]
    kept += [(b.images_NCHW[1], b.images_NCHW.numpy()[0], b.rows_N) for b in stream.batches(3)]
    stream.close()
    plain = [batch for epoch in (2, 3) for batch in alone.batches(epoch)]
    assert len(kept) == len(plain) == 30
    for (second, first, rows), batch in zip(kept, plain, strict=True):
        assert torch.equal(rows, batch.rows_N)
        assert torch.equal(second, batch.images_NCHW[1])
        assert np.array_equal(first, batch.images_NCHW.numpy()[0])


def test_processes_fail_in_one_line(copy, known_store):
    shards, store = copy
    stream = open_stream(known_store, shards=shards, location=store, num_workers=1)
    tar = shards.location / "000001.tar"
    tar.path.write_bytes(tar.read_bytes()[:-1024])
    text = error_of(DamagedError, lambda: flat(stream, 0))
    size = shards.receipt(1).outputs[0].bytes
    assert text == (
        f"a shard's file was cut or replaced: {tar}: expected {size} bytes, found {tar.size()} bytes. "
        f"Next: run the same `teachonce shard … --out {shards.location}` again"
    )

    whole = open_stream(known_store, num_workers=1)
    batches = whole.batches(0)
    next(batches)
    (process,) = processes_of(whole)
    os.kill(process, signal.SIGKILL)
    text = error_of(WorkerLost, lambda: list(batches) + flat(whole, 1))
    assert text == (
        f"a process that decodes images died: found process {process} was killed by SIGKILL. "
        "Next: if memory is short, use fewer --decode-workers (0 decodes in threads of the command)"
    )
    assert len(flat(whole, 0)) == 6  # usable again, with new processes
    whole.close()


def test_processes_end_with_a_killed_parent(known_store, tmp_path):
    script = tmp_path / "reads.py"
    script.write_text(  # without a `__name__` guard: processes do not run the program again
        "import time\n"
        "from pathlib import Path\n"
        "from teachonce import TargetStream\n"
        f"shards = {str(known_store.shards.location.path)!r}\n"
        f"store = {str(known_store.location.path)!r}\n"
        "stream = TargetStream(shards, store, image_size=8, batch_size=8, num_workers=2)\n"
        "next(stream.batches(0))\n"
        "first = stream._ahead._own._first._process.pid\n"
        "print(Path(f'/proc/{first}/task/{first}/children').read_text(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.communicate()
    patience = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < patience, "processes outlive their parent"
        time.sleep(0.05)


def is_running(pid):
    """True for a process that is neither gone nor a zombie."""
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_while_a_batch_is_awaited_is_not_swallowed(known_store):
    stream = open_stream(known_store)
    batches = stream.batches(0)
    next(batches)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        [time.sleep(0.2) for _ in batches]
    timer.join()
    stream.close()


# What does not belong together.


def test_a_store_of_another_corpus_is_refused(known_store, make_shards, pictures, tmp_path):
    other = make_shards(pictures / "red fox", tmp_path / "shards")
    text = error_of(MismatchError, lambda: open_stream(known_store, shards=other))
    assert text == (
        f"the store was made from another corpus: {known_store.location}: field 'corpus_id': expected "
        f"{other.corpus.corpus_id} (as in {other.location}), found {known_store.shards.corpus.corpus_id} (the store). "
        "Next: pass the shards that the store was made from, or run "
        f"`teachonce cache {other.location} --teacher … --out ANOTHER_STORE`"
    )


def test_a_target_that_was_not_stored_is_refused(known_store):
    text = error_of(InputError, lambda: open_stream(known_store, targets=["tokens"]))
    assert text == (
        f"the store holds no target 'tokens': {known_store.location}: expected tokens, found logits, "
        f"embedding. Next: teachonce cache SHARDS --targets tokens --teacher … "
        "--out ANOTHER_STORE"
    )


def test_no_store_is_an_error(known_store, tmp_path):
    text = error_of(InputError, lambda: open_stream(known_store, location=Location.of(tmp_path / "none")))
    assert text == (
        f"no target store here: {tmp_path}/none: expected a target store, found nothing. "
        f"Next: teachonce cache SHARDS --teacher … --out {tmp_path}/none"
    )


def test_an_unfinished_store_is_refused(copy, known_store):
    shards, store = copy
    (store / "ledger/cache/receipts/000002.json").remove()
    text = error_of(IncompleteError, lambda: open_stream(known_store, shards=shards, location=store))
    assert text == (
        f"cache has not finished: {store}: found 3 of 4 units. Next: run the same `teachonce cache` command again"
    )


def test_batches_larger_than_the_corpus_are_refused_where_the_last_is_dropped(known_store):
    text = error_of(InputError, lambda: open_stream(known_store, batch_size=46, drop_last=True))
    assert text == (
        "a batch is larger than the corpus, and a last, shorter batch is dropped: --batch-size: "
        "expected at most 45, found 46"
    )
    assert [len(b.rows_N) for b in open_stream(known_store, batch_size=46).batches(0)] == [45]


def test_a_store_without_usable_samples_is_refused(picture_shards, make_store, tmp_path):
    known = make_store(picture_shards, tmp_path / "s", also_invalid=tuple(range(48)))
    text = error_of(InputError, lambda: open_stream(known))
    assert text == "no usable samples. Next: see which images could not be used with `teachonce status`"


# Damage.


@pytest.fixture
def damage(revouch):
    """Changes an array as a writer with a fault would leave it: its receipts vouch for it."""

    def damaged(store, name, change):
        array = zarr.open_group(str(store), mode="r+")[name]
        values = array[:]
        change(values)
        array[:] = values  # type: ignore[assignment]
        revouch(store)

    return damaged


def again(store: object, what: str = "the tar or the store") -> str:
    receipt = f"{store}/ledger/cache/receipts/000001.json"
    return (
        f"restore {what} from a copy; or, to ask the teacher about this shard again, "
        f"mv {receipt} {receipt}.old, then run the same `teachonce cache` command again"
    )


def test_a_key_that_differs_is_refused(copy, known_store, damage):
    shards, store = copy
    mine = shards.reader(1).key(14)

    def swap(keys):
        keys[[14, 15]] = keys[[15, 14]]

    damage(store, "keys", swap)
    stream = open_stream(known_store, shards=shards, location=store)
    text = error_of(DamagedError, lambda: flat(stream, 0))
    assert text == (
        f"the key in the tar is not the key in the store, at 2 rows, the first is 1: {store}, shard 1: "
        f"expected {shards.reader(1).key(15)}, found {mine}. Next: {again(store)}"
    )


def test_a_sample_that_the_tar_lacks_is_refused(copy, known_store, damage):
    shards, store = copy
    bad = next(row for shard in range(4) for row in shards.reader(shard).invalid)
    shard = bad // 13

    def mark(valid):
        valid[bad] = True

    damage(store, "valid", mark)
    receipt = Ledger(store, "cache").receipt(f"{shard:06d}")
    kept = tuple(i for i in receipt.invalid_rows if i.row != bad)
    changed = type(receipt)(**(receipt.__dict__ | {"invalid_rows": kept}))  # type: ignore[misc]
    (store / f"ledger/cache/receipts/{shard:06d}.json").write_bytes(changed.to_bytes())
    stream = open_stream(known_store, shards=shards, location=store)
    text = error_of(DamagedError, lambda: flat(stream, 0))
    assert text.startswith(f"the key in the tar is not the key in the store, at 1 row, the first is {bad % 13}: ")
    assert ", found no image. Next: restore the tar or the store from a copy; or, " in text


def test_valid_rows_that_the_receipt_does_not_know_are_refused(copy, known_store, damage):
    shards, store = copy

    def unmark(valid):
        valid[16] = False

    damage(store, "valid", unmark)
    text = error_of(DamagedError, lambda: flat(open_stream(known_store, shards=shards, location=store), 0))
    counts = known_store.valid[13:26].sum()
    assert text == (
        f"the store's valid rows are not those of its receipt: {store}, shard 1: expected {counts}, "
        f"found {counts - 1}. Next: {again(store)}"
    )


def gone(store, chunk):
    (store / chunk).remove()


def flipped(store, chunk):
    data = bytearray((store / chunk).read_bytes())
    data[len(data) // 2] ^= 4
    (store / chunk).path.write_bytes(data)


def of_another_shard(store, chunk):
    (store / chunk).path.write_bytes((store / chunk.replace("/c/1", "/c/2")).read_bytes())


@pytest.mark.parametrize("chunk", ["logits/c/1/0/0", "view_params/c/1/0/0", "valid/c/1", "keys/c/1/0"])
@pytest.mark.parametrize("change", [gone, flipped, of_another_shard])
def test_a_chunk_that_is_not_the_one_that_was_written_is_refused(copy, known_store, chunk, change):
    shards, store = copy
    before = (store / chunk).read_bytes()
    change(store, chunk)
    if (store / chunk).exists() and (store / chunk).read_bytes() == before:
        pytest.skip("the chunks of both shards say the same")
    found = "no such chunk" if change is gone else f"sha256 {hashlib.sha256((store / chunk).read_bytes()).hexdigest()}"
    text = error_of(DamagedError, lambda: flat(open_stream(known_store, shards=shards, location=store), 0))
    assert text == (
        f"a chunk of the store is not the one that the receipt of shard 1 vouches for: {store}/{chunk}: found {found}. "
        f"Next: {again(store, 'the store')}"
    )


def test_a_shard_of_a_store_with_other_views_is_refused(copy, known_store, make_store, tmp_path):
    """Its chunks and its receipt fit each other, and each checksum is right."""
    shards, store = copy
    other = make_store(
        shards,
        tmp_path / "other",
        views=ViewSpec(kind="random_resized_crop", count=3, seed=6),
        description={"fingerprint": {"corpus_id": shards.corpus.corpus_id, "seed": 6}},
    )
    for name in ("keys", "valid", "view_params", "logits", "embedding", "ledger/cache/receipts"):
        for file in (other.location / name).path.rglob("*"):
            if file.is_file() and ("/c/1" in str(file) or file.name == "000001.json"):
                shutil.copy(file, store.path / file.relative_to(other.location.path))
    text = error_of(DamagedError, lambda: open_stream(known_store, shards=shards, location=store))
    assert text.startswith(f"a receipt of another unit, or of another run: {store}/ledger/cache/receipts/000001.json: ")


def test_a_receipt_under_another_name_is_refused(copy, known_store):
    shards, store = copy
    receipts = store / "ledger/cache/receipts"
    (receipts / "000001.json").path.write_bytes((receipts / "000002.json").read_bytes())
    plan = Ledger(store, "cache").plan().fingerprint.digest
    text = error_of(DamagedError, lambda: open_stream(known_store, shards=shards, location=store))
    assert f"expected 000001 of {plan}, found 000002 of {plan}. Next: restore it from a copy, or mv " in text


def test_an_image_that_changed_in_the_tar_is_refused(copy, known_store):
    shards, store = copy
    record = shards.reader(2).index[3]
    tar = (shards.location / "000002.tar").path
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + int(record["length"]) // 2] ^= 1
    tar.write_bytes(data)
    text = error_of(DamagedError, lambda: flat(open_stream(known_store, shards=shards, location=store), 0))
    assert text.startswith(f"an image in a tar changed: {tar}, row {record['row']}, {record['key'].decode()}. Next: ")
