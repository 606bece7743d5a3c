"""Owns the pictures of a page: views in galleries, whole images of pairs, and one sheet of small ones for the map."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...storage_schemas.errors import DamagedError
from ...storage_schemas.manifest import Entry
from ..corpora.images import BadImage
from ..measures.sample_block import SampleFacts
from ..measures.stored import Stored
from ..samples.thumbnails import Thumbnails, webp, whole_pictures
from ..views.spec import CENTER, ViewSpec
from .survey import Group

#: Pixels of a view in a gallery, and of a picture on the map's sheet; views of one sample.
EDGE, TILE, VIEWS = 96, 48, 4

#: Bytes of base64 for views: with the script and the sheet a page stays below its limit.
_FOR_VIEWS = 2_000_000

#: Quality of the sheet, as WebP has it.
_SHEET_QUALITY = 50


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Samples under one heading."""

    title: str
    words: str
    groups: list[Group]

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "words": self.words,
            "groups": [{"rows": list(group.rows), "note": group.note} for group in self.groups],
        }


@dataclass
class Pictures:
    """Base64 of WebP files, by row: of views, and of whole images; and the map's sheet.

    Attributes:
        problems: tars that cannot be read, as lines for people.
    """

    views: dict[int, list[str]] = field(default_factory=dict)
    whole: dict[int, str] = field(default_factory=dict)
    sheet: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


def draw_pictures(stored: Stored, galleries: Sequence[Gallery], on_map: Sequence[int]) -> Pictures:
    """Draw the views that the galleries show, each as the teacher saw it, and the sheet.

    Args:
        stored: whose shards are at hand.
        on_map: rows on the sheet.
    """
    assert stored.shards is not None
    found = Pictures()
    groups = [group for gallery in galleries for group in gallery.groups]
    rows = sorted({row for group in groups for row in group.rows})
    spec = ViewSpec.from_json(stored.description.views, stored.location)
    count = VIEWS
    with Thumbnails(stored.shards, spec) as thumbnails:
        if thumbnails.no_pictures:
            return found
        if rows:
            # A look at a few of them says how many views of each there is room for.
            looked = [
                len(_base64(v))
                for row in rows[:: -(-len(rows) // 12)]
                for v in _views(found, stored, thumbnails, row, 1)
            ]
            usual = sum(looked) / len(looked) if looked else 1
            count = max(1, min(VIEWS, int(_FOR_VIEWS / max(usual * len(rows), 1))))
        for row in rows:
            if files := _views(found, stored, thumbnails, row, count):
                found.views[row] = [_base64(file) for file in files]
        found.sheet = _sheet(found, stored, thumbnails, on_map)
    with whole_pictures(stored.shards) as whole:
        for row in sorted({row for group in groups if len(group.rows) > 1 for row in group.rows}):
            pixels = _pixels(found, whole, row, [CENTER], EDGE + 24)
            if pixels is not None:
                found.whole[row] = _base64(webp(pixels[0]))
    return found


def samples_json(facts: Iterable[SampleFacts], entries: Mapping[int, Entry], full: set[int]) -> dict[str, Any]:
    """What page.js knows of each sample, by row: path and label where there is an entry; views and more classes of those in `full`."""
    found: dict[str, Any] = {}
    for one in facts:
        classes = one.classes if one.row in full else one.classes[:2]
        found[str(one.row)] = [
            one.key,
            entries[one.row].path if one.row in entries else None,
            entries[one.row].label if one.row in entries else None,
            _rounded(one.confidence),
            _rounded(one.entropy),
            _rounded(one.agreement),
            _rounded(one.disagreement),
            [[i, _rounded(p)] for i, p in classes],
            [[i, _rounded(p)] for i, p in one.views] if one.row in full else [],
        ]
    return found


def _views(found: Pictures, stored: Stored, thumbnails: Thumbnails, row: int, count: int) -> list[bytes]:
    pixels = _pixels(found, thumbnails, row, stored.view_params(row)[:count], EDGE)
    return [] if pixels is None else [webp(view) for view in pixels]


def _pixels(found: Pictures, thumbnails: Thumbnails, row: int, params: Any, edge: int) -> NDArray[np.uint8] | None:
    """None for an image that cannot be drawn here; a tar that cannot be read is a problem, said once."""
    try:
        return thumbnails.pixels(row, params, edge)
    except BadImage:
        return None
    except DamagedError as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return None


def _sheet(found: Pictures, stored: Stored, thumbnails: Thumbnails, rows: Sequence[int]) -> dict[str, Any] | None:
    """First views side by side in one picture, and where each is."""
    tiles: dict[int, NDArray[np.uint8]] = {}
    for row in rows:
        pixels = _pixels(found, thumbnails, row, stored.view_params(row)[:1], TILE)
        if pixels is not None:
            tiles[row] = pixels[0]
    if not tiles:
        return None
    columns = max(1, int(np.ceil(np.sqrt(len(tiles)))))
    lines = -(-len(tiles) // columns)
    sheet = np.zeros((lines * TILE, columns * TILE, 3), np.uint8)
    for place, pixels in enumerate(tiles.values()):
        y, x = place // columns * TILE, place % columns * TILE
        sheet[y : y + TILE, x : x + TILE] = pixels
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "WEBP", quality=_SHEET_QUALITY, method=4)
    return {
        "url": f"data:image/webp;base64,{_base64(file.getvalue())}",
        "columns": columns,
        "lines": lines,
        "places": {str(row): place for place, row in enumerate(tiles)},
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _rounded(value: float) -> float:
    return round(value, 3)
