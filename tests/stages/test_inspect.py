"""`teachonce inspect`: every figure against a plain float64 computation; every way to name a sample."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.inspect import inspect_store
from teachonce.stages.measures.soft_labels import Spread
from teachonce.stages.measures.stored import Stored
from teachonce.stages.reports.inspect_sample import find_row, inspect_sample
from teachonce.stages.reports.inspect_text import sample_text, store_text
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import IncompleteError, InputError, MismatchError
from teachonce.storage_schemas.store_description import StoreDescription
from teachonce.storage_schemas.target_store import open_root

NAMES = (
    "red fox",
    "blue jay",
    "house cat",
    "otter",
    "newt",
    "wasp\x1b[31m",
    "an owl whose name goes on for ever and ever",
)
BINS = 1e-4


def class_vectors() -> ClassVectors:
    rng = np.random.default_rng(1)
    vectors_CD = rng.normal(size=(len(NAMES), 4)).astype(np.float32)
    return ClassVectors(names=NAMES, vectors_CD=vectors_CD, bias_C=None, logit_scale=3.0, normalized=True)


def description(shards, targets, **changes):
    """What `cache` records in a store, in its words."""
    preprocess = {
        "size": 32,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }
    views = {
        "kind": "random_resized_crop",
        "count": 3,
        "interpolation": "bicubic",
        "seed": 5,
        "scale": [0.08, 1.0],
    }
    views |= {"ratio": [0.75, 4 / 3], "flip": 0.5}
    fingerprint = {
        "schema_version": 1,
        "corpus_id": shards.corpus.corpus_id,
        "teacher": {"model": "tiny", "weights": "ab" * 16, "preprocess": preprocess},
        "views": views,
        "targets": targets,
        "encoding": "fp32",
        "compute": {"device": "cpu", "precision": "bf16", "threads": 2, "batch_size": 8},
    }
    teacher = {
        "family": "open_clip",
        "model": "tiny",
        "weights_digest": "ab" * 16,
        "embed_dim": 4,
        "normalized": True,
    }
    teacher["preprocess"] = preprocess
    return {
        "fingerprint": fingerprint | changes,
        "teacher": teacher,
        "views": views,
        "shards": str(shards.location.path),
    }


@pytest.fixture(scope="module")
def write(picture_shards, make_store, tmp_path_factory):
    """Writes a store of the pictures: `write(targets, …)` returns its known numbers."""

    def write(names, *, changes=None, **options):
        widths = {n: {"logits": len(NAMES), "embedding": 4}[n] for n in names}
        out = tmp_path_factory.mktemp("inspect") / "store"
        told = description(picture_shards, list(names), **(changes or {}))
        return make_store(picture_shards, out, widths=widths, description=told, **options)

    return write


@pytest.fixture(scope="module")
def known(write):
    """Seven classes, three views, fp32; row 5 is invalid for the teacher alone, two files are broken."""
    return write(["logits"], vectors=class_vectors(), also_invalid=(5,))


@pytest.fixture(scope="module")
def facts(known):
    return inspect_store(Stored.open(known.location))


def reference(known):
    """(probabilities (sample, view, class), entropies (sample, view)) of the valid rows, in float64."""
    logits = known.targets["logits"][known.valid].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probabilities, -(probabilities * np.log(probabilities)).sum(-1)


def test_soft_labels_equal_a_plain_computation(known, facts):
    probabilities, entropies = reference(known)
    soft = facts["soft_labels"]
    for name, values, width in (
        ("confidence", probabilities.max(-1).ravel(), 1.0),
        ("entropy", entropies.ravel(), np.log(len(NAMES))),
    ):
        assert soft[name]["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert (soft[name]["min"], soft[name]["max"]) == pytest.approx((values.min(), values.max()), abs=1e-5)
        # `inverted_cdf`: a quartile is one of the values, and the histogram finds it within one of its parts.
        for share, quartile in ((0.25, "q25"), (0.5, "median"), (0.75, "q75")):
            ordered = np.sort(values)
            place = share * len(ordered)
            low, high = ordered[int(np.floor(place)) - 1], ordered[min(int(np.ceil(place)), len(ordered) - 1)]
            assert low - width * BINS <= soft[name][quartile] <= high + width * BINS
    first = probabilities.argmax(-1)
    assert soft["views_agree"] == pytest.approx((first == first[:, :1]).all(1).mean())
    assert soft["entropy_of_uniform"] == pytest.approx(np.log(len(NAMES)))


def test_classes_and_extreme_samples_go_by_the_mean_over_views(known, facts):
    probabilities, _ = reference(known)
    rows = np.flatnonzero(known.valid)
    mean = probabilities.mean(1)
    counts = np.bincount(mean.argmax(-1), minlength=len(NAMES))
    soft = facts["soft_labels"]
    assert {c["class"]: c["samples"] for c in soft["top_classes"]} == {
        NAMES[i]: counts[i] for i in np.argsort(-counts, kind="stable")[:5] if counts[i]
    }
    assert soft["classes_seen"] == (counts > 0).sum()
    by_confidence = np.argsort(mean.max(-1), kind="stable")
    entries = list(known.shards.manifest())
    for found, wanted in (
        (soft["least_confident"], by_confidence[:5]),
        (soft["most_confident"], by_confidence[:-6:-1]),
    ):
        assert [s["row"] for s in found] == rows[wanted].tolist()
        assert [s["path"] for s in found] == [entries[r].path for r in rows[wanted]]
        assert [s["key"] for s in found] == [entries[r].key for r in rows[wanted]]
        assert [s["class"] for s in found] == [NAMES[i] for i in mean[wanted].argmax(-1)]
        assert [s["probability"] for s in found] == pytest.approx(mean[wanted].max(-1), rel=1e-5)


def test_coverage_counts_reasons_by_kind(known, facts):
    coverage = facts["coverage"]
    assert (coverage["shards"], coverage["shards_done"], coverage["rows"], coverage["rows_done"]) == (
        4,
        4,
        48,
        48,
    )
    assert (coverage["valid"], coverage["invalid"]) == (known.valid.sum(), (~known.valid).sum()) == (45, 3)
    assert coverage["reasons"] == {"no image": 3}
    assert [e["row"] for e in coverage["examples"]] == np.flatnonzero(~known.valid).tolist()


def test_values_and_sizes(known, facts):
    values = known.targets["logits"][known.valid].astype(np.float64)
    found = facts["values"]["logits"]
    assert (found["nan"], found["infinite"]) == (0, 0)
    assert [found[n] for n in ("min", "max", "mean", "std")] == pytest.approx(
        [values.min(), values.max(), values.mean(), values.std()], rel=1e-5
    )
    arrays = {a["name"]: a for a in facts["arrays"]}
    assert set(arrays) == {"class_names", "class_vectors", "keys", "logits", "valid", "view_params"}
    logits = arrays["logits"]
    assert (logits["axes"][:2], logits["shape"]) == (["sample", "view"], [48, 3, 7])
    assert (logits["dtype"], logits["chunks"], logits["bytes_raw"]) == ("float32", [13, 3, 7], 48 * 3 * 7 * 4)
    assert [c["name"] for c in logits["codecs"]] == ["bytes", "blosc", "crc32c"]
    files = [f for f in (known.location.path / "logits").rglob("*") if f.is_file()]
    assert logits["bytes_on_disk"] == sum(f.stat().st_size for f in files)
    assert logits["ratio"] == pytest.approx(logits["bytes_raw"] / logits["bytes_on_disk"])


def test_text_of_a_store(known, facts):
    text = store_text(facts)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        f"Target store {known.location}, schema version 1",
        "shards 4 of 4 done",
        "rows 48 of 48 done: 45 valid, 3 invalid",
        "3 × no image",
        "teacher open_clip tiny, 4 channels, L2-normalised",
        "preprocessing 32 px, bicubic, mean 0.5 0.5 0.5, std 0.25 0.25 0.25",
        "precision amp_bf16 on cpu, 2 threads, 8 images a batch",
        "views 3 random resized crops: 0.08 to 1 of the area, ratio 0.75 to",
        "1.333, mirrored with probability 0.5, bicubic, seed 5",
        "encoding logits in fp32, costs at most 0 nats of KL divergence",
        f"corpus 'pictures', id {known.shards.corpus.corpus_id}",
        "class vectors 7 classes × 4 channels, logit scale 3",
        "such as red fox; blue jay; house cat; otter",
    ):
        assert line in lines
    assert "PROBLEMS" not in text
    assert "\x1b" not in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(known.location) not in line)


def test_fields_of_the_fingerprint_that_have_no_words_are_shown_as_they_are(write):
    known = write(["logits"], changes={"text_tower": "frozen"}, num_shards=1)
    lines = store_text(inspect_store(Stored.open(known.location))).splitlines()
    assert [line.split() for line in lines if "text_tower" in line] == [["text_tower", "frozen"]]


def test_logits_are_derived_from_embeddings(write):
    vectors = class_vectors()
    known = write(["embedding"], vectors=vectors)
    stored = Stored.open(known.location)
    facts = inspect_store(stored)
    logits = 3.0 * known.targets["embedding"][known.valid].astype(np.float64) @ vectors.vectors_CD.T.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert facts["logits_derived"] is True
    assert facts["soft_labels"]["confidence"]["mean"] == pytest.approx(probabilities.max(-1).mean(), rel=1e-5)
    assert set(facts["values"]) == {"embedding", "logits"}
    assert "logits (derived)" in store_text(facts)
    row = int(np.flatnonzero(known.valid)[7])
    sample = inspect_sample(stored, str(row), top=7)
    wanted = probabilities[7].mean(0)
    assert {c["class"]: c["mean"] for c in sample["classes"]} == pytest.approx(
        dict(zip(NAMES, wanted, strict=True)), rel=1e-4
    )


def test_without_class_vectors_embeddings_are_all_there_is(write):
    known = write(["embedding"])
    stored = Stored.open(known.location)
    facts = inspect_store(stored)
    why = (
        f"the store has embeddings but no class vectors yet. Next: teachonce vectors --teacher … --out {known.location}"
    )
    assert facts["soft_labels"] is None
    assert facts["notes"] == [f"no soft labels to show: {why}"]
    assert "class vectors   none yet" in store_text(facts).replace("class vectors  none", "class vectors   none")
    sample = inspect_sample(stored, "0")
    assert (sample["classes"], sample["no_classes"]) == (None, why)
    assert sample_text(sample).endswith(f"Note: no soft labels to show: {why}")
    assert "top class" not in sample_text(sample)


def test_class_vectors_that_do_not_fit_are_named(write):
    known = write(["embedding"])
    wide_CD = np.ones((2, 9), np.float32)
    wide = ClassVectors(names=("a", "b"), vectors_CD=wide_CD, bias_C=None, logit_scale=1.0, normalized=True)
    write_class_vectors(open_root(str(known.location.path), mode="a"), wide, {"teacher": "another"})
    facts = inspect_store(Stored.open(known.location))
    assert facts["notes"] == ["no soft labels to show: class vectors have 9 channels, embeddings 4"]


def test_a_store_with_class_vectors_only(tmp_path):
    root = open_root(str(tmp_path / "store"), mode="a")
    write_class_vectors(
        root, class_vectors(), {"teacher": {"family": "timm", "model": "m"}, "templates": ["a {}", "b"]}
    )
    stored = Stored.open(str(tmp_path / "store"))
    facts = inspect_store(stored)
    text = store_text(facts)
    assert [a["name"] for a in facts["arrays"]] == ["class_names", "class_vectors"]
    assert "from timm m, 2 templates, such as 'a {}'" in text
    assert f"no targets are cached yet; run `teachonce cache SHARDS --teacher … --out {stored.location}`" in text
    with pytest.raises(IncompleteError) as error:
        inspect_sample(stored, "0")
    assert error.value.code == "store-without-targets"


def test_an_unfinished_store_shows_what_is_there(write):
    known = write(["logits"], num_shards=2)
    stored = Stored.open(known.location)
    facts = inspect_store(stored)
    coverage = facts["coverage"]
    assert (coverage["shards_done"], coverage["shards"], coverage["rows_done"], coverage["rows"]) == (
        2,
        4,
        26,
        48,
    )
    assert facts["soft_labels"]["samples"] == known.valid[:26].sum()
    assert facts["problems"] == []
    assert "2 of 4 done, 2 left" in store_text(facts)
    assert facts["soft_labels"]["top_classes"][0]["class"].startswith("class ")
    with pytest.raises(IncompleteError) as caught:
        inspect_sample(stored, "30")
    assert caught.value.fields == {
        "code": "sample-not-cached",
        "where": f"{known.location}, row 30, shard 2",
        "hint": "run the same `teachonce cache` command again",
    }


def test_nan_in_a_valid_row_is_a_problem_that_nobody_overlooks(write):
    logits = np.random.default_rng(2).normal(size=(48, 3, len(NAMES))).astype(np.float32)
    logits[20, 1, 3:5] = np.nan
    logits[40, 0, 0] = np.inf
    known = write(["logits"], targets={"logits": logits}, vectors=class_vectors())
    result = CliRunner().invoke(main, ["inspect", str(known.location.path)])
    receipts = known.location / "ledger" / "cache" / "receipts"
    line = (
        f"  ! 'logits' has 2 NaN and 1 infinite values in valid rows of shards 1, 3. "
        f"Next: restore the store from a copy, or add .old to the names of their receipts in {receipts}, then run the same "
        "`teachonce cache` command again"
    )
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2:4] == ["PROBLEMS", line]
    facts = json.loads(CliRunner().invoke(main, ["inspect", "--json", str(known.location.path)]).stdout)
    assert (facts["values"]["logits"]["nan"], facts["values"]["logits"]["infinite"]) == (2, 1)
    assert facts["soft_labels"]["samples"] == known.valid.sum() - 2


def test_rows_that_contradict_their_receipt_are_a_problem(write, revouch):
    known = write(["logits"])
    root = zarr.open_group(str(known.location.path), mode="r+")
    root["valid"][3] = not known.valid[3]
    root["keys"][14] = 0
    revouch(known.location)
    problems = inspect_store(Stored.open(known.location))["problems"]
    receipts = known.location / "ledger" / "cache" / "receipts"

    def again(receipt: str) -> str:
        return (
            f"Next: restore the store from a copy, or mv {receipts}/{receipt} {receipts}/{receipt}.old, then run the same "
            "`teachonce cache` command again"
        )

    assert problems == [
        f"shard 0 has 11 valid rows, but its receipt says 12. {again('000000.json')}",
        f"shard 1 has 1 row without a key. {again('000001.json')}",
    ]


def test_a_damaged_chunk_is_one_problem(write):
    known = write(["logits"])
    chunk = next(f for f in sorted((known.location.path / "logits" / "c" / "1").rglob("*")) if f.is_file())
    data = bytearray(chunk.read_bytes())
    data[20] ^= 1
    chunk.write_bytes(data)
    facts = inspect_store(Stored.open(known.location))
    (problem,) = facts["problems"]
    assert problem.startswith(
        "a chunk of the store is not the one that the receipt of shard 1 vouches for: "
        f"{chunk}: found sha256 {hashlib.sha256(data).hexdigest()}. Next: restore the store from a copy; or, "
    )
    assert facts["values"]["logits"]["nan"] == 0


def test_one_sample(known):
    stored = Stored.open(known.location)
    row = 17
    entry = list(known.shards.manifest())[row]
    sample = inspect_sample(stored, entry.key, top=3)
    probabilities, entropies = reference(known)
    mine = int(known.valid[:row].sum())
    assert (sample["path"], sample["key"], sample["row"], sample["shard"]) == (entry.path, entry.key, 17, 1)
    assert (sample["label"], sample["valid"], sample["reason"]) == (entry.label, True, None)
    boxes = zarr.open_group(str(known.location.path), mode="r")["view_params"][row]
    columns = ("top", "left", "height", "width", "flip")
    assert [[int(v[c]) for c in columns] for v in sample["views"]] == boxes.tolist()
    assert [v["class"] for v in sample["views"]] == [NAMES[i] for i in probabilities[mine].argmax(-1)]
    assert [v["entropy"] for v in sample["views"]] == pytest.approx(entropies[mine], rel=1e-4)
    best = np.argsort(-probabilities[mine].mean(0))[:3]
    assert [c["class"] for c in sample["classes"]] == [NAMES[i] for i in best]
    assert [c["mean"] for c in sample["classes"]] == pytest.approx(probabilities[mine].mean(0)[best], rel=1e-4)
    assert sample["classes"][0]["by_view"] == pytest.approx(probabilities[mine][:, best[0]], rel=1e-4)


def test_text_of_a_sample(known):
    sample = inspect_sample(Stored.open(known.location), "17", top=2)
    lines = [" ".join(line.split()) for line in sample_text(sample).splitlines()]
    assert lines[0] == sample["path"]
    assert lines[1:5] == [
        f"key {sample['key']}",
        "row 17 (shard 1)",
        f"label {sample['label']}",
        "state valid",
    ]
    assert lines[7] == "view top left height width mirrored top class probability entropy"
    view = sample["views"][0]
    assert lines[8].startswith(f"0 {view['top']} {view['left']} {view['height']} {view['width']} ")
    assert lines[13] == "class mean view 0 view 1 view 2"
    assert lines[14].startswith(f"{sample['classes'][0]['class']} {sample['classes'][0]['mean']:.3f} ")


def test_an_invalid_sample_says_why(known):
    text = sample_text(inspect_sample(Stored.open(known.location), "5"))
    assert text.splitlines()[-1] == "  state  invalid: no image"


def test_every_way_to_name_a_sample(known):
    stored = Stored.open(known.location)
    entry = list(known.shards.manifest())[30]
    for name in (
        "30",
        entry.key,
        entry.key[:6],
        entry.key.upper(),
        entry.path,
        entry.path.split("/")[-1],
        f"./{entry.path}",
        f"/somewhere/pictures/{entry.path}",
    ):
        assert find_row(stored, name) == 30, name


@pytest.mark.parametrize("name", ["48", "abc", "nothing.jpg", "0123456789", "jpg"])
def test_an_unknown_sample(known, name):
    with pytest.raises(InputError) as caught:
        find_row(Stored.open(known.location), name)
    assert caught.value.fields == {
        "code": "sample-unknown",
        "where": str(name),
        "hint": "give a key or its first 6 characters, a row from 0 to 47, or an image's path or the end of one",
    }


def test_an_ambiguous_name_lists_candidates(write, make_shards, make_store, pictures, tmp_path):
    for folder in ("a", "b", "c"):
        shutil.copytree(pictures / "red fox", tmp_path / "twins" / folder)
    shards = make_shards(tmp_path / "twins", tmp_path / "shards", name="twins")
    known = make_store(shards, tmp_path / "store", description=description(shards, ["logits"]))
    with pytest.raises(InputError) as caught:
        find_row(Stored.open(known.location), "00.png")
    assert caught.value.fields == {
        "code": "sample-ambiguous",
        "where": "00.png",
        "found": "3: a/00.png, b/00.png, c/00.png",
        "hint": "give more of it",
    }
    assert find_row(Stored.open(known.location), "b/00.png") == find_row(Stored.open(known.location), "a/00.png") + 17


def test_shards_that_moved(known, tmp_path):
    store, moved = tmp_path / "store", tmp_path / "moved"
    shutil.copytree(known.location.path, store)
    shutil.copytree(known.shards.location.path, moved)
    root = open_root(str(store), mode="a")
    replace(StoreDescription.read(root, store), shards=str(tmp_path / "gone")).write(root)
    entry = list(known.shards.manifest())[30]

    without = Stored.open(str(store))
    gone = f"{tmp_path / 'gone'}, where the shards were, cannot be used"
    note = f"{gone} (no shards here); pass --shards DIR to see paths"
    facts = inspect_store(without)
    assert facts["notes"] == [note]
    assert [s["path"] for s in facts["soft_labels"]["most_confident"]] == [None] * 5
    assert len(facts["soft_labels"]["most_confident"][0]["key"]) == 32
    sample = inspect_sample(without, entry.key[:8])
    assert (sample["row"], sample["path"], sample["label"]) == (30, None, None)
    assert f"Note: {note}" in sample_text(sample)
    with pytest.raises(InputError) as error:
        find_row(without, "30.jpg")
    assert (error.value.code, str(error.value.where)) == ("sample-unknown", "30.jpg")
    assert "pass --shards DIR" in str(error.value.hint)

    assert inspect_sample(Stored.open(str(store), str(moved)), entry.path)["path"] == entry.path


def test_shards_of_another_corpus_are_refused(known, make_shards, pictures, tmp_path):
    other = make_shards(pictures / "red fox", tmp_path / "other", name="foxes")
    with pytest.raises(MismatchError) as caught:
        Stored.open(known.location, other.location)
    assert caught.value.fields == {
        "code": "shards-other-corpus",
        "where": f"{other.location}: field 'corpus_id'",
        "expected": f"{known.shards.corpus.corpus_id} (as in {known.location})",
        "found": f"{other.corpus.corpus_id} (these shards)",
        "hint": "pass the shards that the store was made from",
    }


def test_what_is_no_store_is_one_line(picture_shards, tmp_path):
    for path, text in (
        (tmp_path / "nothing", "Error: no target store here: "),
        (picture_shards.location.path, "Error: no target store here: "),
        (tmp_path / "foreign", "Error: not a target store: "),
    ):
        if path.name == "foreign":
            zarr.create_group(str(path))
        result = CliRunner().invoke(main, ["inspect", str(path)])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(text)
        assert result.stderr.count("\n") == 1


def test_command_prints_tables_or_json(known):
    path = str(known.location.path)
    table = CliRunner().invoke(main, ["inspect", path, "17", "18", "--top", "2"])
    assert (table.exit_code, table.stdout.count("Top classes")) == (0, 2)
    samples = json.loads(CliRunner().invoke(main, ["inspect", path, "17", "18", "--json"]).stdout)["samples"]
    assert [s["row"] for s in samples] == [17, 18]
    whole = CliRunner().invoke(main, ["inspect", path])
    assert whole.exit_code == 0
    assert "Least confident samples" in whole.stdout
    assert CliRunner().invoke(main, ["inspect", path, "nobody"]).exit_code == 1


def test_quartiles_of_numbers_at_the_ends_of_the_range():
    spread = Spread(0, 1)
    assert spread.to_json() is None
    spread.add(np.array([1.0, 1.0, 1.0], np.float32))
    assert set(spread.to_json().values()) == {1.0}
    spread.add(np.zeros(5, np.float32))
    found = spread.to_json()
    assert (found["min"], found["max"], found["mean"]) == (0, 1, 3 / 8)
    assert (found["q25"], found["median"], found["q75"]) == pytest.approx((0, 0, 1), abs=BINS)
