"""Few-shot sampling against CoOp's loop over the global generator, and what it refuses."""

from __future__ import annotations

import random

import numpy as np
import pytest
from teachonce.stages.inputs.image_set import Picture, open_images
from teachonce.stages.inputs.typed_images import TypedImages
from teachonce.stages.pretraining.few_shot import sample_shots
from teachonce.storage_schemas.errors import InputError


def picture(path: str, label: str | None = None, place: int = -1) -> Picture:
    return Picture(path=path, key=path, label=label, files=TypedImages(), file=path, place=place)


def many(counts: list[int], *, order_seed: int = 3) -> list[tuple[Picture, int]]:
    """So many pictures of each class, with places in an order that is none of classes or paths."""
    ids = [class_id for class_id, count in enumerate(counts) for _ in range(count)]
    random.Random(order_seed).shuffle(ids)
    return [(picture(f"{n * 7919 % 1000:04d}", f"c{i}", place=n), i) for n, i in enumerate(ids)]


def as_coop_draws(items: list[tuple[str, int]], shots: int, seed: int) -> list[tuple[str, int]]:
    """(path, class id) in the order of the split file, drawn by the global generator."""
    before = random.getstate()
    random.seed(seed)
    tracker: dict[int, list[tuple[str, int]]] = {}
    for item in items:
        tracker.setdefault(item[1], []).append(item)
    drawn = []
    for label in tracker:
        drawn += random.sample(tracker[label], shots) if len(tracker[label]) >= shots else tracker[label]
    random.setstate(before)
    return drawn


def paths(items: list[tuple[Picture, int]]) -> list[tuple[str, int]]:
    return [(picture.path, class_id) for picture, class_id in items]


def draw(items: list[tuple[Picture, int]], *, shots: int, seed: int, only=None) -> list[tuple[str, int]]:
    """(path, class id) of what is drawn; items come in the order of their paths, as those of an image set do."""
    items = sorted(items, key=lambda item: item[0].path.encode())
    ids_N = np.array([class_id for _, class_id in items])
    places_N = np.array([picture.place for picture, _ in items])
    count = int(ids_N.max()) + 1
    names = [f"c{i}" for i in range(count)]
    only_C = np.ones(count, bool) if only is None else only
    drawn = sample_shots(ids_N, places_N, shots=shots, seed=seed, only_C=only_C, names=names)
    return paths([items[i] for i in drawn])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_the_draw_is_coops(seed, shots):
    pictures = many([20, 16, 31, 17, 40])
    expected = as_coop_draws(paths(pictures), shots, seed)
    given = pictures.copy()
    random.Random(9).shuffle(given)
    state = random.getstate()
    assert draw(given, shots=shots, seed=seed) == expected
    assert random.getstate() == state
    base = np.array([True, True, False, True, False])
    kept = [item for item in expected if base[item[1]]]
    assert draw(given, shots=shots, seed=seed, only=base) == kept


def test_a_novel_class_that_is_too_small_changes_nothing():
    pictures = many([20, 3, 20])
    expected = [item for item in as_coop_draws(paths(pictures), 16, 1) if item[1] != 1]
    only = np.array([True, False, True])
    assert draw(pictures, shots=16, seed=1, only=only) == expected


def test_without_places_the_order_is_that_of_paths():
    pictures = [(picture(f"{c}/{n}"), "ba".index(c)) for c in "ab" for n in range(5)]
    expected = as_coop_draws(sorted(paths(pictures)), 2, 1)
    assert draw(pictures[::-1], shots=2, seed=1) == expected
    mixed = [*pictures[1:], (picture("a/0", place=0), 1)]
    assert draw(mixed, shots=2, seed=1) == expected


def test_a_data_set_is_drawn_as_its_split_file_lists_it(miniature, tmp_path):
    known = miniature.build(tmp_path, "oxford_pets", per_class={"train": 5})
    listed = [(path, known.classes.index(label)) for path, label in known.images["train"]]
    pictures = [(p, known.classes.index(p.label)) for p in open_images(f"coop:oxford_pets/train={tmp_path}").pictures()]
    assert draw(pictures, shots=3, seed=2) == as_coop_draws(listed, 3, 2)


def test_images_without_a_class_are_left_out():
    ids_N, places_N = np.array([1, -1, 1, -1, 0]), np.array([4, -1, 2, -1, 0])
    drawn = sample_shots(ids_N, places_N, shots=1, seed=1, only_C=np.ones(2, bool), names=("a", "b"))
    listed = as_coop_draws([("4", 0), ("2", 1), ("0", 1)], 1, 1)  # in the order of their places
    assert [str(i) for i in drawn] == [path for path, _ in listed]


def test_a_kept_class_that_is_too_small_is_refused():
    with pytest.raises(InputError) as error:
        draw(many([20, 3, 20]), shots=16, seed=1)
    assert error.value.fields == {
        "code": "shots-too-few",
        "where": "'c1'",
        "expected": "16 or more",
        "found": "3",
        "hint": "--shots 3",
    }
    unnamed = [(picture(str(n)), 4) for n in range(2)]
    with pytest.raises(InputError) as error:
        draw(unnamed, shots=1, seed=1, only=np.array([False, True, False, False, True]))
    assert error.value.fields == {
        "code": "shots-too-few",
        "where": "'c1'",
        "expected": "1 or more",
        "found": "0",
        "hint": "add images, or take it out of --base-classes",
    }
