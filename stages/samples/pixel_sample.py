"""Owns the pixel sample: a few rendered views whose digests show that a machine decodes and renders as another one did.

`cache` takes it when a store is created; a command that renders the store's views later takes it again and compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Json, digest_json
from ...storage_schemas.json_file import as_schema
from ...storage_schemas.store_description import StoreDescription
from ..corpora.images import BadImage
from ..corpora.shards import ShardReader, ShardSet
from ..views.spec import ViewSpec
from ..views.versions import install_hint, versions_text
from .kind import draw_views
from .registry import kind_named

#: Rows in a sample, spread evenly over the corpus; all usable ones where there are fewer.
SAMPLE_ROWS = 16

#: Random views rendered of each, stored or not; fewer of large images, which take long. One a row would not do, since a
#: change may touch few views: between Pillow 12 and 13 the resampler changed for 18 % of the default boxes on images of
#: 500x375 pixels at size 224, for 9 % on 640x480, for 1 % on 1280x960, and for none on 300x200.
VIEWS_PER_ROW = 8

#: At most so many pixels of a row's image, counted once for each view of it.
_PIXELS_PER_ROW = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A view that has other pixels here: its row, its number, its recorded digest, and what was found instead."""

    row: int
    view: int
    expected: str
    found: str


@dataclass(frozen=True, kw_only=True)
class PixelSample:
    """Views of a corpus as one machine renders them.

    Attributes:
        rows: of the samples.
        size: pixels of the square views: the teacher's.
        digests: for each row its first views', the centre view's alone: blake2b-64 of its array with the channels last, for
            an image uint8 (height, width, 3), hexadecimal.
        versions: of the libraries that decide pixels, by name.
    """

    rows: tuple[int, ...]
    size: int
    digests: tuple[tuple[str, ...], ...]
    versions: Mapping[str, str]

    @staticmethod
    def take(shards: ShardSet, spec: ViewSpec, size: int) -> PixelSample:
        """Render a sample here: the first views of each row, as the spec draws them for any number of views.

        From each of 16 places, evenly spaced, it takes the next usable row that it does not have, around the end of the
        corpus: so unusable rows are skipped in one order everywhere, and 16 usable ones are found where there are 16.
        """
        corpus, kind = shards.corpus, kind_named(shards.corpus.sample_kind, where=shards.location)
        rows: list[int] = []
        digests: list[tuple[str, ...]] = []
        seen: set[int] = set()
        places = dict.fromkeys(i * corpus.num_rows // SAMPLE_ROWS for i in range(SAMPLE_ROWS))
        with _Renderer(shards, spec, size) as renderer:
            for place in places:
                before = len(rows)
                for row in renderer.usable_rows(place):
                    if row in seen:
                        continue
                    seen.add(row)
                    try:
                        digests.append(renderer.digests(row))
                    except BadImage:
                        continue
                    rows.append(row)
                    break
                if len(rows) == before:
                    break  # the whole corpus was seen
        return PixelSample(rows=tuple(rows), size=size, digests=tuple(digests), versions=kind.versions())

    def differences(self, shards: ShardSet, spec: ViewSpec) -> list[Difference]:
        """Render the same views here, and return those that come out otherwise.

        Raises:
            DamagedError: a tar is not what its receipt vouches for.
        """
        found = []
        with _Renderer(shards, spec, self.size) as renderer:
            for row, expected in zip(self.rows, self.digests, strict=True):
                try:
                    here = renderer.digests(row, len(expected))
                except BadImage as bad:
                    here = (f"no image ({bad})",) * len(expected)
                pairs = enumerate(zip(expected, here, strict=True))
                found += [Difference(row, view, there, this) for view, (there, this) in pairs if there != this]
        return found

    def check(self, shards: ShardSet, spec: ViewSpec, *, where: object, hint: str) -> None:
        """Refuse a machine that renders otherwise. `hint`: what to do, besides installing other versions.

        Raises:
            MismatchError: names the first view that differs, and the libraries whose versions do.
            DamagedError: a tar is not what its receipt vouches for.
        """
        differences = self.differences(shards, spec)
        if not differences:
            return
        here = kind_named(shards.corpus.sample_kind, where=shards.location).versions()
        first, more = differences[0], len(differences) - 1
        others = f" (and {more} more of {self.num_views} views)" if more else ""
        raise MismatchError(
            "this machine renders other pixels than the teacher saw",
            code="pixels-differ-here",
            where=f"{where}, row {first.row}, view {first.view}{others}",
            expected=first.expected,
            found=f"{first.found} ({versions_text(self.versions, here)})",
            hint=", or ".join(filter(None, (install_hint(self.versions, here), hint))),
        )

    @property
    def num_views(self) -> int:
        """Views in the sample, of all rows."""
        return sum(map(len, self.digests))

    @property
    def digest(self) -> str:
        """blake2b-128 over which views they are and what they look like; versions decide nothing."""
        return digest_json([list(self.rows), self.size, [list(views) for views in self.digests]])

    def to_json(self) -> Json:
        """For the attribute `cache` of a store, under `pixels`."""
        return {
            "rows": list(self.rows),
            "size": self.size,
            "digests": [list(views) for views in self.digests],
            "versions": dict(self.versions),
        }

    @staticmethod
    def from_json(fields: Json, where: object = None) -> PixelSample:
        """What `to_json` gave.

        Raises:
            DamagedError: something else.
        """
        return as_schema(
            fields,
            PixelSample,
            what="not a sample of rendered views",
            code="pixel-sample-malformed",
            where=where,
            hint="restore the store from a copy",
        )

    @staticmethod
    def of_store(description: StoreDescription, where: object) -> PixelSample | None:
        """The sample that a store records, or None where it records none."""
        return None if description.pixels is None else PixelSample.from_json(description.pixels, where)


def check_sample(
    shards: ShardSet, sample: PixelSample | None, spec: ViewSpec, *, where: object, accept_other: bool
) -> str:
    """Check that this machine renders a store's views as its teacher saw them, before anything is made of them.

    Returns a line for people: what differs, where that is accepted, or that the store recorded no sample; else ''.

    Args:
        where: the store.

    Raises:
        MismatchError: it does not; names row, view, digests and versions.
        DamagedError: a tar is not what its receipt vouches for.
    """
    if sample is None:
        return f"{where} records no rendered views: whether this machine renders the same pixels is not known"
    try:
        sample.check(
            shards,
            spec,
            where=where,
            hint="run `teachonce cache` again into another store, or add --accept-other-pixels",
        )
    except MismatchError as error:
        if not accept_other:
            raise
        here = kind_named(shards.corpus.sample_kind, where=shards.location).versions()
        return f"accepted: {error.what}: {error.where}, {versions_text(sample.versions, here)}"
    return ""


class _Renderer:
    """Renders views of a corpus, one open shard at a time."""

    def __init__(self, shards: ShardSet, spec: ViewSpec, size: int) -> None:
        self._shards, self._size = shards, size
        self._kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        self._spec = spec.first(VIEWS_PER_ROW)
        self._shard = -1
        self._reader: ShardReader | None = None

    def __enter__(self) -> _Renderer:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def _open(self, shard: int) -> ShardReader:
        if self._reader is None or shard != self._shard:
            if self._reader is not None:
                self._reader.close()
            self._reader, self._shard = self._shards.reader(shard), shard
        return self._reader

    def usable_rows(self, start: int) -> Iterator[int]:
        """Rows whose files can be used, from `start` on and around the end."""
        corpus = self._shards.corpus
        first = start // corpus.shard_size
        for step in range(corpus.num_shards + 1):
            rows = self._open((first + step) % corpus.num_shards).index["row"]
            if step == 0:
                rows = rows[rows >= start]
            elif step == corpus.num_shards:
                rows = rows[rows < start]
            yield from rows.tolist()

    def digests(self, row: int, count: int | None = None) -> tuple[str, ...]:
        """Of the pixels of one row's first `count` views; None for as many as a sample takes.

        Raises:
            BadImage: the image cannot be decoded here, or could not when these shards were made.
        """
        reader = self._open(row // self._shards.corpus.shard_size)
        if row in reader.invalid:
            raise BadImage(reader.invalid[row])
        kind = self._kind
        sample = kind.decode(reader.read(row), self._shards.corpus.max_pixels)
        if count is None:
            count = max(1, min(VIEWS_PER_ROW, _PIXELS_PER_ROW // kind.positions(sample)))
        params = kind.params(sample, reader.key(row), self._spec)[:count]
        views = draw_views(kind, sample, params, self._size, self._spec)
        if "channel" in kind.axes:
            views = np.moveaxis(views, 1 + kind.axes.index("channel"), -1)
        return tuple(hashlib.blake2b(view.tobytes(), digest_size=8).hexdigest() for view in views)
