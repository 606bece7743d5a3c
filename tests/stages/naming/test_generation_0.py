"""Generation 0 of S3A: k-means, votes, names and realignment are those of a plain computation, to the last label."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from teachonce.cli import main
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.labels import CANDIDATES_FILE, LabelsStage, plan_labels
from teachonce.stages.models.compute import Compute
from teachonce.stages.naming import clusters
from teachonce.stages.naming.accuracy import LabelNumbers, matched_accuracy
from teachonce.stages.naming.prompts import Phrase, candidates_of, phrases_of, prompt_scores, read_prompts
from teachonce.stages.naming.votes import assign, rounds, vote
from teachonce.stages.pairs.label_store import OpenLabels
from teachonce.stages.settings.labels import LabelsSettings
from teachonce.stages.status import folder_status
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.class_vectors import ClassVectors, write_class_vectors
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError
from teachonce.storage_schemas.target_store import open_root

CPU = Compute(device="cpu", precision="fp32", threads=1)
CLASSES, NAMES, WIDTH = 6, 25, 5


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def store(centre_store):
    return centre_store


def plan(store: Any, out: Path, **settings: Any) -> LabelsStage:
    return plan_labels(
        store.location,
        out=str(out),
        settings=LabelsSettings(**{"classes": CLASSES, "starts": 3, **settings}),
        compute=CPU,
    )


def run(stage: LabelsStage) -> OpenLabels:
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    return OpenLabels.of(stage.out, stage.number)


def plain_rounds(
    embedding: np.ndarray, vectors: np.ndarray, partition: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster, vote, realign, three times, in plain loops."""
    best = [int(np.argmax(row @ vectors.T)) for row in embedding]
    labels = list(partition)
    for _ in range(3):
        groups = sorted(set(labels))
        voters = np.array([groups.index(label) for label in labels])
        shares = np.zeros((len(groups), len(vectors)), np.float32)
        for group in range(len(groups)):
            members = [i for i in range(len(labels)) if voters[i] == group]
            for i in members:
                shares[group, best[i]] += 1
            shares[group] /= np.float32(len(members))
        given = sorted(linear_sum_assignment(shares.max() - shares)[1])
        labels = [given[int(np.argmax([100 * float(row @ vectors[name]) for name in given]))] for row in embedding]
    return np.array(labels), voters, shares


def test_labels_are_those_of_a_plain_computation(store, vocabulary, tmp_path) -> None:
    labels = run(plan(store, tmp_path / "labels"))
    rows = np.flatnonzero(store.valid)
    embedding = store.targets["embedding"][rows, 0]
    start = KMeans(CLASSES, random_state=0, n_init=3, max_iter=1000).fit_predict(unit(embedding))
    expected, _, _ = plain_rounds(embedding, vocabulary.vectors_CD, start)
    found = labels.all_rows()
    assert found.dtype == np.int32
    assert found[rows].tolist() == expected.tolist()
    assert (found[~store.valid] == -1).all()
    counts = [(place, f"name {place:02d}", (expected == place).sum()) for place in sorted(set(expected))]
    assert [tuple(one) for one in labels.about.names] == counts
    assert len(set(expected)) > 3  # else it would show little


@pytest.mark.parametrize("seed", range(20))
def test_rounds_on_random_partitions(vocabulary, seed) -> None:
    """Empty clusters, clusters without votes for the name they get, and names that lose all their images."""
    rng = np.random.default_rng(seed)
    embedding = unit(rng.normal(size=(40, WIDTH)))
    partition = rng.integers(0, 9, 40) * 3  # numbers with gaps
    blocks = [embedding[:7], embedding[7:30], embedding[30:]]
    found = rounds(blocks, vocabulary, partition)
    labels, voters, shares = plain_rounds(embedding, vocabulary.vectors_CD, partition)
    assert found.labels_N.tolist() == labels.tolist()
    assert found.voters_N.tolist() == voters.tolist()
    assert (found.shares_CV == shares).all()


def test_a_head_with_biases_chooses_by_its_logits(vocabulary) -> None:
    """A classifier's rows are no cosines: its bias counts."""
    bias = np.linspace(-3, 3, NAMES, dtype=np.float32)
    head = ClassVectors(
        names=vocabulary.names, vectors_CD=vocabulary.vectors_CD * 2, bias_C=bias, logit_scale=1.0, normalized=False
    )
    embedding = np.random.default_rng(0).normal(size=(30, WIDTH)).astype(np.float32)
    found = rounds([embedding], head, np.arange(30) % 4, count=1)
    best = (embedding @ head.vectors_CD.T + bias).argmax(axis=1)
    given = np.unique(assign(vote(np.arange(30) % 4, best, NAMES)))
    assert found.labels_N.tolist() == [int(given[row[given].argmax()]) for row in embedding @ head.vectors_CD.T + bias]


def test_large_corpora_are_clustered_in_blocks(store, tmp_path, monkeypatch) -> None:
    """Every row is in a cluster, the same ones each time, and the settings say so."""
    monkeypatch.setattr(clusters, "MOST_BYTES", 500)
    monkeypatch.setattr(clusters, "_BLOCK_ROWS", 20)
    stage = plan(store, tmp_path / "a")
    assert "more than 1 GiB of embeddings: minibatch k-means, in blocks" in stage.notes
    assert stage.identity["kmeans"] == "minibatch"
    blocks = [len(block) for block in clusters._merged(stage.embeddings, 20)]
    assert sum(blocks) == store.valid.sum()
    assert min(blocks) >= 20
    first, second = run(stage), run(plan(store, tmp_path / "b"))
    assert first.digest == second.digest
    assert (first.all_rows()[store.valid] >= 0).all()


# --- phrases


def plain_scores(embedding, voters, candidates, prompts, texts, names) -> np.ndarray:
    """The prompt step of the authors' notebook, in their words, with their weights."""
    scores = np.zeros((len(candidates), len(names)), np.float32)
    for cluster, row in enumerate(candidates):
        entries = [(name, phrase) for name in sorted(row) for phrase in sorted(set(prompts[names[name]]))]
        raw = np.array([prompts[names[name]].count(phrase) for name, phrase in entries], np.float64)
        table = np.stack([texts[f"{phrase} {names[name]}"] for name, phrase in entries])
        count_names = np.zeros(len(entries))
        for i in np.flatnonzero(voters == cluster):
            for place in np.argsort(-(embedding[i] @ table.T), kind="stable")[:3]:
                count_names[place] += 1
        for name in row:
            smask = np.array([one == name for one, _ in entries])
            row_weight = raw.copy()
            row_weight[smask] = row_weight[smask] / row_weight[smask].sum()
            row_weight /= row_weight.sum()
            scores[cluster, name] = (row_weight[smask] * count_names[smask]).sum()
    return scores


def test_phrases_count_as_in_the_authors_code(vocabulary) -> None:
    rng = np.random.default_rng(7)
    embedding = unit(rng.normal(size=(60, WIDTH)))
    found = rounds([embedding], vocabulary, rng.integers(0, 5, 60))
    candidates = candidates_of(found.shares_CV)
    assert [len(row) for row in candidates] == [3] * len(candidates)
    for row, shares in zip(candidates, found.shares_CV, strict=True):
        assert set(shares[row]) == set(sorted(shares)[-3:])
    prompts = {name: [f"phrase {i} of {name}" for i in range(2 + n % 3)] for n, name in enumerate(vocabulary.names)}
    phrases = phrases_of(candidates, prompts, vocabulary.names, "x")
    vectors = {p.text: unit(rng.normal(size=WIDTH)) for row in phrases for p in row}
    scores = prompt_scores([embedding[:11], embedding[11:]], found.voters_N, phrases, vectors, NAMES)
    expected = plain_scores(embedding, found.voters_N, candidates, prompts, vectors, vocabulary.names)
    assert (scores > 0).sum() > 5
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_phrase_given_twice_weighs_twice_and_shared_ones_are_left_out() -> None:
    prompts = {"a": ["red", "red", "round", "same"], "b": ["blue", "same"]}
    assert phrases_of([[1, 0]], prompts, ("a", "b"), "x") == [
        [
            Phrase(name=0, text="red a", weight=2 / 3),
            Phrase(name=0, text="round a", weight=1 / 3),
            Phrase(name=1, text="blue b", weight=1.0),
        ]
    ]


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        (
            {"a": ["red"]},
            "1 name without a phrase that describes it, the first is 'b': FILE: expected a phrase or more for each name in candidates.json, "
            "found none. Next: add them to the file",
        ),
        (
            {"a": ["red"], "b": []},
            "1 name without a phrase that describes it, the first is 'b': FILE: expected a phrase or more for each name in candidates.json, "
            "found none. Next: add them to the file",
        ),
        (
            {"a": ["red"], "b": ["red", "blue"]},
            "a name has no phrase that tells it from the others of its cluster: FILE: 'a': expected a phrase that is not also one of 'b', "
            "found none. Next: add one to the file",
        ),
    ],
)
def test_names_without_phrases_are_refused(prompts, line) -> None:
    with pytest.raises(InputError) as error:
        phrases_of([[0, 1]], prompts, ("a", "b"), "FILE")
    assert str(error.value) == line


@pytest.mark.parametrize("text", ["[]", '{"a": "red"}', "{", '{"a": [1]}'])
def test_other_files_of_prompts_are_refused(tmp_path, text) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(
        InputError, match=r"not a file of prompts: .*p\.json: expected a JSON object from names to lists"
    ):
        read_prompts(str(tmp_path / "p.json"))
    with pytest.raises(InputError, match="no such file of prompts"):
        read_prompts(str(tmp_path / "q.json"))


def test_candidates_are_written_as_a_file_to_fill_in(store, tmp_path) -> None:
    stage = plan(store, tmp_path / "labels")
    run(stage)
    found = json.loads((tmp_path / "labels" / CANDIDATES_FILE).read_text())
    assert set(found) <= set(stage.vectors.names)
    assert list(found) == sorted(found)
    assert {name for _, name, _ in OpenLabels.of(stage.out).about.names} & set(found)
    assert all(phrases == [] for phrases in found.values())


# --- the corpus's own labels


def test_accuracy_gives_each_cluster_one_label() -> None:
    labels = np.array([7, 7, 7, 3, 3, 9, 9, 9])
    true = ["a", "a", "b", "a", "a", "b", None, "b"]
    best = max(
        sum(given[cluster] == label for cluster, label in zip(labels.tolist(), true, strict=True) if label is not None)
        for given in (
            {7: "a", 3: "b", 9: "c"},
            {7: "a", 9: "b", 3: "c"},
            {3: "a", 9: "b", 7: "c"},
            {3: "a", 7: "b", 9: "c"},
        )
    )
    numbers = LabelNumbers()
    assert numbers.of(["x", None, "y", "x"]).tolist() == [0, -1, 1, 0]
    assert matched_accuracy(labels, numbers.of(true)) == (best, 7) == (4, 7)
    assert matched_accuracy(labels, np.arange(8)) == (3, 8)  # more labels than clusters
    assert matched_accuracy(labels, np.full(8, -1)) == (0, 0)


def test_the_command_says_what_it_found(centre_store, tmp_path) -> None:
    command = ["labels", str(centre_store.location), "--classes", "6", "--starts", "2", "--out", str(tmp_path / "l")]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    told = first.stderr.splitlines()
    assert told[0] == "labels: 6 clusters of 45 images, a vocabulary of 25 names"
    assert "no --prompts: names are not compared by descriptions" in told[1]
    status = folder_status(tmp_path / "l")
    assert (status["kind"], status["state"]) == ("labels", "complete")
    assert (
        status["next"]
        == f"teachonce distill SHARDS STORE --student … --recipe s3a --labels {tmp_path / 'l'} --out BUNDLE"
    )
    again = CliRunner().invoke(main, [*command, "--json"])
    facts = json.loads(again.stdout)
    found = OpenLabels.of(Location.of(tmp_path / "l")).all_rows()
    entries = [entry.label for entry in centre_store.shards.manifest()]
    right, known = matched_accuracy(
        found[centre_store.valid], LabelNumbers().of(entries[row] for row in np.flatnonzero(centre_store.valid))
    )
    assert facts["matched_accuracy"] == {"right": right, "of": known}
    assert known == 45
    assert any(f"{right / known:.1%} of 45 images lie right" in line for line in told)


# --- what is refused


def message(store: Any, out: Path, error: type[Exception], **settings: Any) -> str:
    with pytest.raises(error) as caught:
        plan(store, out, **settings)
    return str(caught.value)


def test_fewer_names_than_clusters(store, tmp_path) -> None:
    assert message(store, tmp_path / "l", InputError, classes=26) == (
        f"fewer names than clusters: each cluster gets a name of its own: {store.location}: expected 26 names or more, found 25. "
        "Next: compute class vectors of a larger vocabulary with `teachonce vectors`, or choose a smaller --classes"
    )
    assert not (tmp_path / "l").exists()


def test_fewer_images_than_clusters(picture_shards, make_centre_store, tmp_path) -> None:
    many = ClassVectors(
        names=tuple(map(str, range(60))),
        vectors_CD=np.eye(60, dtype=np.float32),
        bias_C=None,
        logit_scale=1.0,
        normalized=True,
    )
    rows = picture_shards.corpus.num_rows
    same = make_centre_store(picture_shards, tmp_path / "s", np.ones((rows, 60), np.float32), many)
    assert message(same, tmp_path / "l", InputError, classes=46) == (
        "fewer images than clusters: --classes 46: expected 46 or more, found 45 usable samples. Next: choose a smaller number of classes"
    )
    blocks = plan(same, tmp_path / "l").embeddings
    with pytest.raises(InputError, match="--classes 3: expected 3 or more, found fewer that differ"):
        clusters.cluster(blocks, 3, seed=0)


def test_a_store_without_embeddings(picture_shards, make_store, tmp_path) -> None:
    store = make_store(picture_shards, tmp_path / "s", widths={"logits": 4}, views=ViewSpec(kind="center", count=1))
    assert message(store, tmp_path / "l", InputError) == (
        f"clusters are made of embeddings, and the store holds none: {tmp_path / 's'}: expected embedding, found logits. "
        "Next: teachonce cache SHARDS --views center --targets embedding --teacher … --out ANOTHER_STORE"
    )


def test_random_views(known_store, tmp_path) -> None:
    assert message(known_store, tmp_path / "l", MismatchError) == (
        f"clusters are made of centre views, and the store holds random ones: {known_store.location}: field 'views': expected the centre "
        "view, found 3 of kind random_resized_crop. Next: teachonce cache SHARDS --views center --targets embedding --teacher … --out "
        "ANOTHER_STORE"
    )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"classes": None},
            "how many clusters to make is not said: teachonce labels: expected --classes N, found nothing. Next: give the number of classes that you expect in the images",
        ),
        (
            {"append": True},
            "a later generation begins with the clusters that there are, so --classes means nothing: --append, --classes. "
            "Next: leave out --classes",
        ),
        (
            {"prompts": "p.json"},
            "phrases are read by the teacher's text tower, and it reads nothing else here: --prompts: expected --teacher too, found nothing. Next: add --teacher, or leave "
            "out --prompts",
        ),
        (
            {"teacher": "ViT-B-32"},
            "phrases are read by the teacher's text tower, and it reads nothing else here: --teacher: expected --prompts too, found nothing. Next: add --prompts, or leave "
            "out --teacher",
        ),
    ],
)
def test_options_that_do_not_go_together(store, tmp_path, settings, line) -> None:
    assert message(store, tmp_path / "l", InputError, **settings) == line


def test_a_vocabulary_of_another_teacher(store, vocabulary, tmp_path) -> None:
    root = open_root(str(tmp_path / "v"), mode="a")
    write_class_vectors(root, vocabulary, {"teacher": {"model": "U", "weights_digest": "9"}, "templates": []})
    assert message(store, tmp_path / "l", MismatchError, vectors=str(tmp_path / "v")) == (
        f"the class vectors are another teacher's than the cached targets: {tmp_path / 'v'}: field 'teacher.weights': expected T 0123 "
        "(the cached targets), found U 9 (the class vectors). Next: use the teacher that was cached"
    )


def test_the_same_command_goes_on_and_another_is_refused(store, tmp_path) -> None:
    out = tmp_path / "labels"
    labels = run(plan(store, out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and "timings" not in path.parts}
    (out / "ledger/labels/receipts/labels.json").unlink()  # killed before the receipt
    (out / "generation_0/c/1").write_bytes(b"half")
    assert run(plan(store, out)).digest == labels.digest
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(MismatchError, match="field 'classes': expected 5 .this command., found 6 .the folder."):
        run(plan(store, out, classes=5))


def test_a_changed_chunk_is_noticed(store, tmp_path) -> None:
    labels = run(plan(store, tmp_path / "labels"))
    chunk = tmp_path / "labels/generation_0/c/1"
    other = (tmp_path / "labels/generation_0/c/0").read_bytes()
    assert other != chunk.read_bytes()
    chunk.write_bytes(other)  # whole, but another shard's
    assert labels.read(labels.open(), slice(0, 13)).shape == (13,)
    with pytest.raises(DamagedError, match="labels are not those that `teachonce labels` wrote: .*generation_0/c/1"):
        labels.read(labels.open(), slice(13, 26))


def test_any_zarr_reader_opens_them(store, tmp_path) -> None:
    import zarr

    labels = run(plan(store, tmp_path / "labels"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(str(tmp_path / "labels"), mode="r")
        assert sorted(root.array_keys()) == ["generation_0"]
        assert sorted(name for name, _ in root.members()) == ["generation_0", "ledger", "prompts"]
        assert (root["generation_0"][:] == labels.all_rows()).all()
        assert root["generation_0"].metadata.dimension_names == ("sample",)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (3, "no such generation of labels: {}: expected 0, found 3. Next: leave out the number for the last one"),
    ],
)
def test_generations_that_are_not_there(store, tmp_path, number, line) -> None:
    run(plan(store, tmp_path / "labels"))
    with pytest.raises(InputError) as error:
        OpenLabels.of(Location.of(tmp_path / "labels"), number)
    assert str(error.value) == line.format(tmp_path / "labels")
    with pytest.raises(InputError, match=r"no labels here: .*: expected labels of `teachonce labels`, found nothing"):
        OpenLabels.of(Location.of(tmp_path / "other"))
    with pytest.raises(MismatchError) as other:
        OpenLabels.of(store.location)
    assert str(other.value) == (
        f"these are no labels: {store.location}: expected labels of `teachonce labels`, found a target store"
    )
