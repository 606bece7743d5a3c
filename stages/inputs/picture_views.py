"""Owns making the views of pictures that a model sees, as work that is done ahead (see `decoding`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.errors import Unreachable
from ...storage_schemas.samples import content_digest
from ..corpora.images import BadImage, one_image
from ..decoding.layout import ArrayLayout
from ..samples.kind import Sample, SampleKind
from ..views.spec import ViewSpec
from .picture_files import PictureFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One picture of a task.

    Attributes:
        file: what the work's `files` read.
        key: that its views are drawn by; a centre view needs none.
        digest: that its content must have to be the picture that is meant; None where any content is.
        box: a VIEW record to draw it at too, in the work's other view, if its content is the one that is meant; None for none.
    """

    file: Any
    key: str = ""
    digest: str | None = None
    box: np.void | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a picture.

    Attributes:
        reason: why it cannot be used; None where its view was drawn.
        is_meant: whether its content is the one that was meant.
    """

    reason: str | None = None
    is_meant: bool = False


@dataclass(frozen=True, kw_only=True)
class PictureViews:
    """Reads and decodes each picture of a task once and draws its view, and where asked for a second one.

    A task is some `Wanted`. Arrays: (picture, *shape of the kind), where unusable pictures leave theirs as it is; and, with
    `other`, the same of those that have a box. Beside them an `Outcome` for each picture.

    Attributes:
        files: that the pictures are in.
        kind, limit: of the samples, as in `ImageSet` (there it is `max_pixels`).
        size: of the model's input.
        view: spec of the view, which is number `number` of those that it draws.
        other: spec of the second view.
        lenient: any trouble makes the picture unusable, also that of the moment: for pictures that a user names one by one.
    """

    files: PictureFiles
    kind: SampleKind
    limit: int
    size: int
    view: ViewSpec
    number: int = 0
    other: ViewSpec | None = None
    lenient: bool = False

    def layout(self, task: Sequence[Wanted]) -> ArrayLayout:
        dtype, shape = np.dtype(self.kind.dtype).str, self.kind.shape(self.size)
        first = (dtype, (len(task), *shape))
        if self.other is None:
            return [first]
        return [first, (dtype, (sum(wanted.box is not None for wanted in task), *shape))]

    def make(self, task: Sequence[Wanted], arrays: list[NDArray[Any]]) -> list[Outcome]:
        """
        Raises:
            Unreachable: a file that cannot be read at the moment, or too little memory; not where `lenient`.
            DamagedError: shards are not what their receipts vouch for.
        """
        others = iter(arrays[1]) if self.other is not None else iter(())
        outcomes = []
        for wanted, out in zip(task, arrays[0], strict=True):
            other = next(others) if wanted.box is not None else None
            try:
                is_meant = self._leniently(wanted, out, other) if self.lenient else self._draw(wanted, out, other)
            except BadImage as bad:
                outcomes.append(Outcome(str(bad)))
            else:
                outcomes.append(Outcome(None, is_meant))
        return outcomes

    def close(self) -> None:
        self.files.close()

    def _leniently(self, wanted: Wanted, out: NDArray[Any], other: NDArray[Any] | None) -> bool:
        try:
            with one_image():
                return self._draw(wanted, out, other)
        except Unreachable as error:
            raise BadImage(f"{error.what}: {error.found}") from error

    def _draw(self, wanted: Wanted, out: NDArray[Any], other: NDArray[Any] | None) -> bool:
        """Draw a picture's views; returns whether it is the one that is meant."""
        data = self.files.read(wanted.file)
        sample: Sample = self.kind.decode(data, self.limit)
        params = self.kind.params(sample, wanted.key, self.view)[self.number]
        self.kind.draw(out, sample, params, self.size, self.view)
        is_meant = wanted.digest is None or content_digest(data) == wanted.digest
        if self.other is not None and wanted.box is not None and other is not None and is_meant:
            self.kind.draw(other, sample, wanted.box, self.size, self.other)
        return is_meant
