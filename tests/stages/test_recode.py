"""`teachonce recode` into a store: compared with stores that are written at once, and with plain reads of the arrays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.stored import Stored
from teachonce.stages.pairs.join import check_pixels, open_pair
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recode import plan_recode
from teachonce.stages.recoding.chunk_copy import same_chunks
from teachonce.stages.settings.recode import RecodeSettings
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.encodings import ENCODINGS
from teachonce.storage_schemas.errors import InputError, TeachonceError, UnitsFailed
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import InvalidRow, Receipt
from teachonce.storage_schemas.samples import shard_name
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import BlockWriter, create_arrays, open_root
from teachonce.storage_schemas.view_params import COLOR_CHOICES, COLOR_FACTORS, NO_COLOR, NO_VIEW, VIEW

CHUNKED = ("keys", "valid", "view_params", "logits", "logits_max", "embedding")


def recode(store, out, **settings) -> Stored:
    stage = plan_recode(str(store), out=str(out), settings=RecodeSettings(**settings))
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return Stored.open(str(out))


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """Every file of some arrays, by its name in the store; of the whole store where none is named."""
    found = [f for name in names or ("",) for f in (folder / name).rglob("*")]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in found if f.is_file()}


def values(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_group(str(out), mode="r")[name][:])


def other_classes(out: Path, names: str = "xyz", *, weights: str = "0123", width: int = 6) -> ClassVectors:
    """A store that has nothing but class vectors."""
    vectors_CD = np.random.default_rng(2).normal(size=(len(names), width)).astype(np.float32)
    vectors = ClassVectors(names=tuple(names), vectors_CD=vectors_CD, bias_C=None, logit_scale=9.0, normalized=True)
    origin = {"teacher": {"model": "T", "weights_digest": weights}, "templates": []}
    write_class_vectors(open_root(str(out), mode="a"), vectors, origin)
    return vectors


def test_another_encoding_has_the_bytes_that_cache_writes(taught_store, make_store, tmp_path):
    """fp32 to fp16 equals a store whose fp32 values were written in fp16 at once, file by file."""
    at_once = make_store(
        taught_store.shards,
        tmp_path / "at-once.zarr",
        widths={"logits": 7, "embedding": 6},
        also_invalid=(5,),
        targets=taught_store.targets,
        encoding="fp16",
    )
    recode(taught_store.location, tmp_path / "out.zarr", encoding="fp16")
    expected = files(at_once.location.path, *CHUNKED)
    assert len(expected) > 4 * len(CHUNKED)
    assert files(tmp_path / "out.zarr", *CHUNKED) == expected
    here, there = Ledger(Location.of(tmp_path / "out.zarr"), "cache"), Ledger(at_once.location, "cache")
    assert [r.digest for r in here.receipts()] == [r.digest for r in there.receipts()]


def test_a_copy_and_the_way_back(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "copy.zarr")
    assert files(tmp_path / "copy.zarr", *CHUNKED) == files(taught_store.location.path, *CHUNKED)
    recode(tmp_path / "copy.zarr", tmp_path / "half.zarr", encoding="fp16")
    recode(tmp_path / "half.zarr", tmp_path / "back.zarr", encoding="fp32")
    back, halved = Stored.open(str(tmp_path / "back.zarr")), Stored.open(str(tmp_path / "half.zarr"))
    for shard in range(4):
        np.testing.assert_array_equal(back.logits(shard, 1), halved.logits(shard, 1))


def test_a_copy_takes_no_file_that_is_not_its_receipt_s(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "whole.zarr")
    chunk = tmp_path / "whole.zarr" / "embedding" / "c" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(
        UnitsFailed, match=r"1 of 4 units .* not the one that the receipt of shard 1 vouches for.* sha256 "
    ):
        recode(tmp_path / "whole.zarr", tmp_path / "copy.zarr")
    chunk.unlink()
    with pytest.raises(UnitsFailed, match=r"not the one that the receipt of shard 1 vouches for.* no such chunk"):
        recode(tmp_path / "whole.zarr", tmp_path / "copy.zarr")


def test_what_is_encoded_already_is_not_encoded_again(taught_store, tmp_path):
    """fp16 keeps logits relative to their maximum: through fp32 and back, low bits would change."""
    recode(taught_store.location, tmp_path / "half.zarr", encoding="fp16")
    recode(tmp_path / "half.zarr", tmp_path / "copy.zarr")
    half, copy = tmp_path / "half.zarr", tmp_path / "copy.zarr"
    assert files(copy, *CHUNKED) == files(half, *CHUNKED)
    digests = [[r.digest for r in Ledger(Location.of(out), "cache").receipts()] for out in (half, copy)]
    assert digests[0] == digests[1]
    recode(half, tmp_path / "some.zarr", views="2,0", only_shards=(1, 2))
    for name in ("logits", "logits_max", "embedding"):
        some, whole = values(tmp_path / "some.zarr", name), values(half, name)
        np.testing.assert_array_equal(some[13:39], whole[13:39][:, [2, 0]])
        assert np.isnan(some[:13]).all()


def uncolored(num_views: int) -> np.ndarray:
    """VIEW (view,) without colours, of empty boxes."""
    found = np.zeros(num_views, VIEW)
    for name, value in zip((*COLOR_CHOICES, *COLOR_FACTORS), NO_COLOR, strict=True):
        found[name] = value
    return found


def write_store(out: Path, target: TargetSpec, known: np.ndarray, *, encoding: str = "fp32") -> None:
    """A finished store of one target in shards of 13 rows; the rows of `known` that are NaN have no image."""
    num_rows, num_views = known.shape[:2]
    spec = StoreSpec(
        num_samples=num_rows, shard_size=13, num_views=num_views, targets=(target,), encoding=ENCODINGS[encoding]
    )
    fingerprint = Fingerprint(fields={"corpus_id": "c", "teacher": {"model": "T", "weights": "0"}})
    views = ViewSpec(kind="random_resized_crop", count=num_views).to_json()
    root, location = open_root(str(out), mode="a"), Location.of(out)
    create_arrays(
        root, StoreDescription(spec=spec, fingerprint=fingerprint.fields, views=views, teacher={}, shards="/no")
    )
    ledger = Ledger(location, "cache")
    ledger.begin(Plan(stage="cache", fingerprint=fingerprint, units=spec.num_shards, rows=num_rows), hint="")
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        valid: Any = np.isfinite(known[rows]).reshape(rows.stop - rows.start, -1).all(axis=1)
        params = np.full((len(valid), num_views), NO_VIEW)
        params[valid] = uncolored(num_views)
        keys = [f"{row:032x}" for row in range(rows.start, rows.stop)]
        writer = BlockWriter(root, spec, shard, keys)
        for offset in np.flatnonzero(valid).tolist():
            writer.put(offset, params[offset], {target.name: known[rows][offset]})
        paths, digest = writer.finish()
        bad = tuple(InvalidRow(row=rows.start + i, path="", reason="no") for i in np.flatnonzero(~valid).tolist())
        receipt = Receipt(
            key=shard_name(shard),
            outputs=record_outputs(location, paths),
            rows=len(valid),
            invalid_rows=bad,
            digest=digest,
            fingerprint=fingerprint.digest,
        )
        ledger.commit(receipt, {})


@pytest.mark.parametrize("chunk", [(1, 1, 4, 3), (13, 1, 2, 3)])
@pytest.mark.parametrize("encoding", ["fp32", "fp16"])
def test_large_targets_are_copied_chunk_by_chunk(tmp_path, chunk, encoding):
    """Tokens whose chunks hold one row, or all rows of a shard: as plain Zarr reads them."""
    target = TargetSpec(name="tokens", axes=("sample", "view", "token", "channel"), shape=(4, 3), chunk=chunk)
    known = np.random.default_rng(0).normal(size=(30, 2, 4, 3)).astype(np.float32)
    known[4] = np.nan
    write_store(tmp_path / "s.zarr", target, known)
    recode(tmp_path / "s.zarr", tmp_path / "out.zarr", encoding=encoding, views="1,0")
    expected = known[:, [1, 0]].astype(np.float16 if encoding == "fp16" else np.float32)
    np.testing.assert_array_equal(values(tmp_path / "out.zarr", "tokens"), expected)
    recode(tmp_path / "s.zarr", tmp_path / "same.zarr")
    assert files(tmp_path / "same.zarr", "tokens") == files(tmp_path / "s.zarr", "tokens")


@pytest.mark.parametrize(
    ("views", "places", "chunks"), [("2", [0, 1], {0: 0}), ("2,3", [2, 3], {1: 0}), ("1,2", [1, 2], None)]
)
@pytest.mark.parametrize(("encoding", "width"), [("fp32", 40_000), ("fp16", 80_000)])
def test_chunks_of_kept_views_keep_their_bytes(tmp_path, views, places, chunks, encoding, width):
    """Logits with two views a chunk: the new store has the files of the old one, and the receipts of one that is written at once."""
    known = np.random.default_rng(0).normal(size=(15, 4, width)).astype(np.float32)
    known[4] = np.nan
    old, new, at_once = (tmp_path / f"{name}.zarr" for name in ("old", "new", "at-once"))

    def target(num_views: int) -> TargetSpec:
        sizes: dict[str, Any] = {"shard_size": 13, "num_rows": 15, "num_views": num_views}
        return TargetSpec.of("logits", ("class",), (width,), encoding=ENCODINGS[encoding], **sizes)

    write_store(old, target(4), known, encoding=encoding)
    recode(old, new, views=views)
    write_store(at_once, target(2), known[:, places], encoding=encoding)
    arrays = ("logits", "logits_max") if encoding == "fp16" else ("logits",)
    for name in arrays:
        np.testing.assert_array_equal(values(new, name), values(old, name)[:, places])
    assert files(new, *arrays) == files(at_once, *arrays)

    def facts(out: Path) -> list[Any]:
        return [(r.outputs, r.invalid_rows) for r in Ledger(Location.of(out), "cache").receipts()]

    assert facts(new) == facts(at_once)
    if encoding == "fp32":  # digests are of the values: fp16 has lost some of these
        digests = [[r.digest for r in Ledger(Location.of(out), "cache").receipts()] for out in (new, at_once)]
        assert digests[0] == digests[1]
    assert same_chunks(places, 4, 2) == chunks


def test_a_file_that_is_copied_must_be_its_receipt_s(tmp_path):
    known = np.random.default_rng(0).normal(size=(15, 4, 40_000)).astype(np.float32)
    sizes: dict[str, Any] = {"shard_size": 13, "num_rows": 15, "num_views": 4}
    target = TargetSpec.of("logits", ("class",), (40_000,), encoding=ENCODINGS["fp32"], **sizes)
    write_store(tmp_path / "s.zarr", target, known)
    chunk = tmp_path / "s.zarr" / "logits" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(UnitsFailed, match=r"not the one that the receipt of shard 1 vouches for.* sha256 "):
        recode(tmp_path / "s.zarr", tmp_path / "out.zarr", views="2")
    recode(tmp_path / "s.zarr", tmp_path / "others.zarr", views="2,3")  # other chunks


def test_chunks_of_other_views_are_not_the_same():
    assert same_chunks((0, 1, 2), 3, 2) == {0: 0, 1: 1}
    assert same_chunks((2, 3, 0, 1), 4, 2) == {1: 0, 0: 1}
    assert same_chunks((2,), 3, 2) == {1: 0}
    for views in ((0,), (1, 0), (0, 2), (0, 1, 2)):
        assert same_chunks(views, 4, 2) is None


def test_it_says_what_it_was_made_of(taught_store, tmp_path):
    stored = recode(taught_store.location, tmp_path / "out.zarr", encoding="fp16", views="0,2", targets="logits")
    parent = Ledger(taught_store.location, "cache").plan().fingerprint
    made_of = {"store": parent.digest, "views": [0, 2]}
    assert stored.description.recoded == {"from": str(taught_store.location), **made_of, "lost": {"logits": {}}}
    expected = {
        **parent.fields,
        "encoding": "fp16",
        "targets": ["logits"],
        "schema_version": 1,
        "views": {**taught_store.views.to_json(), "count": 2, "chosen": [0, 2]},
        "recoded": made_of,
    }
    assert dict(stored.description.fingerprint) == expected
    assert stored.vectors.digest == Stored.open(taught_store.location).vectors.digest
    plan = json.loads((tmp_path / "out.zarr/ledger/cache/plan.json").read_bytes())
    assert (plan["stage"], plan["command"]) == ("cache", "recode")


@pytest.mark.parametrize(
    ("views", "places"), [("2", [0, 1]), ("0,2", [0, 2]), ("2,", [2]), ("2,0", [2, 0]), (None, [0, 1, 2])]
)
def test_some_views(taught_store, tmp_path, views, places):
    out = tmp_path / "out.zarr"
    stored = recode(taught_store.location, out, views=views)
    valid = taught_store.valid
    for name, known in taught_store.targets.items():
        np.testing.assert_array_equal(values(out, name), known[:, places])
    whole = values(taught_store.location.path, "view_params")
    np.testing.assert_array_equal(values(out, "view_params"), whole[:, places])
    assert whole[valid].min() >= 0
    # The machine still renders what the seed gives, and the views of a sample are drawn as they lie there.
    facts = open_pair(taught_store.shards, stored.location)[1]
    check_pixels(taught_store.shards, facts)
    drawn = facts.views.params("0" * 32, 50, 40)
    np.testing.assert_array_equal(drawn, taught_store.views.params("0" * 32, 50, 40)[places])


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ("4", "the store does not have these views: {store}: expected 1 to 3 views, found --views 4"),
        ("0,3", "the store does not have these views: {store}: expected numbers from 0 to 2, found --views 0,3"),
        ("0", "the store does not have these views: {store}: expected 1 to 3 views, found --views 0"),
        ("1,1", "a view is named twice: --views: found 1,1. Next: name each once"),
        (
            "first",
            "not a choice of views: --views: expected a number of views, or numbers of views with commas, found first. "
            "Next: 2 is for the first two, 0,2 for these two, `2,` for one alone",
        ),
    ],
)
def test_views_that_are_not_there(taught_store, tmp_path, views, message):
    with pytest.raises(InputError) as error:
        recode(taught_store.location, tmp_path / "out.zarr", views=views)
    assert str(error.value).startswith(message.format(store=taught_store.location))
    assert not (tmp_path / "out.zarr").exists()


def test_logits_of_another_class_list(taught_store, tmp_path):
    vectors = other_classes(tmp_path / "classes.zarr")
    out = tmp_path / "out.zarr"
    stored = recode(taught_store.location, out, classes_from=str(tmp_path / "classes.zarr"), targets="logits")
    embedding_NVD = taught_store.targets["embedding"].astype(np.float64)
    np.testing.assert_allclose(values(out, "logits"), 9.0 * embedding_NVD @ vectors.vectors_CD.T, rtol=1e-5, atol=1e-5)
    assert stored.vectors.names == ("x", "y", "z")
    assert stored.description.decided_by.class_vectors == vectors.digest
    assert stored.description.recoded["classes"] == vectors.digest
    assert "embedding" not in zarr.open_group(str(out), mode="r")


def test_logits_of_its_own_classes_where_it_has_embeddings_alone(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "embedding.zarr", targets="embedding")
    stored = recode(tmp_path / "embedding.zarr", tmp_path / "logits.zarr", targets="logits")
    np.testing.assert_allclose(
        values(tmp_path / "logits.zarr", "logits"), taught_store.targets["logits"], rtol=1e-5, atol=1e-5
    )
    assert stored.description.decided_by.class_vectors == stored.vectors.digest
    assert "class_vectors" not in Stored.open(str(tmp_path / "embedding.zarr")).description.fingerprint


def test_embeddings_with_other_classes_form_other_logits_on_reading(taught_store, tmp_path):
    vectors = other_classes(tmp_path / "classes.zarr")
    stored = recode(
        taught_store.location,
        tmp_path / "out.zarr",
        classes_from=str(tmp_path / "classes.zarr"),
        targets="embedding",
    )
    expected = vectors.logits(taught_store.targets["embedding"][:13, 2])
    np.testing.assert_allclose(stored.logits(0, 2), expected, rtol=1e-6)


def classes_refused(store, tmp_path, **settings) -> str:
    with pytest.raises(TeachonceError) as error:
        recode(store, tmp_path / "out.zarr", classes_from=str(tmp_path / "classes.zarr"), **settings)
    assert not (tmp_path / "out.zarr").exists()
    return str(error.value).replace(str(tmp_path), "T")


def test_classes_of_another_teacher(taught_store, tmp_path):
    other_classes(tmp_path / "classes.zarr", weights="4567")
    assert classes_refused(taught_store.location, tmp_path) == (
        "these class vectors are another teacher's: T/classes.zarr: field 'teacher.weights': expected 0123 (the embeddings of "
        f"{taught_store.location}), found T 4567 (the class vectors). "
        "Next: run `teachonce vectors` with the teacher of the store, into a store of its own"
    )


def test_classes_of_another_width(taught_store, tmp_path):
    other_classes(tmp_path / "classes.zarr", width=5)
    assert classes_refused(taught_store.location, tmp_path) == (
        f"class vectors and embeddings have other widths: T/classes.zarr: expected 6 channels (the embeddings of "
        f"{taught_store.location}), found 5 channels. Next: give class vectors of the store's teacher"
    )


def test_other_classes_need_embeddings(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "logits.zarr", targets="logits")
    other_classes(tmp_path / "classes.zarr")
    assert classes_refused(tmp_path / "logits.zarr", tmp_path) == (
        "logits cannot be formed without embeddings: T/logits.zarr: expected embeddings (for --classes-from), found logits. "
        "Next: teachonce cache SHARDS --targets embedding --teacher … --out ANOTHER_STORE"
    )


def test_a_store_without_class_vectors_is_no_class_list(taught_store, known_store, tmp_path):
    with pytest.raises(TeachonceError, match="the store has no class vectors"):
        recode(taught_store.location, tmp_path / "out.zarr", classes_from=str(known_store.location))


def entries(store) -> list:
    return list(store.shards.manifest())


def left(out: Path) -> list[int]:
    return np.flatnonzero(values(out, "valid")).tolist()


def test_samples_by_keys_and_paths(taught_store, tmp_path):
    listed = entries(taught_store)
    (tmp_path / "list.txt").write_text(f"{listed[3].path}\n\n {listed[20].key} \n{listed[5].key}\n{listed[47].path}\n")
    out = tmp_path / "out.zarr"
    stored = recode(taught_store.location, out, samples=str(tmp_path / "list.txt"))
    assert left(out) == [3, 20, 47]
    np.testing.assert_array_equal(values(out, "keys"), values(taught_store.location.path, "keys"))
    np.testing.assert_array_equal(values(out, "logits")[[3, 20, 47]], taught_store.targets["logits"][[3, 20, 47]])
    assert np.isnan(values(out, "logits")[4]).all()
    before = {r.row: r for receipt in Ledger(taught_store.location, "cache").receipts() for r in receipt.invalid_rows}
    bad = {r.row: r.reason for receipt in stored.receipts.receipts(4) for r in receipt.invalid_rows}
    assert {row: reason for row, reason in bad.items() if row in before} == {r: b.reason for r, b in before.items()}
    assert {bad[row] for row in range(48) if row not in before and row not in (3, 20, 47)} == {"left out"}
    assert stored.description.recoded["samples"]["count"] == 4  # row 5 is named, and not usable


def test_samples_by_label_of_some_shards(taught_store, tmp_path):
    out = tmp_path / "out.zarr"
    recode(taught_store.location, out, label=("red fox", "house-cat"), only_shards=(1, 3))
    wanted = [
        row
        for row, entry in enumerate(entries(taught_store))
        if entry.label in ("red fox", "house-cat") and row // 13 in (1, 3) and taught_store.valid[row]
    ]
    assert 5 < len(wanted) < 20
    assert left(out) == wanted


def test_samples_by_confidence(taught_store, tmp_path):
    logits = taught_store.targets["logits"][:, [0, 2]].astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (weights / weights.sum(-1, keepdims=True)).mean(1).max(-1)
    wanted = np.flatnonzero((confidence >= 0.5) & (confidence <= 0.9))
    assert 3 < len(wanted) < 40
    recode(taught_store.location, tmp_path / "a.zarr", confidence=(0.5, 0.9), views="0,2")
    assert left(tmp_path / "a.zarr") == wanted.tolist()
    # Where there are no logits, those of the embeddings count, kept or not.
    recode(taught_store.location, tmp_path / "e.zarr", targets="embedding")
    recode(tmp_path / "e.zarr", tmp_path / "b.zarr", confidence=(0.5, 0.9), views="0,2")
    assert left(tmp_path / "b.zarr") == wanted.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"label": ("red fx",)},
            "no image has this label: {store}: expected a class of the corpus, found red fx. Next: did you mean red fox?",
        ),
        (
            {"only_shards": (0, 4)},
            "the store does not have this shard: {store}: expected numbers from 0 to 3, found --only-shards 4. Next: see `teachonce inspect`",
        ),
        (
            {"confidence": (0.01, 0.02)},
            "no sample is left: {store}: expected at least one usable sample that fits all of what was given, found none with a probability from 0.01 to 0.02. Next: choose more with --samples, --label, --confidence and --only-shards",
        ),
        ({"confidence": (0.9, 0.5)}, "impossible range: --confidence: expected the least first, found 0.9,0.5"),
        ({"samples": "{list}"}, "1 sample of 2 are not in the store: {list}, the first is nowhere.jpg"),
    ],
)
def test_samples_that_are_not_there(taught_store, tmp_path, settings, message):
    (tmp_path / "list.txt").write_text(f"{entries(taught_store)[0].key}\nnowhere.jpg\n")
    names = {"store": taught_store.location, "list": tmp_path / "list.txt"}
    settings = {k: v.format(**names) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(InputError) as error:
        recode(taught_store.location, tmp_path / "out.zarr", **settings)
    assert str(error.value).startswith(message.format(**names))
    assert not (tmp_path / "out.zarr").exists()


def test_a_choice_of_unusable_samples_alone_is_empty(taught_store, tmp_path):
    (tmp_path / "list.txt").write_text(entries(taught_store)[5].key)
    with pytest.raises(InputError, match="no sample is left"):
        recode(taught_store.location, tmp_path / "out.zarr", samples=str(tmp_path / "list.txt"))


def test_labels_need_the_shards(taught_store, tmp_path):
    moved = tmp_path / "moved.zarr"
    shutil.copytree(taught_store.location.path, moved)
    root = zarr.open_group(str(moved), mode="a")
    description = replace(Stored.open(str(moved)).description, shards=str(tmp_path / "gone"))
    description.write(root)
    with pytest.raises(InputError, match=r"^labels are in the shards: .*expected the folder of the store's shards"):
        recode(moved, tmp_path / "out.zarr", label=("red fox",))
    recode(moved, tmp_path / "out.zarr", label=("red fox",), shards=str(taught_store.shards.location))
    fits = [e.label == "red fox" for e in entries(taught_store)]
    assert left(tmp_path / "out.zarr") == np.flatnonzero(fits & taught_store.valid).tolist()


def test_a_student_is_trained_from_it_and_it_can_be_inspected(taught_store, tmp_path):
    listed = entries(taught_store)
    chosen = [row for row in range(48) if taught_store.valid[row]][::2]
    (tmp_path / "list.txt").write_text("\n".join(listed[row].key for row in chosen))
    stored = recode(
        taught_store.location, tmp_path / "out.zarr", samples=str(tmp_path / "list.txt"), encoding="fp16", views="2,0"
    )
    stream = TargetStream(taught_store.shards, tmp_path / "out.zarr", image_size=8, batch_size=4, drop_last=False)
    for view in (2, 0):
        seen = {
            int(row): logits
            for batch in stream
            for row, logits in zip(batch.rows_N, batch.targets["logits"], strict=True)
        }
        assert sorted(seen) == chosen
        for row, logits in seen.items():
            np.testing.assert_allclose(logits, taught_store.targets["logits"][row, view], atol=0.03)
    facts = inspect_store(stored)
    assert facts["problems"] == []
    assert facts["coverage"]["valid"] == len(chosen)


def test_killed_anywhere_it_ends_with_the_same_bytes(taught_store, tmp_path, monkeypatch):
    settings = RecodeSettings(encoding="fp16", views="2", targets="logits")
    recode(taught_store.location, tmp_path / "whole.zarr", encoding="fp16", views="2", targets="logits")
    out = tmp_path / "out.zarr"
    stage = plan_recode(str(taught_store.location), out=str(out), settings=settings)
    commit, done = Ledger.commit, []

    def dies(self, receipt, seconds):
        done.append(receipt.key)
        if len(done) % 2:
            raise KeyboardInterrupt
        commit(self, receipt, seconds)

    monkeypatch.setattr(Ledger, "commit", dies)
    for _ in range(5):
        try:
            stage = plan_recode(str(taught_store.location), out=str(out), settings=settings)
            run_stage(stage, stage.out, SerialExecutor(), progress=False)
        except KeyboardInterrupt:
            continue
    monkeypatch.undo()
    stage = plan_recode(str(taught_store.location), out=str(out), settings=settings)
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    ours = {n: b for n, b in files(out).items() if "timings" not in n and "driver" not in n}
    assert ours == {n: b for n, b in files(tmp_path / "whole.zarr").items() if "timings" not in n and "driver" not in n}


def test_a_store_that_a_killed_run_has_just_begun(taught_store, tmp_path):
    zarr.open_group(str(tmp_path / "out.zarr"), mode="w", zarr_format=3)
    (tmp_path / "out.zarr" / "ledger" / "cache").mkdir(parents=True)  # by which the run knows it as its own
    recode(taught_store.location, tmp_path / "out.zarr")


def test_class_vectors_that_a_killed_run_has_copied_in_part_are_copied_again(taught_store, tmp_path):
    missing = "class_vectors/c/0/0"
    recode(taught_store.location, tmp_path / "whole.zarr")
    open_root(str(tmp_path / "out.zarr"), mode="a")
    for name in ("class_vectors", "class_names"):
        shutil.copytree(tmp_path / "whole.zarr" / name, tmp_path / "out.zarr" / name)
    (tmp_path / "out.zarr" / missing).unlink()
    recode(taught_store.location, tmp_path / "out.zarr")
    for name in ("class_vectors", "class_names"):
        assert files(tmp_path / "out.zarr", name) == files(tmp_path / "whole.zarr", name)
    (tmp_path / "out.zarr" / missing).unlink()
    with pytest.raises(TeachonceError, match="class vectors"):
        recode(taught_store.location, tmp_path / "out.zarr")


def test_other_options_are_refused_where_it_began(taught_store, tmp_path):
    recode(taught_store.location, tmp_path / "out.zarr", encoding="fp16")
    with pytest.raises(TeachonceError) as error:
        recode(taught_store.location, tmp_path / "out.zarr", encoding="fp16", views="2")
    assert str(error.value).startswith(f"{tmp_path}/out.zarr holds the output of another recode: ")


def test_it_never_writes_into_a_store_of_a_teacher(taught_store, make_store, tmp_path):
    store = make_store(taught_store.shards, tmp_path / "s.zarr", num_views=1)
    before = files(store.location.path)
    with pytest.raises(TeachonceError, match="holds the output of another cache"):
        recode(taught_store.location, tmp_path / "s.zarr")
    assert {n: b for n, b in files(store.location.path).items() if "driver" not in n} == before
    with pytest.raises(InputError, match="the output folder is or holds an input"):
        recode(store.location, tmp_path / "s.zarr")


def test_it_keeps_class_vectors_that_others_wrote(taught_store, tmp_path):
    other_classes(tmp_path / "out.zarr")
    with pytest.raises(InputError, match="the output has class vectors of its own"):
        recode(taught_store.location, tmp_path / "out.zarr")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ("nothing", "no target store here"),
        ("unfinished", "cache has not finished"),
        ("later", "a target store of a later version of teachonce"),
        ("foreign", "not a target store"),
        ("vectors", "the store holds no targets yet"),
    ],
)
def test_what_is_no_finished_store(taught_store, make_store, tmp_path, make, message):
    store = tmp_path / "s.zarr"
    if make == "unfinished":
        make_store(taught_store.shards, store, num_shards=2)
    if make == "later":
        shutil.copytree(taught_store.location.path, store)
        zarr.open_group(str(store), mode="a").attrs["teachonce"] = {"kind": "target store", "schema_version": 99}
    if make == "foreign":
        zarr.open_group(str(store), mode="w")
    if make == "vectors":
        other_classes(store)
    with pytest.raises(TeachonceError) as error:
        recode(store, tmp_path / "out.zarr")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "out.zarr").exists()


def test_the_command(taught_store, tmp_path):
    arguments = ["recode", str(taught_store.location), "--encoding", "fp16", "--views", "2", "--executor", "serial"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out.zarr"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["units"] == 4
    again = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "out.zarr")])
    assert "recode: 4 of 4 units done, 4 of them before; 0 images now." in again.stderr
