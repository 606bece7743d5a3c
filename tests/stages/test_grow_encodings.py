"""Growth of stores whose targets have encodings of their own: the tables of the first generation stay, nothing is fitted anew."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.cache import plan_cache
from teachonce.stages.corpora.shards import ShardSet
from teachonce.stages.grow import plan_growth
from teachonce.stages.grow_vectors import plan_more_classes
from teachonce.stages.models.compute import Compute
from teachonce.stages.pairs.store import open_store, read_description, read_generations, read_vectors
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.settings.vectors import VectorsSettings
from teachonce.stages.shard import plan_shard
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.vectors import plan_vectors
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.encodings.sampled import Sampled
from teachonce.storage_schemas.errors import MismatchError
from teachonce.storage_schemas.target_store import read_block, read_keys

FP32 = Compute(device="cpu", precision="fp32", threads=1)
CLASSES = ("red fox", "Blue_Jay", "house-cat", "zebra", "ant")

#: Of both targets; the first two are fitted.
ENCODINGS: dict[str, dict[str, Any]] = {
    "components": {"encoding": "embedding=pca:0.02,logits=pca:0.05"},
    "codebook": {"encoding": "embedding=pq:4,logits=adaptive:0.9:15"},
    "draws": {"encoding": "embedding=int8,logits=sampled:9"},
    "within nats": {"encoding": "embedding=int8", "max_kl": 0.05},
    "within bytes": {"encoding": "embedding=fp32", "max_bytes": 128},
}


@pytest.fixture(scope="module")
def teacher(tiny_clip_teacher) -> TeacherConfig:
    return TeacherConfig(model=f"local-dir:{tiny_clip_teacher}")


def finish(stage: Any, executor: Any = None) -> Location:
    run_stage(stage, stage.store, executor or SerialExecutor(), progress=False)
    return stage.store


def vectors(teacher, out: Path, names=CLASSES) -> None:
    file = out.with_suffix(".txt")
    file.write_text("\n".join(names) + "\n")
    finish(plan_vectors(teacher, out=str(out), settings=VectorsSettings(classes=str(file)), compute=FP32))


def arguments(out: Path, views: int | None, **settings: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"batch_size": 8, "targets": "both", "fit_views": 40} | settings
    return {
        "out": str(out),
        "views": None if views is None else ViewSpec(kind="random_resized_crop", count=views, seed=3),
        "settings": CacheSettings(**chosen),
        "compute": FP32,
    }


def cache(shards, teacher, out: Path, views: int = 2, **settings: Any) -> Location:
    if not out.exists():
        vectors(teacher, out)
    return finish(plan_cache(shards.location, teacher, **arguments(out, views, **settings)))


def grow(shards, teacher, out: Path, views: int | None = None, executor: Any = None, **settings: Any) -> list[str]:
    notes: list[str] = []
    for step in plan_growth(shards.location, teacher, **arguments(out, views, **settings)):
        finish(step.stage, executor)
        notes += step.notes
    return notes


def at_once(shards, teacher, like: Path, out: Path, views: int, **settings: Any) -> Location:
    """A store that is made at once, with the tables of another one."""
    vectors(teacher, out)
    stage = plan_cache(shards.location, teacher, **arguments(out, views, chunk_views=2, **settings), dry_run=True)
    known = {target.name: target for target in description(like).spec.targets}
    targets = tuple(replace(target, encoding=known[target.name].encoding) for target in stage.spec.targets)
    stage = replace(stage, spec=replace(stage.spec, targets=targets))
    stage.create()
    return finish(stage)


def description(store: Path | Location, generation: str | None = None) -> Any:
    location = Location.of(str(store))
    return read_description(open_store(location, generation), location)


def files(folder: Any) -> dict[str, bytes]:
    """Every file of every array; not the ledgers, nor what the root says of how it was made."""
    root = Path(str(folder))
    found = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("ledger/") and name != "zarr.json"}


@pytest.fixture(scope="module")
def corpora(pictures, tmp_path_factory) -> tuple[ShardSet, ShardSet]:
    """Shards of 30 pictures, and the same after 18 more were added."""
    top = tmp_path_factory.mktemp("corpora")

    def shard(out: Path, *, append: bool) -> ShardSet:
        settings = ShardSettings(append=append, shard_size=13, name="pictures", order="source")
        stage = plan_shard([str(top / "some")], out=str(out), settings=settings)
        run_stage(stage, stage.out, SerialExecutor(), progress=False)
        return ShardSet.open(str(out))

    for path in sorted(pictures.rglob("*.*"))[:30]:
        (top / "some" / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, top / "some" / path.relative_to(pictures))
    before = shard(top / "before", append=False)
    shutil.copytree(top / "before", top / "after")
    shutil.copytree(pictures, top / "some", dirs_exist_ok=True)
    return before, shard(top / "after", append=True)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_images_and_views_go_on_with_the_first_tables(corpora, teacher, tmp_path, seen, encoding):
    before, after = corpora
    out, asked = tmp_path / "s.zarr", ENCODINGS[encoding]
    cache(before, teacher, out, **asked)
    first = files(out)
    del seen[:]
    assert grow(after, teacher, out, 4, **asked) == ["generation 2: 30 to 48 images", "generation 3: 2 to 4 views"]
    assert sum(seen) == 17 * 2 + 46 * 2  # nothing is fitted or chosen again
    encodings = [[t.encoding.to_json() for t in description(out, name).spec.targets] for name in ("1", "2", "3")]
    assert encodings[0] == encodings[1] == encodings[2]
    once = at_once(after, teacher, out, tmp_path / "once.zarr", 4, **asked)
    assert files(out) == files(once)
    assert {name: data for name, data in files(out).items() if name in first and not name.endswith("zarr.json")} == {
        name: data for name, data in first.items() if not name.endswith("zarr.json")
    }


def test_without_an_encoding_the_store_keeps_its_own(corpora, teacher, tmp_path):
    before, _ = corpora
    cache(before, teacher, tmp_path / "s.zarr", encoding="fp32")
    assert grow(before, teacher, tmp_path / "s.zarr", 4) == ["generation 2: 2 to 4 views"]
    assert description(tmp_path / "s.zarr").fingerprint["encoding"] == "fp32"


def test_draws_of_a_view_are_those_of_its_number_and_key(corpora, teacher, tmp_path):
    before, _ = corpora
    exact = cache(before, teacher, tmp_path / "exact.zarr", 4, targets="logits", encoding="fp32", chunk_views=2)
    out = tmp_path / "s.zarr"
    cache(before, teacher, out, targets="logits", encoding="sampled:9:5")
    grow(before, teacher, out, 4, targets="logits")
    store = Location.of(str(out))
    root: Any = open_store(store)
    spec = description(store).spec
    whole = open_store(exact)
    known = read_block(whole, description(exact).spec, 1)
    keys, target = read_keys(root, spec, 1), spec.target("logits")
    for view in range(4):
        drawn = Sampled(draws=9, seed=5).encode(
            target, known.targets["logits"][:, view : view + 1], keys=keys, first_view=view
        )
        np.testing.assert_array_equal(root["logits"][13:26, view], drawn["logits"][:, 0])
    assert (root["logits"][13:26, 0] != root["logits"][13:26, 2]).any()


@pytest.mark.parametrize("encoding", ["tokens=int8", "tokens=fp32"])
def test_a_target_is_added_in_the_encoding_that_is_asked_for(corpora, teacher, tmp_path, encoding):
    before, _ = corpora
    out, once = tmp_path / "s.zarr", tmp_path / "once.zarr"
    cache(before, teacher, out, targets="embedding")
    asked = {"targets": "embedding,tokens", "encoding": encoding}
    note = f"generation 2: tokens in {encoding.partition('=')[2]}"
    assert grow(before, teacher, out, **asked) == [note]
    cache(before, teacher, once, **asked)
    assert files(out) == files(once)
    assert description(out).fingerprint["encoding"] == description(once).fingerprint["encoding"]
    assert description(out).measured == {"tokens": description(once).measured["tokens"]}
    assert description(out, "1").fingerprint["encoding"] == "fp16"
    assert grow(before, teacher, out, **asked) == ["generation 2 is there: 2 views"]
    assert grow(before, teacher, out, 4, targets="embedding") == ["generation 3: 2 to 4 views"]
    assert description(out).spec.target("tokens").encoding == description(out, "2").spec.target("tokens").encoding


class Dying(SerialExecutor):
    """Ends after one unit, as a killed process does: nothing is tidied up."""

    def map(self, stage, ledger, units, board):
        yield from itertools.islice(super().map(stage, ledger, units, board), 1)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("asked", "name"),
    [({"encoding": "logits=pca:0.05"}, "pca"), ({"encoding": "logits=sampled:9"}, "sampled"), ({"max_kl": 1e-6}, "")],
)
def test_logits_of_embeddings_are_encoded_as_asked_without_the_teacher(corpora, teacher, tmp_path, seen, asked, name):
    before, _ = corpora
    out, whole = tmp_path / "s.zarr", tmp_path / "whole.zarr"
    cache(before, teacher, out, targets="embedding", encoding="fp32")
    shutil.copytree(out, whole)
    del seen[:]
    with pytest.raises(KeyboardInterrupt):
        grow(before, teacher, out, executor=Dying(), targets="logits", **asked)
    tables = {file: data for file, data in files(out).items() if file.startswith("encoding_")}
    assert bool(tables) == (name == "pca")
    assert read_generations(Location.of(str(out))).finished == ["1"]
    (note, *why) = grow(before, teacher, out, targets="logits", **asked)
    assert note.startswith(f"generation 2: logits in {name}")
    assert note.endswith(", from the embeddings")
    assert why == []  # what the budget chose was said when the growth was begun
    assert ["logits in" in line for line in grow(before, teacher, whole, targets="logits", **asked)[1:]] == [True] * (
        "max_kl" in asked
    )
    assert seen == []
    assert files(out) == files(whole)
    location = Location.of(str(out))
    root: Any = open_store(location)
    spec = description(out).spec
    derived = read_vectors(root, location).logits(read_block(root, spec, 1).targets["embedding"])
    target, keys = spec.target("logits"), read_keys(root, spec, 1)
    for file, values in spec.encoding_of(target).encode(target, derived, keys=keys, first_view=0).items():
        np.testing.assert_allclose(root[file][13:26], values, rtol=1e-5)


def test_a_fitted_target_that_is_given_up_leaves_nothing(corpora, teacher, tmp_path):
    before, _ = corpora
    out = tmp_path / "s.zarr"
    cache(before, teacher, out, targets="logits")
    first = files(out)
    next(plan_growth(before.location, teacher, **arguments(out, None, encoding="embedding=pq:4")))
    assert (out / "encoding_embedding_codebook").is_dir()
    assert "encoding_embedding_codebook" not in dict(open_store(Location.of(str(out))).arrays())
    assert grow(before, teacher, out, 4, targets="logits") == ["generation 2: 2 to 4 views"]
    assert {name.partition("/")[0] for name in files(out)} == {name.partition("/")[0] for name in first}


@pytest.mark.parametrize(
    ("made", "options", "field", "expected", "found"),
    [
        ({}, {"targets": "tokens", "encoding": "int8"}, "encoding", "'int8'", "'fp16' (the store)"),
        ({}, {"views": 4, "encoding": "logits=int8"}, "encoding.logits", "'int8'", "'fp16' (the store)"),
        ({}, {"views": 4, "max_kl": 0.1}, "encoding.asked.max_kl", "0.1", "nothing (the store)"),
        (ENCODINGS["codebook"], {"encoding": "embedding=pq:8"}, "encoding.embedding", "'pq:8'", "'pq:4' (the store)"),
        (ENCODINGS["within nats"], {"max_kl": 0.04}, "encoding.asked.max_kl", "0.04", "0.05 (the store)"),
        (ENCODINGS["codebook"], {"views": 4, "fit_views": 30}, "encoding.asked.views", "30", "40 (the store)"),
    ],
)
def test_another_encoding_of_what_is_there_is_refused(
    corpora, teacher, tmp_path, made, options, field, expected, found
):
    before, _ = corpora
    out = tmp_path / "s.zarr"
    cache(before, teacher, out, **made)
    root = (out / "zarr.json").read_bytes()
    with pytest.raises(MismatchError) as caught:
        grow(before, teacher, out, **options)
    said = f"the store cannot grow to this: {out}: field '{field}': expected {expected} (this command), found {found}. Next: "
    assert str(caught.value).startswith(said)
    assert caught.value.code == "growth-other-settings"
    assert (out / "zarr.json").read_bytes() == root


def more_classes(teacher, out: Path) -> list[str]:
    file = out.with_suffix(".more")
    file.write_text("bee\nwhale\n")
    notes: list[str] = []
    for step in plan_more_classes(teacher, out=str(out), settings=VectorsSettings(classes=str(file)), compute=FP32):
        finish(step.stage)
        notes += step.notes
    return notes


def test_classes_of_logits_that_are_drawn(corpora, teacher, tmp_path):
    before, _ = corpora
    out = tmp_path / "s.zarr"
    cache(before, teacher, out, **ENCODINGS["draws"])
    assert more_classes(teacher, out)[-1] == "generation 2: 5 to 7 classes, logits from the embeddings"
    location = Location.of(str(out))
    root: Any = open_store(location)
    spec = description(out).spec
    assert (spec.target("logits").shape, spec.target("logits").encoding.text) == ((7,), "sampled:9")
    derived = read_vectors(root, location).logits(read_block(root, spec, 0).targets["embedding"])
    target, keys = spec.target("logits"), read_keys(root, spec, 0)
    drawn = spec.encoding_of(target).encode(target, derived, keys=keys, first_view=0)
    np.testing.assert_array_equal(root["logits"][:13], drawn["logits"])


def test_classes_of_logits_whose_encoding_was_fitted_are_refused(corpora, teacher, tmp_path):
    before, _ = corpora
    out = tmp_path / "s.zarr"
    cache(before, teacher, out, **ENCODINGS["components"])
    with pytest.raises(MismatchError) as caught:
        more_classes(teacher, out)
    assert str(caught.value).startswith(
        f"the encoding of the logits was fitted to the classes that are there, and has no room for more: {out}: expected an encoding "
        "that is not fitted, such as int8 or sampled, found pca:0.05. Next: "
    )
