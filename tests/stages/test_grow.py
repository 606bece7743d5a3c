"""Stores that grew against stores that were made at once: the same bytes, and what is there meets no teacher again."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.looking import look
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.grow import plan_growth
from teachonce.stages.grow_vectors import plan_more_classes
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import (
    open_store,
    read_description,
    read_generations,
    read_vectors,
    store_facts,
)
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.pairs.target_join import join_targets
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.settings.verify import VerifySettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.teachers.open_clip import OpenClipTeacher
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.verify import plan_verify
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.errors import InputError, MismatchError
from teachonce.storage_schemas.target_store import read_block

FP32 = Compute(device="cpu", precision="fp32", threads=1)
CLASSES = ("red fox", "Blue_Jay", "house-cat")


@pytest.fixture(scope="module")
def teacher(tiny_clip_teacher) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")


def vectors(teacher, out, names=CLASSES) -> None:
    file = Path(out).parent / "classes.txt"
    file.write_text("\n".join(names) + "\n")
    stage = plan_vectors(teacher, out=str(out), settings=VectorsSettings(classes=str(file)), compute=FP32)
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def arguments(out, *, views=4, **settings):
    return {
        "out": str(out),
        "views": None
        if views is None
        else ViewSpec(kind="random_resized_crop", count=views, seed=3, jitter=(0.4, 0.4, 0.4, 0.1)),
        "settings": CacheSettings(**({"batch_size": 32} | settings)),
        "compute": FP32,
    }


def cache(shards, teacher, out, **options) -> None:
    stage = plan_cache(str(shards.location), teacher, **arguments(out, **options))
    run_stage(stage, stage.store, SerialExecutor(), progress=False)


def grow(shards, teacher, out, **options) -> list[str]:
    """Grow a store as the command does. Returns what is said of each step."""
    notes: list[str] = []
    for step in plan_growth(str(shards.location), teacher, **arguments(out, **options)):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        notes += step.notes
    return notes


def files(folder: Path) -> dict[str, bytes]:
    """Every file of every array; not the ledgers, nor what the root says of how it was made."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("ledger/") and name != "zarr.json"}


@pytest.fixture
def calls(monkeypatch):
    """How many images met the teacher."""
    counted = []
    outputs = OpenClipTeacher.outputs

    def counting(self, images_NCHW, names):
        counted.append(len(images_NCHW))
        return outputs(self, images_NCHW, names)

    monkeypatch.setattr(OpenClipTeacher, "outputs", counting)
    return counted


@pytest.fixture(scope="module")
def four(picture_shards, teacher, tmp_path_factory) -> Path:
    """A store of four views: logits and embeddings in fp16. Tests copy it."""
    out = tmp_path_factory.mktemp("four") / "s.zarr"
    vectors(teacher, out)
    cache(picture_shards, teacher, out, targets="both")
    return out


@pytest.fixture
def store(four, tmp_path) -> Path:
    return Path(shutil.copytree(four, tmp_path / "s.zarr"))


def test_more_views_are_the_bytes_of_all_at_once(picture_shards, teacher, store, four, tmp_path, calls):
    assert grow(picture_shards, teacher, store, views=8) == ["generation 2: 4 to 8 views"]
    assert sum(calls) == 46 * 4
    vectors(teacher, tmp_path / "at-once.zarr")
    cache(picture_shards, teacher, tmp_path / "at-once.zarr", views=8, targets="both", chunk_views=4)
    assert files(store) == files(tmp_path / "at-once.zarr")
    data = xarray.open_zarr(str(store), consolidated=False)
    assert data["logits"].shape == (48, 8, 3)
    for name, content in files(four).items():  # old chunks stay as they are
        assert name.endswith("zarr.json") or files(store)[name] == content


def test_an_older_generation_is_read_by_its_name(picture_shards, teacher, store, four):
    location, before = Location.of(store), Location.of(four)
    grow(picture_shards, teacher, store, views=8)
    assert [store_facts(location, name).spec.num_views for name in ("1", "2", None)] == [4, 8, 8]
    assert store_facts(location, "1").fingerprint == store_facts(before).fingerprint
    assert store_facts(location).fingerprint != store_facts(before).fingerprint
    old, whole = open_store(location, "1"), open_store(location)
    spec, was = read_description(old, location).spec, read_description(open_store(before), before).spec
    assert spec == was
    for shard in range(spec.num_shards):
        first, known = read_block(old, spec, shard), read_block(open_store(before), was, shard)
        assert first.digest == known.digest
        block = read_block(whole, read_description(whole, location).spec, shard)
        np.testing.assert_array_equal(block.targets["logits"][:, :4], known.targets["logits"])
    with pytest.raises(InputError) as caught:
        open_store(location, "3")
    assert "no such generation" in str(caught.value)
    assert "expected 1, 2" in str(caught.value)


def test_growing_again_and_again(picture_shards, teacher, store, tmp_path):
    assert grow(picture_shards, teacher, store, views=8) == ["generation 2: 4 to 8 views"]
    assert grow(picture_shards, teacher, store, views=12) == ["generation 3: 8 to 12 views"]
    assert [n.partition(":")[0] for n in grow(picture_shards, teacher, store, views=12)] == [
        "generation 2 is there",
        "generation 3 is there",
    ]
    vectors(teacher, tmp_path / "at-once.zarr")
    cache(picture_shards, teacher, tmp_path / "at-once.zarr", views=12, targets="both", chunk_views=4)
    assert files(store) == files(tmp_path / "at-once.zarr")
    assert read_generations(Location.of(store)).finished == ["1", "2", "3"]


def test_another_target_of_the_same_teacher(picture_shards, teacher, store, tmp_path, calls):
    assert grow(picture_shards, teacher, store, views=None, targets="tokens") == ["generation 2: tokens"]
    assert sum(calls) == 46 * 4
    vectors(teacher, tmp_path / "at-once.zarr")
    cache(picture_shards, teacher, tmp_path / "at-once.zarr", targets="embedding,logits,tokens")
    assert files(store) == files(tmp_path / "at-once.zarr")
    assert "tokens" not in dict(open_store(Location.of(store), "1").arrays())
    assert "tokens" in dict(open_store(Location.of(store)).arrays())


def test_logits_come_of_embeddings_without_the_teacher(picture_shards, teacher, tmp_path, calls):
    out, once = tmp_path / "s.zarr", tmp_path / "at-once.zarr"
    for store, targets in ((out, "embedding"), (once, "both")):
        vectors(teacher, store)
        cache(picture_shards, teacher, store, targets=targets, encoding="fp32")
    before = len(calls)
    notes = grow(picture_shards, teacher, out, views=None, targets="logits", encoding="fp32")
    assert notes == ["generation 2: logits, from the embeddings"]
    assert len(calls) == before
    assert files(out) == files(once)


def test_views_and_targets_in_one_command(picture_shards, teacher, store, tmp_path):
    notes = grow(picture_shards, teacher, store, views=8, targets="tokens")
    assert notes == ["generation 2: 4 to 8 views", "generation 3: tokens"]
    vectors(teacher, tmp_path / "at-once.zarr")
    options = {"views": 8, "targets": "embedding,logits,tokens", "chunk_views": 4}
    cache(picture_shards, teacher, tmp_path / "at-once.zarr", **options)
    assert files(store) == files(tmp_path / "at-once.zarr")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"views": 2}, "field 'views.count': expected at least 4 (the store), found 2 (this command)"),
        ({"views": 8, "chunk_views": 2}, "field 'chunk_views': expected 4 (the store), found 2 (this command)"),
        (
            {"views": 8, "encoding": "fp32"},
            "field 'encoding': expected 'fp32' (this command), found 'fp16' (the store)",
        ),
        (
            {"views": 8, "batch_size": 64},
            "field 'compute.batch_size': expected 64 (this command), found 32 (the store)",
        ),
    ],
)
def test_what_is_no_growth_is_refused_by_name(picture_shards, teacher, store, options, expected):
    before = (store / "zarr.json").read_bytes()
    with pytest.raises(MismatchError) as caught:
        grow(picture_shards, teacher, store, **options)
    assert str(caught.value).startswith(f"the store cannot grow to this: {Location.of(store)}: {expected}")
    assert (store / "zarr.json").read_bytes() == before


def test_a_recoded_store_names_the_one_that_can_grow(picture_shards, teacher, store, tmp_path):
    anew = tmp_path / "anew.zarr"
    stage = plan_recode(str(store), out=str(anew), settings=RecodeSettings())
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    with pytest.raises(MismatchError) as caught:
        grow(picture_shards, teacher, anew, views=8)
    assert str(caught.value) == (
        f"a store that was recoded grows by classes alone: {Location.of(anew)}. Next: let the store that it was made of grow ({store}), "
        "and `teachonce recode` that into a new one"
    )


def test_without_grow_the_refusal_names_it(picture_shards, teacher, store):
    with pytest.raises(MismatchError) as caught:
        cache(picture_shards, teacher, store, views=8, targets="both")
    assert "field 'views.count': expected 8 (this command), found 4 (the store). Next: add --grow" in str(caught.value)


def test_views_that_do_not_fill_their_chunks_grow_once(picture_shards, teacher, store):
    grow(picture_shards, teacher, store, views=6)
    with pytest.raises(MismatchError) as caught:
        grow(picture_shards, teacher, store, views=8)
    assert "expected a multiple of 4 views, which fill their chunks, found 6" in str(caught.value)


def more_classes(teacher, out, *names, **settings) -> list[str]:
    """Add classes as the command does. Returns what is said of it."""
    file = Path(out).parent / "more.txt"
    file.write_text("\n".join(names) + "\n")
    notes: list[str] = []
    asked = VectorsSettings(classes=str(file), **settings)
    for step in plan_more_classes(teacher, out=str(out), settings=asked, compute=FP32):
        run_stage(step.stage, step.store, SerialExecutor(), progress=False)
        notes += step.notes
    return notes


def test_more_classes_without_an_image_for_the_teacher(picture_shards, teacher, tmp_path, calls):
    out, once = tmp_path / "s.zarr", tmp_path / "once" / "s.zarr"
    once.parent.mkdir()
    for store, names in ((out, CLASSES), (once, (*CLASSES, "zebra", "ant"))):
        vectors(teacher, store, names)
        cache(picture_shards, teacher, store, targets="both", encoding="fp32")
    before, met = files(out), len(calls)
    notes = more_classes(teacher, out, "zebra", "red fox", "ant")
    assert notes[-1] == "generation 2: 3 to 5 classes, logits from the embeddings"
    assert len(calls) == met
    now, expected = files(out), files(once)
    assert {name: now[name] for name in before} == before
    location, at_once = Location.of(out), Location.of(once)
    assert read_vectors(open_store(location), location).names == (*CLASSES, "zebra", "ant")
    assert read_vectors(open_store(location, "1"), location).names == CLASSES
    for name, data in expected.items():
        array = name.partition("/")[0]
        place = f"generations/2/{name}" if array in ("logits", "class_names") else name
        if name.startswith(("class_vectors", "logits/c")):  # the text tower computes other low bits in another batch
            continue
        assert now[place] == data, name
    both = read_vectors(open_store(location), location), read_vectors(open_store(at_once), at_once)
    np.testing.assert_allclose(both[0].vectors_CD, both[1].vectors_CD, atol=1e-6)
    logits = [
        xarray.open_zarr(str(p), group=g, consolidated=False)["logits"]
        for p, g in ((out, "generations/2"), (once, None))
    ]
    assert logits[0].shape == (48, 4, 5)
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    assert more_classes(teacher, out, "ant") == ["generation 2 is there: 5 classes"]


def test_classes_then_views_then_a_target(picture_shards, teacher, store):
    more_classes(teacher, store, "zebra")
    assert grow(picture_shards, teacher, store, views=8) == ["generation 3: 4 to 8 views"]
    assert grow(picture_shards, teacher, store, targets="tokens", views=None) == ["generation 4: tokens"]
    location = Location.of(store)
    shapes = {name: dict(open_store(location, name).arrays())["logits"].shape for name in "1234"}
    assert shapes == {"1": (48, 4, 3), "2": (48, 4, 4), "3": (48, 8, 4), "4": (48, 8, 4)}
    root = open_store(location)
    spec, known = read_description(root, location).spec, read_vectors(root, location)
    block = read_block(root, spec, 1)
    derived = known.logits(block.targets["embedding"])
    np.testing.assert_allclose(block.targets["logits"], derived, atol=0.02)


def test_logits_alone_cannot_have_more_classes(picture_shards, teacher, tmp_path):
    vectors(teacher, tmp_path / "s.zarr")
    cache(picture_shards, teacher, tmp_path / "s.zarr", targets="logits")
    with pytest.raises(InputError) as caught:
        more_classes(teacher, tmp_path / "s.zarr", "zebra")
    assert str(caught.value).startswith("logits of more classes need embeddings, and the store holds logits alone: ")
    assert "--targets embedding --grow" in str(caught.value)


def test_other_prompts_are_refused(teacher, store):
    with pytest.raises(MismatchError) as caught:
        more_classes(teacher, store, "zebra", templates="simple-imagenet")
    assert "field 'templates'" in str(caught.value)


def shard(folder, out, *, append=False, size=13) -> ShardSet:
    settings = ShardSettings(append=append, shard_size=size, name="pictures", order="source")
    stage = plan_shard([str(folder)], out=str(out), settings=settings)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return ShardSet.open(str(out))


def test_more_images_are_the_bytes_of_all_at_once(pictures, teacher, tmp_path, calls):
    some = tmp_path / "some"
    for path in sorted(pictures.rglob("*.*"))[:30]:
        target = some / path.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    out, once = tmp_path / "s.zarr", tmp_path / "once.zarr"
    old = shard(some, tmp_path / "shards")
    vectors(teacher, out)
    cache(old, teacher, out, targets="both")
    seen = sum(calls)
    shutil.copytree(pictures, some, dirs_exist_ok=True)
    grown = shard(some, tmp_path / "shards", append=True)
    assert grown.corpus.num_samples == 48
    assert grow(grown, teacher, out) == ["generation 2: 30 to 48 images"]
    assert (seen, sum(calls) - seen) == (29 * 4, 17 * 4)
    vectors(teacher, once)
    cache(grown, teacher, once, targets="both")
    assert files(out) == files(once)
    assert [int(store_facts(Location.of(out), name).valid_rows.sum()) for name in "12"] == [29, 46]
    for name, samples in (("1", 29), ("2", 46)):
        stream = TargetStream(grown, str(out), image_size=32, batch_size=7, generation=name)
        assert stream.num_samples == samples
        assert len(list(stream)) == samples // 7
    assert grow(grown, teacher, out, views=8) == ["generation 3: 4 to 8 views"]
    cache(grown, teacher, tmp_path / "eight.zarr", targets="embedding", views=8, chunk_views=4)
    eight, wide = files(tmp_path / "eight.zarr"), files(out)
    assert {name: wide[name] for name in eight if "embedding" in name} == {
        name: data for name, data in eight.items() if "embedding" in name
    }


@pytest.mark.parametrize("encoding", [None, "embedding=pq:4,logits=sampled:9"])
def test_a_store_of_less_than_one_shard_gets_more_images(pictures, teacher, tmp_path, calls, encoding):
    """Its arrays' chunks have no room: the new generation has arrays of its own, into which the old rows are copied as they are stored."""
    some, out, once = tmp_path / "some", tmp_path / "s.zarr", tmp_path / "once.zarr"
    for path in sorted(pictures.rglob("*.*"))[:30]:
        (some / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, some / path.relative_to(pictures))
    options = {"targets": "both", "views": 2, "encoding": encoding, "fit_views": 40, "batch_size": 8}
    old = shard(some, tmp_path / "shards", size=40)
    vectors(teacher, out)
    cache(old, teacher, out, **options)
    before, seen = files(out), sum(calls)
    shutil.copytree(pictures, some, dirs_exist_ok=True)
    grown = shard(some, tmp_path / "shards", append=True, size=40)
    step = next(plan_growth(str(grown.location), teacher, **arguments(out, **options)))
    with pytest.raises(KeyboardInterrupt):
        run_stage(step.stage, step.store, Dying(units=1), progress=False)
    assert store_facts(Location.of(out)).spec.num_samples == 30
    assert grow(grown, teacher, out, **options) == ["generation 2: 30 to 48 images"]
    assert sum(calls) - seen == 17 * 2
    vectors(teacher, once)
    cache(grown, teacher, once, **options)
    tables = ("class_", "encoding_")
    now, expected = files(out), {n: data for n, data in files(once).items() if not n.startswith(tables)}
    assert {name: now[f"generations/2/{name}"] for name in expected} == expected
    assert {n: now[n] for n in before if not n.endswith("zarr.json")} == {
        n: data for n, data in before.items() if not n.endswith("zarr.json")
    }
    assert [int(store_facts(Location.of(out), name).valid_rows.sum()) for name in "12"] == [29, 46]
    for name, samples in (("1", 29), ("2", 46)):
        with TargetStream(grown, str(out), image_size=32, batch_size=1, drop_last=False, generation=name) as stream:
            assert len(list(stream)) == samples
    assert grow(grown, teacher, out, **(options | {"views": 4})) == ["generation 3: 2 to 4 views"]
    location = Location.of(out)
    if encoding is None:
        four = tmp_path / "four.zarr"
        cache(grown, teacher, four, **(options | {"views": 4, "targets": "embedding", "chunk_views": 2}))
        both = []
        for store in (location, Location.of(four)):
            root = open_store(store)
            both.append([read_block(root, read_description(root, store).spec, s).targets["embedding"] for s in (0, 1)])
        np.testing.assert_array_equal(np.concatenate(both[0]), np.concatenate(both[1]))
    for generation in ("1", "2", "3"):
        stage, findings = plan_verify(grown.location, location, settings=VerifySettings(generation=generation))
        assert stage is not None
        seen_now = [found for one in look(stage, SerialExecutor(), location) for found in one.seen.findings]
        assert [str(found.error) for found in (*findings, *seen_now)] == []


def test_streams_and_joins_read_a_generation(picture_shards, teacher, store):
    grow(picture_shards, teacher, store, views=8)
    assert TargetStream(picture_shards, str(store), image_size=32, batch_size=8).num_views == 8
    assert TargetStream(picture_shards, str(store), image_size=32, batch_size=8, generation="1").num_views == 4
    join_targets(str(store), view=7)
    with pytest.raises(InputError):
        join_targets(str(store), view=7, generation="1")


class Dying(SerialExecutor):
    """Ends after a few units, as a killed process does: nothing is tidied up."""

    def __init__(self, units=2):
        self._units = units

    def map(self, stage, ledger, units, board):
        yield from itertools.islice(super().map(stage, ledger, units, board), self._units)
        raise KeyboardInterrupt


def test_killed_growth_leaves_the_store_and_goes_on(picture_shards, teacher, store, four, tmp_path):
    whole = Path(shutil.copytree(store, tmp_path / "whole.zarr"))
    grow(picture_shards, teacher, whole, views=8)
    step = next(plan_growth(str(picture_shards.location), teacher, **arguments(store, views=8)))
    with pytest.raises(KeyboardInterrupt):
        run_stage(step.stage, step.store, Dying(), progress=False)
    location = Location.of(store)
    assert read_generations(location).finished == ["1"]
    assert store_facts(location).fingerprint == store_facts(Location.of(four)).fingerprint
    stream = TargetStream(picture_shards, str(store), image_size=32, batch_size=8)
    assert (stream.num_views, len(list(stream))) == (4, 5)
    with pytest.raises(MismatchError) as caught:
        grow(picture_shards, teacher, store, views=12)
    assert "another growth of this store was begun, and is not finished" in str(caught.value)
    assert grow(picture_shards, teacher, store, views=8) == ["generation 2: 4 to 8 views"]
    everything = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "timings" not in p.parts}
        for folder in (store, whole)
    ]
    assert everything[0] == everything[1]


def test_growth_of_which_nothing_is_done_is_given_up_for_another(picture_shards, teacher, store):
    next(plan_growth(str(picture_shards.location), teacher, **arguments(store, views=8, targets="tokens")))
    assert read_generations(Location.of(store)).begun is not None
    assert grow(picture_shards, teacher, store, views=None, targets="tokens") == ["generation 2: tokens"]
    assert store_facts(Location.of(store)).spec.num_views == 4
