"""Owns the Protocol of a kind of sample: what turns a file's bytes and a view into an array. Images are one kind.

Commands and streams use these members of a kind alone: see `images` for the one that there is, `registry` for its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...storage_schemas.view_params import Views
from ..views.spec import ViewSpec

#: What `decode` gives and `draw` takes; only its kind looks inside.
Sample = Any


class SampleKind(Protocol):
    """One kind of sample. It can be pickled, and its methods are called in several threads at once.

    A file is hostile input. A method that gets one which cannot be used raises `BadImage` with the reason; then that sample
    keeps its row and is recorded as unusable. A lack of memory is `Unreachable`: it is never recorded as a fault of the sample.
    """

    @property
    def name(self) -> str:
        """How `corpus.json` and a store name the kind."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of one view's array: `('channel', 'height', 'width')`. `channel` is what models call channels."""

    @property
    def dtype(self) -> DTypeLike:
        """Of a view's array. Normalisation is the model's work, so plain integers will do."""

    def extensions(self) -> frozenset[str]:
        """By which endings a file counts as such a sample: lower case, with the dot."""

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that decide what `decode` and `draw` give, by name."""

    def probe(self, data: bytes, limit: int) -> str:
        """Check a file as cheaply as possible, for `shard`. Returns the extension (without the dot) of its real format.

        Args:
            limit: larger samples are refused, in positions: pixels of an image.

        Raises:
            BadImage: empty, of no known format, cut, or too large.
        """

    def reducer(self) -> Mapping[str, str] | None:
        """Versions that decide the bytes that `reduce` gives: they enter the fingerprint of reduced shards. None: it cannot."""

    def reduce(self, data: bytes, shorter_side: int, limit: int) -> bytes:
        """The file made smaller, for `shard --resize`. Not called where `reducer` gives None.

        Raises:
            BadImage: as in `decode`.
        """

    def decode(self, data: bytes, limit: int) -> Sample:
        """The sample in memory.

        Raises:
            BadImage: as in `probe`, or it cannot be decoded.
        """

    def positions(self, sample: Sample) -> int:
        """How large a sample is: pixels of an image."""

    def size(self, sample: Sample) -> tuple[int, int]:
        """All of a sample that parameters of its views depend on: height and width of an image."""

    def params(self, sample: Sample, key: str, spec: ViewSpec) -> Views:
        """Parameters of a sample's views, VIEW (view,): a function of the spec, the key and the sample's size alone."""

    def shape(self, size: int) -> tuple[int, ...]:
        """Shape of one view's array for a model whose input is of `size`, in the order of `axes`."""

    def draw(self, out: NDArray[Any], sample: Sample, params: np.void, size: int, spec: ViewSpec) -> None:
        """Write one view into `out`, an array of `shape(size)` and `dtype`. The same for teacher and student.

        Args:
            params: one VIEW record that `params` gave, here or where the store was made.
        """


def draw_views(
    kind: SampleKind, sample: Sample, params: Views | Sequence[np.void], size: int, spec: ViewSpec
) -> NDArray[Any]:
    """Several views of one sample: (view, *shape), contiguous, for a model that normalises."""
    out = np.empty((len(params), *kind.shape(size)), kind.dtype)
    for view, record in zip(out, params, strict=True):
        kind.draw(view, sample, record, size, spec)
    return out
