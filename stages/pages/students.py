"""Owns the comparison of two students on the same images: per class, how often they agree, and where they differ most."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from ...pipeline.progress import Progress
from ...storage_schemas.errors import InputError, MismatchError
from ..corpora.images import BadImage, one_image
from ..inputs.class_match import ClassMatcher
from ..inputs.image_set import Picture, open_images
from ..students.bundle import LoadedStudent, load_student
from . import charts
from .page import Block, Chart, Charts, GalleryPlace, Section, Table, Tile

#: Images in a forward pass, examples of each kind, pixels of a picture, and classes in the chart.
_BATCH, _EXAMPLES, _EDGE, _BARS = 64, 24, 132, 24


@dataclass
class _Example:
    key: str
    path: str
    label: str | None
    picture: str
    probabilities: list[list[tuple[int, float]]]


@dataclass
class Comparison:
    """What was counted of both students.

    Attributes:
        right: images with the true class first, by class name and student; `total`: labelled images of each class.
        examples: by kind: (distance of the two distributions, image).
    """

    names: tuple[str, str]
    images: int = 0
    agreed: int = 0
    unusable: int = 0
    total: dict[str, int] = field(default_factory=dict)
    right: tuple[dict[str, int], dict[str, int]] = field(default_factory=lambda: ({}, {}))
    examples: dict[str, list[tuple[float, _Example]]] = field(default_factory=dict)


def compare_students(
    bundles: tuple[str, str], images: str, names: tuple[str, str]
) -> tuple[list[Section], dict[str, Any], list[Tile]]:
    """Run both students over the images, and return sections of a page, their data, and tiles.

    Args:
        images: what `evaluate` takes.

    Raises:
        MismatchError: they know other classes.
        InputError: no image can be used.
    """
    students = load_student(bundles[0]), load_student(bundles[1])
    classes = students[0].vectors.names
    if students[1].vectors.names != classes:
        raise MismatchError(
            "the two students know other classes, or in another order",
            code="students-other-classes",
            where=bundles[1],
            expected=f"{len(classes)} classes (as in {bundles[0]})",
            found=f"{len(students[1].vectors.names)} classes",
            hint="compare students of one store",
        )
    found = _measure(students, images, names)
    if not found.images:
        raise InputError(
            "none of the images can be used",
            code="images-none-usable",
            where=images,
            found=f"{found.unusable} unusable",
        )
    return _sections(found), _data(found, classes), _tiles(found)


def _measure(students: tuple[LoadedStudent, LoadedStudent], images: str, names: tuple[str, str]) -> Comparison:
    found = Comparison(names=names)
    matcher = ClassMatcher(students[0].vectors.names)
    matched: dict[str, int | None] = {}
    image_set = open_images(images, kind=students[0].kind)
    pictures = image_set.pictures()
    with Progress("inspect", None) as bar:
        while batch := list(islice(pictures, _BATCH)):
            usable = list(_decoded(batch, image_set.max_pixels, found))
            bar.advance(len(batch))
            if not usable:
                continue
            pixels = [image for _, image in usable]
            both = [student.predict(pixels) for student in students]
            for (picture, image), *said in zip(usable, *both, strict=True):
                label = picture.label
                if label is not None and label not in matched:
                    matched[label] = matcher.match(label).class_id
                class_id = None if label is None else matched[label]
                _count(
                    found,
                    picture,
                    image,
                    class_id,
                    [np.asarray(one.probabilities_C) for one in said],
                    students[0].vectors.names,
                )
    return found


def _decoded(batch: list[Picture], limit: int, found: Comparison) -> Iterator[tuple[Picture, Image.Image]]:
    from ..samples.images import IMAGES

    for picture in batch:
        try:
            with one_image(picture.path):
                yield picture, IMAGES.decode(picture.read(), limit)
        except BadImage:
            found.unusable += 1


def _count(
    found: Comparison,
    picture: Picture,
    image: Image.Image,
    class_id: int | None,
    p: list[Any],
    classes: tuple[str, ...],
) -> None:
    first = [int(one.argmax()) for one in p]
    found.images += 1
    found.agreed += first[0] == first[1]
    kind = "They differ"
    if class_id is not None:
        name = classes[class_id]
        found.total[name] = found.total.get(name, 0) + 1
        for counts, one in zip(found.right, first, strict=True):
            counts[name] = counts.get(name, 0) + (one == class_id)
        right = [one == class_id for one in first]
        if right[0] != right[1]:
            kind = f"Only {found.names[0] if right[0] else found.names[1]} is right"
        elif not right[0]:
            kind = "Both are wrong"
    if first[0] == first[1] and kind != "Both are wrong":
        return
    distance = float(np.abs(p[0] - p[1]).sum() / 2)
    kept = found.examples.setdefault(kind, [])
    if len(kept) == _EXAMPLES and kept[-1][0] >= distance:
        return
    top = [[(int(i), float(one[i])) for i in np.argsort(-one)[:3]] for one in p]
    kept.append((distance, _Example(picture.key, picture.path, picture.label, _thumbnail(image), top)))
    kept.sort(key=lambda item: -item[0])
    del kept[_EXAMPLES:]


def _thumbnail(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_EDGE, _EDGE))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=60)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _tiles(found: Comparison) -> list[Tile]:
    total = sum(found.total.values())
    tiles = [
        Tile(value=f"{found.images:,}", name="images compared"),
        Tile(value=f"{found.agreed / found.images:.1%}", name="same first class"),
    ]
    if total:
        tiles += [
            Tile(value=f"{sum(counts.values()) / total:.1%}", name=f"right: {name}")
            for name, counts in zip(found.names, found.right, strict=True)
        ]
    return tiles


def _sections(found: Comparison) -> list[Section]:
    sections = []
    if found.total:
        rows = [(name, found.right[0][name] / n, found.right[1][name] / n, n) for name, n in found.total.items()]
        rows.sort(key=lambda row: (-abs(row[1] - row[2]), row[0]))
        values: list[Any] = [
            {"name": name.partition(",")[0], "value": value, "run": run}
            for name, a, b, _ in rows[:_BARS]
            for run, value in zip(found.names, (a, b), strict=True)
        ]
        chart = Chart(
            id="per-class",
            title="Accuracy by class",
            caption="The classes in which they differ most.",
            spec=charts.pairs(values, found.names, "accuracy"),
            wide=True,
            height=70 + 9 * len(values),
        )
        table = [[name, f"{n:,}", f"{a:.1%}", f"{b:.1%}", f"{100 * (a - b):+.1f}"] for name, a, b, n in rows]
        head = [
            ("class", "l"),
            ("images", "r"),
            (found.names[0], "r"),
            (found.names[1], "r"),
            ("difference, points", "r"),
        ]
        blocks: list[Block] = [Charts(charts=[chart]), Table(title="All classes", head=head, rows=table, filter=True)]
        sections.append(Section(id="per-class-section", title="By class", blocks=blocks))
    if any(found.examples.values()):
        words = [f"Images that the two see most differently. Bars: {found.names[0]} above, {found.names[1]} below."]
        sections.append(Section(id="samples", title="Where they differ", words=words, blocks=[GalleryPlace()]))
    return sections


def _data(found: Comparison, classes: tuple[str, ...]) -> dict[str, Any]:
    samples: dict[str, Any] = {}
    images: dict[str, list[str]] = {}
    galleries = []
    for kind, kept in sorted(found.examples.items()):
        groups = []
        for distance, one in kept:
            row = str(len(samples))
            bars = [(i, round(p, 3), who) for who, found_p in enumerate(one.probabilities) for i, p in found_p]
            samples[row] = [
                one.key,
                one.path,
                one.label,
                None,
                None,
                None,
                None,
                bars,
                [],
            ]
            images[row] = [one.picture]
            groups.append({"rows": [int(row)], "note": f"total variation {distance:.2f}"})
        galleries.append({"title": kind, "words": f"{len(kept)} of them, the most different first.", "groups": groups})
    return {"classes": list(classes), "samples": samples, "galleries": galleries, "images": images}
