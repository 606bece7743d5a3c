"""Which rows train: domains that are left out and rows that are held out never do; the others in the stream as in plain lists."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.decoding.threads import Threads
from teachonce.stages.pairs.join import open_pair
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.pairs.training_rows import RowRule, TrainingRows
from teachonce.storage_schemas.errors import InputError, MismatchError
from teachonce.storage_schemas.manifest import ManifestReader

COUNTS = {"art": 11, "photo": 21, "sketch": 6}  # usable ones


def training_rows(known, **rule) -> TrainingRows:
    return TrainingRows.of(*open_pair(known.shards, known.location), RowRule(**rule))


def domains_of(known) -> list[str]:
    """Of each row, usable or not."""
    manifest = known.shards.manifest()
    return [path.split("/")[0] for shard in range(manifest.num_shards) for path in manifest.paths_of(shard)]


def open_stream(known, rows, *, batch_size=4, **options):
    stream = TargetStream(
        known.shards, known.location, image_size=16, batch_size=batch_size, seed=3, rows=rows, **options
    )
    return stream


def rows_of(stream, epochs=1, **options):
    with stream:
        return [b.rows_N.tolist() for epoch in range(epochs) for b in stream.batches(epoch, **options)]


def test_each_step_has_so_many_of_each_domain_that_trains(domain_store):
    domain = domains_of(domain_store)
    stream = open_stream(domain_store, RowRule(per_domain=3, steps=5, leave_out=("photo",)))
    assert (stream.batch_size, stream.steps_per_epoch, stream.num_samples) == (6, 5, 17)
    for rows in rows_of(stream, epochs=4):
        assert Counter(domain[row] for row in rows) == {"art": 3, "sketch": 3}
        assert all(domain_store.valid[row] for row in rows)
    assert stream.rows.note() == "samples to train on: 3 of each a step: art (11), sketch (6); left out: photo"


def test_an_epoch_is_as_many_steps_as_draw_all_samples(domain_store):
    assert open_stream(domain_store, RowRule(per_domain=2)).steps_per_epoch == 7  # 38 samples, 6 a step


def test_the_manifest_is_read_once(domain_store, monkeypatch):
    shards, paths_of = [], ManifestReader.paths_of
    monkeypatch.setattr(ManifestReader, "paths_of", lambda self, shard: shards.append(shard) or paths_of(self, shard))
    training_rows(domain_store, per_domain=2, hold_out=0.2, leave_out=("art",))
    assert shards == list(range(domain_store.shards.corpus.num_shards))


@pytest.mark.parametrize("per_domain", [0, 2])
def test_rows_that_are_held_out_never_train(domain_store, per_domain):
    rule = RowRule(hold_out=0.3, seed=1, per_domain=per_domain, steps=40 if per_domain else 0)
    rows = training_rows(domain_store, hold_out=0.3, seed=1, per_domain=per_domain, steps=40 if per_domain else 0)
    held = {row for row, is_held in enumerate(rows.held_out) if is_held}
    trained = {row for batch in rows_of(open_stream(domain_store, rule, drop_last=False)) for row in batch}
    usable = set(np.flatnonzero(domain_store.valid).tolist())
    assert held
    assert held <= usable - trained
    assert rows.num_samples == len(usable - held)
    if not per_domain:
        assert trained == usable - held
    # By key and seed: another rule has the same ones, another seed others.
    again = training_rows(domain_store, hold_out=0.3, seed=1, leave_out=("photo",))
    domain = domains_of(domain_store)
    assert set(np.flatnonzero(again.held_out).tolist()) == {row for row in held if domain[row] != "photo"}
    assert set(np.flatnonzero(training_rows(domain_store, hold_out=0.3, seed=2).held_out).tolist()) != held


def test_about_the_share_is_held_out():
    """Of many keys, of which each counts alone."""
    from teachonce.stages.pairs.training_rows import _is_held_out

    keys = [f"{i:032x}".encode() for i in range(20_000)]
    held = sum(_is_held_out(key, RowRule(hold_out=0.2)) for key in keys)
    assert abs(held / 20_000 - 0.2) < 0.01


def test_targets_and_images_are_those_of_their_rows(domain_store):
    stream = open_stream(domain_store, RowRule(per_domain=2, steps=4, hold_out=0.2), targets=["embedding"])
    plain = open_stream(domain_store, None, targets=["embedding"], batch_size=38)
    with plain, stream:
        for epoch in range(2):
            (everything,) = plain.batches(epoch)
            image_of = dict(zip(everything.rows_N.tolist(), everything.images_NCHW.numpy(), strict=True))
            for batch in stream.batches(epoch):
                rows = batch.rows_N.tolist()
                expected = domain_store.targets["embedding"][rows, epoch % 3]
                assert np.array_equal(batch.targets["embedding"].numpy(), expected)
                assert all(
                    np.array_equal(image_of[row], image)
                    for row, image in zip(rows, batch.images_NCHW.numpy(), strict=True)
                )


def test_the_order_is_the_same_for_any_processes_ranks_and_entry(domain_store):
    rule = RowRule(per_domain=2, steps=6, hold_out=0.2)
    expected = rows_of(open_stream(domain_store, rule), epochs=3)
    pool = Threads(3)
    assert rows_of(open_stream(domain_store, rule, pool=pool), epochs=3) == expected
    pool.close()
    ranks = [rows_of(open_stream(domain_store, rule, rank=r, world_size=3), epochs=3) for r in range(3)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == expected
    stream = open_stream(domain_store, rule)
    for batch in islice(stream, 4):
        assert len(batch.rows_N) == 6
    later = open_stream(domain_store, rule)
    later.load_state_dict(stream.state_dict())
    stream.close()
    with later:
        assert [b.rows_N.tolist() for b in later] == expected[4:6]
        assert [b.rows_N.tolist() for b in later] == expected[6:12]
    other = open_stream(domain_store, RowRule(per_domain=2, steps=6, hold_out=0.2, leave_out=("art",)))
    with pytest.raises(MismatchError, match="the state of another stream"):
        other.load_state_dict(stream.state_dict())


@pytest.mark.slow
def test_the_order_is_the_same_for_two_processes(domain_store):
    rule = RowRule(per_domain=2, steps=6)
    assert rows_of(open_stream(domain_store, rule, num_workers=2)) == rows_of(open_stream(domain_store, rule))


def test_copies_on_this_machine_change_nothing(domain_store, tmp_path):
    from teachonce.stages.pairs.local_copies import LocalCache

    rule = RowRule(per_domain=2, steps=6)
    cache = LocalCache(folder=str(tmp_path / "cache"), gb=1)
    assert rows_of(open_stream(domain_store, rule, local_cache=cache), 2) == rows_of(open_stream(domain_store, rule), 2)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            {"leave_out": ("sketsh",)},
            "no such domain: --leave-out: expected art, photo, sketch, found sketsh. Next: did you mean sketch?",
        ),
        (
            {"leave_out": ("art", "photo", "sketch")},
            "no domain is left to train on: --leave-out: found art, photo, sketch. Next: leave out fewer",
        ),
        (
            {"hold_out": 0.999},
            "no sample is left to train on: --hold-out 0.999: found 0 to train on, 38 held out. "
            "Next: choose another share, or more images",
        ),
        (
            {"hold_out": 0.0001},
            "no sample is held out: --hold-out 0.0001: found 38 to train on, 0 held out. Next: choose another share, or more images",
        ),
        (
            {"hold_out": 0.97, "per_domain": 1},
            "a domain has no sample to train on: {shards}, domain art: found no usable image that is not held out. "
            "Next: see `teachonce status`, or train without it: --leave-out art",
        ),
    ],
)
def test_what_cannot_be_chosen(domain_store, rule, text):
    with pytest.raises(InputError) as error:
        training_rows(domain_store, **rule)
    assert str(error.value) == text.format(shards=domain_store.shards.location)


def test_a_corpus_without_domains(known_store):
    with pytest.raises(InputError) as error:
        training_rows(known_store, per_domain=2)
    assert error.value.code == "corpus-without-domains"


def strange_corpus(make_shards, make_store, folder: Path, files: dict[str, int]):
    from PIL import Image

    for path, grey in files.items():
        (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (24, 24), grey).save(folder / "in" / path)
    shards: ShardSet = make_shards(folder / "in", folder / "shards")
    return make_store(shards, folder / "s.zarr")


def test_an_image_in_no_domain(make_shards, make_store, tmp_path):
    known = strange_corpus(make_shards, make_store, tmp_path, {"a/x/1.png": 1, "b/x/1.png": 2, "loose/1.png": 3})
    with pytest.raises(InputError) as error:
        training_rows(known, per_domain=1)
    assert str(error.value) == (
        f"an image lies in no domain: {known.shards.location}: expected DOMAIN/CLASS/IMAGE, found loose/1.png. "
        "Next: shard the folder that the domains' folders lie in, and nothing beside them"
    )


def test_a_domain_without_a_class(make_shards, make_store, tmp_path):
    files = {
        "a/x/1.png": 1,
        "a/y/1.png": 2,
        "a/z/1.png": 3,
        "b/x/1.png": 4,
        "c/x/1.png": 5,
        "c/y/1.png": 6,
        "c/z/1.png": 7,
    }
    known = strange_corpus(make_shards, make_store, tmp_path, files)
    ids = (("x", 0), ("y", 1), ("z", 2))
    with pytest.raises(InputError) as error:
        training_rows(known, per_domain=1, complete=ids)
    assert str(error.value) == (
        f"a domain has no image of a class that other domains have: {known.shards.location}, domain b: "
        "expected images of 3 classes, found none of 'y' and 1 more. "
        "Next: add images of it, or train without this domain: --leave-out b"
    )
    assert training_rows(known, per_domain=1, complete=ids, leave_out=("b",)).num_samples == 6
    assert training_rows(known, per_domain=1).num_samples == 7
