"""Owns the page of a target store: what it is in words, how sure the teacher is, its classes, a map, and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from ...pipeline.tables import bytes_text
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted, typed
from ..measures.confusions import cosines_of, nearest_classes
from ..measures.failed import failed_in_store
from ..measures.generations import generations_of
from ..measures.soft_labels import SoftLabels
from ..measures.stored import Stored
from ..reports.inspect_text import described
from ..reports.store_words import store_words
from . import charts
from .embedding_map import LEAST, places
from .gallery import Gallery, Pictures, draw_pictures, samples_json
from .page import Block, Chart, Charts, Facts, GalleryPlace, Page, Section, Table, Tile
from .survey import COMPARED, GALLERY, MATCHED, ON_MAP, PICTURED, Group, Survey

#: Classes that get a bar, pairs of classes, and classes in the square of similarities; cells of the map of shards.
_BARS, _PAIRS, _SQUARE, _CELLS = 20, 20, 36, 1000

#: Unusable images that are named.
_FAILED = 500

#: Groups whose names stand on the map, and samples that such a group has at least.
_NAMES, _NAMED = 40, 6

#: Colours on the map, in turn, without that of all others.
_COLORS = 9


def store_page(stored: Stored, facts: dict[str, Any], soft: SoftLabels | None, survey: Survey | None) -> Page:
    """The page.

    Args:
        facts: of `inspect_store`, which `survey` watched.
        soft: what was measured there.
        survey: None where nothing is cached yet.
    """
    galleries: list[Gallery] = []
    pictures = Pictures()
    sections = [_about(stored, facts, survey)]
    notes, data = list(facts["notes"]), {}
    if survey is not None:
        if soft is not None and soft.samples:
            sections += [_certainty(facts, soft, survey), _classes(stored, soft, survey)]
        galleries = [gallery for gallery in _galleries(stored, survey) if gallery.groups]
        on_map, vectors = survey.on_map()
        if stored.shards is not None:
            pictures = draw_pictures(stored, galleries, on_map)
        in_galleries = {row for gallery in galleries for group in gallery.groups for row in group.rows}
        findable = {one.row: one for one in survey.findable()}
        known = {**survey.facts(in_galleries | set(on_map)), **findable}
        if len(on_map) >= LEAST:
            sections.append(_map(stored, survey, on_map, places(vectors), known))
        if galleries:
            sections.append(_gallery_section(stored, survey))
        entries = {row: entry for row in sorted(known) if (entry := stored.entry(row)) is not None}
        data = {
            "classes": [stored.class_name(i) for i in range(stored.num_classes)] if survey.has_logits else [],
            "samples": samples_json(known.values(), entries, in_galleries),
            "galleries": [gallery.to_json() for gallery in galleries],
            "images": {str(row): files for row, files in pictures.views.items()},
            "whole": {str(row): file for row, file in pictures.whole.items()},
            "sprite": pictures.sheet,
            "command": f"teachonce inspect {typed(stored.location)}",
            "all_here": len(findable) == survey.total,
        }
    sections.append(_stored_arrays(facts))
    return Page(
        kicker="Target store",
        title=stored.location.name,
        lead=store_words(facts),
        tiles=_tiles(facts),
        problems=list(dict.fromkeys([*facts["problems"], *(survey.problems if survey else ()), *pictures.problems])),
        notes=notes,
        sections=sections,
        data=data,
        has_find=survey is not None,
    )


def _tiles(facts: dict[str, Any]) -> list[Tile]:
    tiles = []
    if "coverage" in facts:
        coverage = facts["coverage"]
        tiles.append(Tile(value=f"{coverage['valid']:,}", name="usable images"))
        tiles.append(
            Tile(value=str(facts["views"]["count"]), name="view each" if facts["views"]["count"] == 1 else "views each")
        )
    if facts["class_vectors"]:
        tiles.append(Tile(value=f"{facts['class_vectors']['classes']:,}", name="classes"))
    tiles.append(Tile(value=bytes_text(sum(a["bytes_on_disk"] for a in facts["arrays"])), name="on disk"))
    soft = facts.get("soft_labels")
    if soft and soft["samples"]:
        tiles.append(Tile(value=f"{soft['confidence']['mean']:.2f}", name="mean confidence"))
        if facts["views"]["count"] > 1:
            tiles.append(Tile(value=f"{soft['views_agree']:.0%}", name="views all agree"))
    return tiles


def _about(stored: Stored, facts: dict[str, Any], survey: Survey | None) -> Section:
    blocks: list[Block] = [Facts(rows=described(facts))]
    words = []
    if "coverage" in facts:
        coverage = facts["coverage"]
        words.append(
            f"{coverage['shards_done']:,} of {counted(coverage['shards'], 'shard')} are done: {coverage['rows_done']:,} of "
            f"{coverage['rows']:,} rows, {coverage['valid']:,} of them usable and {coverage['invalid']:,} not."
        )
        if survey is not None:
            chart = Chart(
                id="coverage",
                title="Coverage",
                caption="Each cell is a shard or a run of shards; the stronger its colour, the surer the teacher is there. Grey: not done.",
                spec=charts.coverage(_shards(stored, survey)),
                wide=True,
                height=60,
            )
            blocks.append(Charts(charts=[chart]))
        if coverage["invalid"]:
            blocks.append(_failed(stored, coverage))
        costs = _costs(facts["encoding"])
        if costs.rows:
            blocks.append(costs)
        if generations := generations_of(stored):
            rows = [[one.name, one.words, f"{one.rows:,}", str(one.views), one.written] for one in generations]
            head = [("generation", "l"), ("what it added", "l"), ("rows", "r"), ("views", "r"), ("written", "l")]
            words.append(f"It has grown or been mended: this is generation {generations[-1].name}.")
            blocks.append(Table(title=f"{len(rows)} generations", head=head, rows=rows, open=True))
    return Section(id="about", title="What it is", words=words, blocks=blocks)


def _failed(stored: Stored, coverage: dict[str, Any]) -> Table:
    """The images that cannot be used, by row, and why."""
    receipts = stored.receipts.receipts(stored.rows.num_shards)
    failed = list(islice(failed_in_store(receipts, stored.location, stored.shards), _FAILED))
    kinds = ", ".join(f"{count:,} × {reason}" for reason, count in coverage["reasons"].items())
    more = f" (the first {_FAILED:,} of {coverage['invalid']:,})" if coverage["invalid"] > len(failed) else ""
    return Table(
        title=f"Unusable images{more}: {kinds}",
        head=[("row", "r"), ("path", "l"), ("reason", "l"), ("found by", "l")],
        rows=[[str(bad.row), bad.path, bad.reason, bad.stage] for bad in failed],
        filter=True,
    )


def _costs(encoding: dict[str, Any]) -> Table:
    """What the encoding of each target was measured to cost; no rows where it was not."""
    rows = []
    for target, one in encoding.get("targets", {}).items():
        spreads = [(f"KL divergence, T = {t}", spread) for t, spread in (one.get("kl") or {}).items()]
        if one.get("cosine_distance"):
            spreads.append(("1 - cosine", one["cosine_distance"]))
        rows += [
            [
                target,
                one["name"],
                f"{one['bytes_per_view']:g}",
                what,
                *(f"{spread[c]:.3g}" for c in ("mean", "p99", "max")),
            ]
            for what, spread in spreads
        ]
    head = [("target", "l"), ("encoding", "l"), ("bytes a view", "r"), ("against fp32", "l")]
    head += [("mean", "r"), ("p99", "r"), ("max", "r")]
    return Table(title="What the encoding costs, as measured on the first shards", head=head, rows=rows, open=True)


def _shards(stored: Stored, survey: Survey) -> list[Json]:
    """The cells of the coverage chart: runs of shards where there are many."""
    spec, done = stored.rows, set(stored.shards_done())
    run = -(-spec.num_shards // _CELLS)
    cells: list[Json] = []
    for first in range(0, spec.num_shards, run):
        shards = range(first, min(first + run, spec.num_shards))
        here = sum(shard in done for shard in shards)
        samples = int(survey.tallies.samples_S[first : shards.stop].sum()) if survey.tallies else None
        confidence = float(survey.tallies.confidence_S[first : shards.stop].sum()) if survey.tallies else 0.0
        cells.append(
            {
                "name": str(first) if len(shards) == 1 else f"{first} to {shards.stop - 1}",
                "done": here,
                "of": len(shards),
                "state": "done" if here == len(shards) else "not done" if not here else f"{here} of {len(shards)} done",
                "valid": samples,
                "confidence": confidence / samples if samples else None,
            }
        )
    return cells


def _certainty(facts: dict[str, Any], soft: SoftLabels, survey: Survey) -> Section:
    views = facts["views"]["count"]
    found = facts["soft_labels"]
    shown = [
        Chart(
            id="confidence",
            title="Confidence",
            caption="Largest probability of each view.",
            spec=charts.histogram(*soft.confidence.histogram(40), "probability of the first class"),
        ),
        Chart(
            id="entropy",
            title="Entropy",
            caption=f"Of each view's soft label; a uniform one has {found['entropy_of_uniform']:.2f} nats.",
            spec=charts.histogram(*soft.entropy.histogram(40), "nats"),
        ),
    ]
    if views > 1 and survey.tallies is not None:
        counts = survey.tallies.agreeing_V
        rows = [(str(i), int(n) / soft.samples) for i, n in enumerate(counts.tolist())]
        shown.append(
            Chart(
                id="agreement",
                title="Agreement between views",
                caption=f"{found['views_agree']:.1%} of the images have one first class in all {views} views.",
                spec=charts.columns(rows, "images", "views whose first class is the image's"),
            )
        )
    words = (
        f"The teacher's largest probability is {found['confidence']['mean']:.2f} on average (median "
        f"{found['confidence']['median']:.2f}); its soft labels have {found['entropy']['mean']:.2f} nats of entropy."
    )
    return Section(
        id="certainty",
        title="How sure the teacher is",
        words=[words],
        blocks=[Charts(charts=shown, columns=3 if len(shown) == 3 else 2)],
    )


def _classes(stored: Stored, soft: SoftLabels, survey: Survey) -> Section:
    order = np.lexsort((np.arange(len(soft.top1_C)), -soft.top1_C))
    seen = [int(i) for i in order if soft.top1_C[i]]
    shown = [
        Chart(
            id="classes",
            title="First classes",
            caption=f"Of {len(seen):,} classes that are some image's first, the {min(_BARS, len(seen))} most frequent.",
            spec=charts.bars([(stored.class_name(i), int(soft.top1_C[i])) for i in seen[:_BARS]], "images"),
            height=400,
        )
    ]
    pairs = survey.confusions.most(_PAIRS) if survey.confusions else []
    if pairs:
        rows = [(f"{_short(stored.class_name(a))} / {_short(stored.class_name(b))}", mass) for a, b, _, mass in pairs]
        shown.append(
            Chart(
                id="confused",
                title="Most confused pairs",
                caption="Pairs that are first and second of an image, by the probability that the second one takes.",
                spec=charts.bars(rows, "images' worth of probability", form=",.2~f", second="pair"),
                height=400,
            )
        )
    blocks: list[Block] = [Charts(charts=shown)]
    if stored.vectors is not None and stored.vectors.num_classes == stored.num_classes and len(seen) > 1:
        vectors_CD = stored.vectors.vectors_CD
        ids, cosines = cosines_of(vectors_CD, seen[:_SQUARE])
        names = _distinct([stored.class_name(i) for i in ids])
        square = Chart(
            id="similarity",
            title="Similarity of class vectors",
            caption=f"Cosines between the {len(ids)} most frequent classes, like ones beside each other.",
            spec=charts.heatmap(names, cosines.tolist(), "cosine"),
            height=110 + 10 * len(names),
        )
        near = nearest_classes(vectors_CD, _PAIRS)
        nearest = Chart(
            id="nearest",
            title="Nearest class vectors",
            caption="Of all classes, each with its nearest: what the teacher's vectors can hardly tell apart.",
            spec=charts.bars(
                [(f"{_short(stored.class_name(a))} / {_short(stored.class_name(b))}", cos) for a, b, cos in near],
                "cosine",
                form=".2f",
                second="pair",
            ),
            height=400,
        )
        blocks.append(Charts(charts=[square, nearest]))
    confidence_C = survey.tallies.confidence_C if survey.tallies else np.zeros(len(soft.top1_C))
    table = [
        [
            str(i),
            stored.class_name(i),
            f"{int(n):,}",
            f"{n / soft.samples:.2%}",
            f"{confidence_C[i] / n:.3f}" if n else "",
        ]
        for i, n in enumerate(soft.top1_C.tolist())
    ]
    blocks.append(
        Table(
            title=f"All {len(table):,} classes",
            head=[("id", "r"), ("class", "l"), ("images", "r"), ("share", "r"), ("mean confidence", "r")],
            rows=table,
            filter=True,
        )
    )
    return Section(id="classes-section", title="Classes", blocks=blocks)


def _galleries(stored: Stored, survey: Survey) -> list[Gallery]:
    found = []

    def ranked(name: str, title: str, words: str) -> None:
        if name in survey.rankings:
            groups = [Group((one.row,)) for one in survey.rankings[name].samples]
            found.append(Gallery(title=title, words=words, groups=groups))

    of = _of_rows(survey.total, COMPARED)
    ranked("unsure", "Least confident", "The smallest largest probability, by the mean over the views; of all rows.")
    ranked("confidence", "Most confident", "The largest probability, by the mean over the views; of all rows.")
    ranked(
        "disagreement",
        "Views disagree",
        "Views of one image that the teacher labels most differently (Jensen-Shannon divergence); of all rows. Often a crop shows "
        "something else, or hardly anything.",
    )
    wrong = survey.wrong_labels()
    if wrong is not None:
        words = f"Images that are nearer to those of another label, in what the teacher makes of them; {of}."
        found.append(Gallery(title="Likely wrong labels", words=words, groups=wrong))
    words = (
        "Equal files, of all rows; then images whose pictures correlate most where they show the same: re-encoded, resized, mirrored "
        f"or cropped copies. Vectors are compared of {of}, whole pictures of {_of_rows(survey.total, PICTURED)}."
    )
    found.append(Gallery(title="Near duplicates", words=words, groups=survey.duplicates()))
    stale = survey.stale_rows()
    if stale is not None:
        words = (
            "Rows whose targets go least with the pictures of their views, as if they were another image's; "
            f"{_of_rows(survey.total, MATCHED)}. Without such rows, these are merely the oddest pictures."
        )
        found.append(Gallery(title="Targets of another image?", words=words, groups=stale))
    random = [Group((one.row,)) for one in survey.findable()[:GALLERY]]
    found.append(Gallery(title="Random", words="Drawn by the keys, which are hashes.", groups=random))
    return found


def _gallery_section(stored: Stored, survey: Survey) -> Section:
    views = stored.rows.num_views
    words = "The views are drawn as the teacher saw them, at their stored boxes" + (
        f" (the first {min(views, 4)} of {views})." if views > 4 else "."
    )
    if stored.shards is None:
        words = f"No pictures: {stored.no_paths}."
    return Section(id="samples", title="Samples", words=[words], blocks=[GalleryPlace()])


def _map(stored: Stored, survey: Survey, rows: Sequence[int], places_N2: Any, known: dict[int, Any]) -> Section:
    labels = {row: _group_of(stored, known.get(row)) for row in rows}
    names, counts = np.unique([label for label in labels.values() if label], return_counts=True)
    groups = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:_NAMES]]
    points: list[Json] = [
        {
            "x": round(float(x), 2),
            "y": round(float(y), 2),
            "row": row,
            "g": labels[row] if labels[row] in groups else "",
        }
        for row, (x, y) in zip(rows, places_N2.tolist(), strict=True)
    ]
    points.sort(key=lambda point: point["g"] != "")  # type: ignore[index]
    colors = [f"css:--c{i % _COLORS}" for i in range(len(groups))]
    spec = charts.scatter(points, _names(rows, places_N2, labels), [*groups, ""], [*colors, f"css:--c{_COLORS}"])
    what = "labels" if any(one.label is not None for one in known.values()) else "first classes"
    chart = Chart(
        id="map",
        title=f"Map of the {survey.target.removesuffix('s')}s",
        caption=f"{_of_rows(survey.total, ON_MAP).capitalize()}, by t-SNE: near points are alike; colours and names are "
        f"{what}. Point at one for its picture, click for its details, drag to move, scroll with Shift to zoom.",
        spec=spec,
        wide=True,
        height=540,
    )
    return Section(id="map-section", title="Map", blocks=[Charts(charts=[chart])])


def _names(rows: Sequence[int], places_N2: Any, groups: dict[int, str | None]) -> list[Json]:
    """The names of the largest groups, each at the middle one of its points."""
    by_group: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if (group := groups[row]) is not None:
            by_group.setdefault(group, []).append(i)
    largest = sorted(by_group.items(), key=lambda item: (-len(item[1]), item[0]))[:_NAMES]
    found: list[Json] = []
    for name, indices in largest:
        if len(indices) >= _NAMED:
            points = places_N2[indices]
            middle = points[np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin()]
            found.append({"x": round(float(middle[0]), 2), "y": round(float(middle[1]), 2), "name": name})
    return found


def _group_of(stored: Stored, one: Any) -> str | None:
    if one is None:
        return None
    if one.label is not None:
        return str(one.label)
    return _short(stored.class_name(one.first)) if one.first >= 0 else None


def _stored_arrays(facts: dict[str, Any]) -> Section:
    rows = [
        [
            a["name"],
            ", ".join(a["axes"]),
            " × ".join(f"{n:,}" for n in a["shape"]),
            a["dtype"],
            bytes_text(a["bytes_on_disk"]),
        ]
        for a in facts["arrays"]
    ]
    head = [("array", "l"), ("axes", "l"), ("shape", "l"), ("type", "l"), ("on disk", "r")]
    blocks: list[Block] = [Table(title="Arrays", head=head, rows=rows, open=True)]
    if facts.get("values"):
        columns = ("min", "mean", "max", "std")
        values = [
            [
                name,
                *(f"{value[c]:.4g}" if c in value else "" for c in columns),
                str(value["nan"]),
                str(value["infinite"]),
            ]
            for name, value in facts["values"].items()
        ]
        head = [("target", "l"), *((c, "r") for c in columns), ("NaN", "r"), ("infinite", "r")]
        blocks.append(Table(title="Values in usable rows", head=head, rows=values, open=True))
    return Section(id="arrays", title="Stored arrays", blocks=blocks)


def _of_rows(total: int, sampled: int) -> str:
    """`all 2,350 rows`, or `a random sample of about 20,000 of 1,000,000 rows`."""
    return f"all {total:,} rows" if total <= sampled else f"a random sample of about {sampled:,} of {total:,} rows"


def _short(name: str) -> str:
    """A class's first synonym."""
    return name.partition(",")[0].strip() or name


def _distinct(names: list[str]) -> list[str]:
    """Short names, whole where two would be the same."""
    short = [_short(name) for name in names]
    return [s if short.count(s) == 1 else f"{name} ({i})" for i, (s, name) in enumerate(zip(short, names, strict=True))]
