"""What is measured and searched for in one reading of a store, against plain computations and against planted faults."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from teachonce.stages.measures.confusions import Confusions, cosines_of, nearest_classes
from teachonce.stages.measures.duplicates import Pair, equal_files, near_pictures, near_vectors, ranked, unconnected
from teachonce.stages.measures.picture_likeness import EDGE, aligned_likeness
from teachonce.stages.measures.rankings import (
    SCORES,
    FeatureSample,
    RandomSample,
    Ranking,
    random_numbers,
)
from teachonce.stages.measures.sample_block import BlockBuilder, SampleBlock
from teachonce.stages.measures.stale_rows import mismatches
from teachonce.stages.measures.store_pass import measure_store, read_facts
from teachonce.stages.measures.stored import Stored
from teachonce.stages.measures.tallies import Tallies
from teachonce.stages.measures.wrong_labels import contradicted_labels

RNG = np.random.default_rng


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.array([RNG(seed + i).bytes(16).hex() for i in range(count)], "S32")


def block(rows: int = 40, views: int = 3, classes: int = 6, *, shard: int = 0, seed: int = 0) -> SampleBlock:
    logits = RNG(seed).normal(0, 2, (views, rows, classes)).astype(np.float32)
    builder = BlockBuilder(rows, classes)
    for view in logits:
        builder.add_view(view)
    labels: list[str | None] = [str(i % 2) for i in range(rows)]
    return builder.block(shard, shard * rows, keys(rows, shard * rows), np.ones(rows, bool), labels)


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def average_precision(scores: np.ndarray, planted: np.ndarray) -> float:
    hits = planted[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_ranking_over_blocks_is_that_of_all_samples(name) -> None:
    blocks = [block(shard=shard, seed=shard) for shard in range(4)]
    ranking = Ranking(SCORES[name], 10)
    for one in blocks:
        ranking.add(one)
    scores = np.concatenate([SCORES[name](one) for one in blocks])
    expected = np.lexsort((np.arange(len(scores)), -scores))[:10]
    assert [facts.row for facts in ranking.samples] == expected.tolist()
    assert ranking.matching == 160


def test_a_ranking_keeps_to_the_samples_that_count() -> None:
    one = block()
    ranking = Ranking(SCORES["confidence"], 99, lambda found: found.first_N == 2)
    ranking.add(one)
    assert {facts.row for facts in ranking.samples} == set(np.flatnonzero(one.first_N == 2).tolist())
    assert ranking.matching == (one.first_N == 2).sum()


def test_rows_that_are_not_usable_disturb_nothing() -> None:
    logits = RNG(1).normal(size=(5, 4)).astype(np.float32)
    logits[2] = [np.nan, np.inf, 0, 1]
    builder = BlockBuilder(5, 4)
    builder.add_view(logits)
    found = builder.block(0, 10, keys(5), np.array([1, 1, 0, 1, 1], bool), None)
    assert found.rows_N.tolist() == [10, 11, 13, 14]
    assert np.isfinite(found.mean_NC).all()
    assert found.facts(2).label is None


def test_samples_are_drawn_by_their_keys_alone() -> None:
    numbers = random_numbers(keys(4000))
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.abs(np.sort(numbers) - np.linspace(0, 1, 4000)).max() < 0.04
    expected = [int(key[16:28], 16) / 16**12 for key in keys(20)]
    assert numbers[:20] == pytest.approx(expected, abs=1e-12)
    small, large = (RandomSample(160, wanted, has_logits=True) for wanted in (30, 80))
    for shard in range(4):
        one = block(shard=shard)
        small.add(one)
        large.add(one)
    assert set(small.samples) < set(large.samples)
    assert 10 < len(small.samples) < 60
    assert {facts.row for facts in large.smaller(160, 30)} == set(small.samples)


def test_features_are_mean_directions_of_the_views(known_store) -> None:
    mean, views = FeatureSample(48, 99, "embedding"), FeatureSample(48, 99, "embedding", 2)
    measure_store(Stored.open(known_store.location), 5, [mean, views])
    embedding = known_store.targets["embedding"]
    directions = unit(embedding)
    rows, vectors = mean.take()
    assert rows.tolist() == np.flatnonzero(known_store.valid).tolist()
    np.testing.assert_allclose(vectors[:, 0], unit(directions[rows].mean(1)), atol=1e-6)
    rows, vectors = views.take()
    np.testing.assert_allclose(vectors, directions[rows, :2], atol=1e-6)


def test_confusions_are_those_of_all_samples() -> None:
    blocks = [block(shard=shard, seed=shard) for shard in range(3)]
    confusions = Confusions(6)
    expected: dict[tuple[int, int], tuple[int, float]] = {}
    for one in blocks:
        confusions.add(one)
        for mean in one.mean_NC:
            a, b = np.argsort(-mean)[:2].tolist()
            count, mass = expected.get((min(a, b), max(a, b)), (0, 0.0))
            expected[min(a, b), max(a, b)] = count + 1, mass + float(mean[b])
    found = {(a, b): (count, mass) for a, b, count, mass in confusions.most(99)}
    assert {pair: count for pair, (count, _) in found.items()} == {pair: count for pair, (count, _) in expected.items()}
    assert [mass for _, mass in found.values()] == sorted((m for _, m in found.values()), reverse=True)
    assert all(found[pair][1] == pytest.approx(expected[pair][1], rel=1e-5) for pair in expected)


def test_tallies_count_each_sample_once() -> None:
    tallies = Tallies(3, 3, 6)
    blocks = [block(shard=shard, seed=shard) for shard in range(3)]
    for one in blocks:
        tallies.add(one)
    assert tallies.samples_S.tolist() == [40, 40, 40]
    assert tallies.agreeing_V.sum() == 120
    assert tallies.confidence_C.sum() == pytest.approx(tallies.confidence_S.sum())
    assert tallies.agreeing_V[3] == sum(int((one.top_VN == one.first_N).all(0).sum()) for one in blocks)


def test_nearest_classes_and_the_order_of_like_ones() -> None:
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0], [0, 0.2, 1], [0, 0, 1]], np.float32)
    assert [(a, b) for a, b, _ in nearest_classes(vectors, 2)] == [(0, 2), (3, 4)]
    ids, cosines = cosines_of(vectors, [0, 1, 2, 3, 4])
    assert abs(ids.index(0) - ids.index(2)) == abs(ids.index(3) - ids.index(4)) == 1
    lengths_1 = unit(vectors)
    np.testing.assert_allclose(cosines, (lengths_1 @ lengths_1.T)[np.ix_(ids, ids)], atol=1e-6)


def test_facts_of_single_rows_are_those_of_the_whole_reading(known_store) -> None:
    stored, everything = Stored.open(known_store.location), RandomSample(48, 99, has_logits=True)
    measure_store(stored, 5, [everything])
    rows = [0, 13, 14, 47, 5]
    assert read_facts(stored, rows) == {row: everything.samples[row] for row in (0, 13, 14, 47)}  # 5 is not valid


def test_labels_that_their_images_contradict_come_first() -> None:
    rng = RNG(0)
    centres = unit(rng.normal(size=(8, 32)))
    truth = rng.integers(0, 8, 1000)
    vectors = unit(centres[truth] + 0.12 * rng.normal(size=(1000, 32)))
    wrong = np.zeros(1000, bool)
    wrong[rng.choice(1000, 10, replace=False)] = True
    given = np.where(wrong, (truth + 3) % 8, truth)
    labels: list[str | None] = [f"label {i}" for i in given]
    labels[-1] = None
    scores, others = contradicted_labels(vectors, labels)
    assert average_precision(scores, wrong) > 0.98
    assert scores[-1] == -np.inf
    best = int(scores.argmax())
    assert others[best] == f"label {truth[best]}"


def test_labels_of_few_images_are_not_judged() -> None:
    vectors = unit(RNG(0).normal(size=(9, 4)))
    scores, others = contradicted_labels(vectors, ["a"] * 4 + ["b"] * 2 + ["c"] * 3)
    assert np.isneginf(scores[4:6]).all()
    assert np.isfinite(np.delete(scores, [4, 5])).all()
    assert "b" not in others
    assert np.isneginf(contradicted_labels(vectors, ["a"] * 9)[0]).all()


def test_targets_of_other_rows_come_first() -> None:
    """Targets that are a mixture of the pictures' own features, but for ten rows that have one another's."""
    rng = RNG(3)
    colors = rng.integers(40, 216, (500, 2, 3))
    pixels = np.clip(colors[:, :, None, None] + rng.normal(0, 25, (500, 2, 32, 32, 3)), 0, 255).astype(np.uint8)
    stripes = (np.sin(np.arange(32) * rng.uniform(0.3, 2.5, (500, 2, 1))) * 40)[:, :, :, None, None]
    pixels = np.clip(pixels + stripes, 0, 255).astype(np.uint8)
    seen = np.concatenate(
        [
            pixels.mean((2, 3)) / 60,
            pixels.std((2, 3)) / 20,
            np.abs(np.diff(pixels.astype(float), axis=2)).mean((2, 3)) / 20,
        ],
        -1,
    )
    vectors = unit(seen @ rng.normal(size=(9, 24)) + 0.3 * rng.normal(size=(500, 2, 24)))
    stale = rng.choice(500, 10, replace=False)
    vectors[stale] = vectors[np.roll(stale, 1)]
    planted = np.zeros(500, bool)
    planted[stale] = True
    assert average_precision(mismatches(pixels, vectors), planted) > 0.6  # 0.02 by chance


def test_equal_files_are_found_among_all_rows() -> None:
    digests = [f"{i:032x}" for i in range(6)]
    rows = [(0, digests[0]), (1, digests[1]), (2, ""), (3, digests[0]), (7, digests[1]), (9, digests[0]), (10, "")]
    expected = [Pair(0, 3, 1.0, True), Pair(0, 9, 1.0, True), Pair(1, 7, 1.0, True)]
    assert equal_files(rows) == expected
    assert equal_files([]) == []


def test_near_vectors_are_those_of_like_rows() -> None:
    rng = RNG(5)
    vectors = unit(rng.normal(size=(300, 40)))
    vectors[77] = unit(vectors[12:13] + 0.02 * rng.normal(size=(1, 40)))[0]
    vectors[200] = unit(vectors[150:151] + 0.01 * rng.normal(size=(1, 40)))[0]
    pairs = near_vectors(np.arange(300) * 3, vectors, 20)
    assert {(p.first, p.second) for p in pairs[:2]} == {(36, 231), (450, 600)}


def landscape(seed: int, size: int = 256) -> Image.Image:
    """A picture with large and small things in it, as photographs have."""
    rng = RNG(seed)
    parts = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize((size, size), 3), float)
        * weight
        for n, weight in ((4, 0.5), (12, 0.3), (40, 0.2))
    ]
    return Image.fromarray(np.sum(parts, axis=0).astype(np.uint8))


def small(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((EDGE, EDGE), Image.Resampling.BILINEAR))


COPIES = {
    "smaller": lambda picture: picture.resize((90, 90)),
    "brighter": lambda picture: picture.point(lambda value: value * 0.8 + 40),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda picture: picture.crop((20, 31, 215, 243)),
    "of a corner": lambda picture: picture.crop((0, 0, 180, 180)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_like_its_picture_whichever_comes_first(kind) -> None:
    pictures = np.stack([small(landscape(seed)) for seed in range(12)])
    copies = np.stack([small(COPIES[kind](landscape(seed))) for seed in range(12)])
    both = aligned_likeness(pictures, copies), aligned_likeness(copies, pictures)
    others = aligned_likeness(pictures, np.roll(copies, 1, axis=0))
    assert min(found.min() for found in both) > 0.85
    assert others.max() < 0.6
    np.testing.assert_allclose(both[0], both[1], atol=0.02)


def test_whole_pictures_alone_find_copies_but_cropped_ones() -> None:
    greys = {seed: small(landscape(seed)) for seed in range(60)}
    greys |= {100: small(COPIES["smaller"](landscape(7))), 101: small(COPIES["mirrored"](landscape(9)))}
    greys |= {102: small(COPIES["cropped"](landscape(11)))}
    pairs = near_pictures(greys, 9)
    assert {(p.first, p.second) for p in pairs[:2]} == {(7, 100), (9, 101)}
    found = ranked([Pair(11, 102, 0.3), Pair(1, 999, 1.0), *pairs], greys)  # 999 has no picture
    assert {(p.first, p.second) for p in found[:3]} == {(7, 100), (9, 101), (11, 102)}
    assert found[3].likeness < 0.6
    assert near_pictures({1: greys[1]}, 9) == []


def test_of_three_that_are_alike_there_are_two_pairs() -> None:
    pairs = [Pair(1, 2, 0.9), Pair(4, 5, 0.8), Pair(2, 3, 0.7), Pair(1, 3, 0.6), Pair(3, 5, 0.5), Pair(2, 4, 0.4)]
    assert [(p.first, p.second) for p in unconnected(pairs)] == [(1, 2), (4, 5), (2, 3), (3, 5)]
