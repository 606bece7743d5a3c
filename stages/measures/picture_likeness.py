"""Owns how alike small grey pictures are: whole against whole, mirrored or not, and one as a part of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Pixels of each side of the pictures.
EDGE = 64

#: Coefficients of the cosine transform along each side that a picture is told by, and pictures that are compared at once.
_WAVES, _ROWS = 16, 1024

#: Pixels of the search for the part that a cropped picture shows; shares of each side that it may have, and of the area at least.
_COARSE, _SHARES, _LEAST_AREA = 24, (1.0, 0.9, 0.8, 0.7, 0.6), 0.4

#: Pixels at which aligned pictures are compared; how blurred is what is taken off them; steps of the alignment, as shares of a side.
_FINE, _BLUR, _STEPS = 48, 0.03, (1 / 32, 1 / 64, 1 / 128)

#: Pairs that are aligned at once, and those of a list that are aligned closely: the likeliest.
_PAIRS, _CLOSELY = 64, 1024

#: fp32 here; numpy's products and sums are typed too loosely to say so.
Floats = NDArray[Any]


def grey(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (height, width) of a picture in RGB, by the weights of ITU-R BT.601."""
    return np.asarray(np.rint(pixels_HWC @ np.array([0.299, 0.587, 0.114])), np.uint8)


def nearest_pictures(greys_NHW: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Floats]:
    """Of each picture the index of the one that is most like it, mirrored or not, and their likeness (sample,).

    A picture is told by its 16 x 16 slowest waves (discrete cosine transform), each over its spread among these pictures, which is
    what perceptual hashes take the signs of; likeness is the cosine. In a mirrored picture odd waves along a line change sign.
    """
    waves = _waves(EDGE)[:_WAVES]
    found = np.empty((len(greys_NHW), _WAVES * _WAVES), np.float32)
    for start in range(0, len(greys_NHW), _ROWS):
        part = greys_NHW[start : start + _ROWS].astype(np.float32)
        found[start : start + _ROWS] = (waves @ part @ waves.T).reshape(len(part), -1)
    found = found[:, 1:]  # the mean says nothing
    found /= np.maximum(found.std(axis=0), 1e-6)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    odd = np.arange(1, _WAVES * _WAVES) % 2 == 1  # the index of a wave along a line is the faster one
    even_ND, odd_ND = np.ascontiguousarray(found[:, ~odd]), np.ascontiguousarray(found[:, odd])
    nearest, likeness = np.zeros(len(found), np.int64), np.zeros(len(found), np.float32)
    for start in range(0, len(found), _ROWS):
        rows = slice(start, min(start + _ROWS, len(found)))
        cosines = np.abs(odd_ND[rows] @ odd_ND.T)
        cosines += even_ND[rows] @ even_ND.T
        own = np.arange(len(cosines))
        cosines[own, own + start] = -np.inf
        nearest[rows] = cosines.argmax(axis=1)
        likeness[rows] = cosines[own, nearest[rows]]
    return nearest, likeness


def aligned_likeness(first_NHW: NDArray[np.uint8], second_NHW: NDArray[np.uint8]) -> Floats:
    """How alike the pictures of pairs are where they show the same: fp32 (pair,), a correlation of at most 1.

    Both without their slow changes (a blurred picture is taken off). Whole against whole, mirrored or not; and each as a part of the
    other: the part is searched by normalised cross-correlation over places and sizes, and of the likeliest pairs its edges are
    moved until the correlation no longer grows.
    """
    if not len(first_NHW):
        return np.zeros(0, np.float32)
    starts = zip(*(_starts(first_NHW[part], second_NHW[part]) for part in _parts(len(first_NHW), _PAIRS)), strict=True)
    boxes_NS4, swapped_NS, flipped_NS = (np.concatenate(parts) for parts in starts)
    likeness_NS: Floats = np.zeros(swapped_NS.shape, np.float32)
    for start in range(len(boxes_NS4[0])):
        for part in _parts(len(first_NHW), _PAIRS):
            small, large = _ordered(first_NHW[part], second_NHW[part], swapped_NS[part, start], flipped_NS[part, start])
            likeness_NS[part, start] = _at(_fine(small), large, boxes_NS4[part, start])
    best_N = likeness_NS.argmax(axis=1)
    every = np.arange(len(best_N))
    likeness_N = likeness_NS[every, best_N]
    closely = np.argsort(-likeness_N, kind="stable")[:_CLOSELY]
    for part in _parts(len(closely), _PAIRS):
        pairs = closely[part]
        starts_N = best_N[pairs]
        small, large = _ordered(
            first_NHW[pairs], second_NHW[pairs], swapped_NS[pairs, starts_N], flipped_NS[pairs, starts_N]
        )
        likeness_N[pairs] = _climb(_fine(small), large, boxes_NS4[pairs, starts_N], likeness_N[pairs])
    return np.asarray(likeness_N, np.float32)


def _starts(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the alignment of pairs may start: boxes (pair, start, 4) in the larger picture, whether the second is the smaller one,
    and whether that one is mirrored."""
    count = len(first)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    boxes = np.stack([whole, whole, _part_of(first, second), _part_of(second, first)], axis=1)
    swapped = np.tile(np.array([False, False, False, True]), (count, 1))
    flipped = np.tile(np.array([False, True, False, False]), (count, 1))
    return boxes, swapped, flipped


def _ordered(
    first: NDArray[np.uint8], second: NDArray[np.uint8], swapped: NDArray[np.bool_], flipped: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """(smaller, larger), the smaller mirrored where that is wanted."""
    small = np.where(swapped[:, None, None], second, first).astype(np.float32)
    large = np.where(swapped[:, None, None], first, second).astype(np.float32)
    return np.where(flipped[:, None, None], small[:, :, ::-1], small), large


def _part_of(small_NHW: NDArray[np.uint8], large_NHW: NDArray[np.uint8]) -> Floats:
    """The box of the larger picture (top, left, bottom, right, as shares) in which the smaller one correlates most with it."""
    size = _COARSE
    shrink = _resampling(size, EDGE)
    small, large = (shrink @ pixels.astype(np.float32) @ shrink.T for pixels in (small_NHW, large_NHW))
    seen = _sharp(large)
    spectrum = np.fft.rfft2(seen)
    sums, squares = _sums(seen), _sums(seen * seen)
    floor = 1e-2 * (seen * seen).mean(axis=(1, 2))[:, None, None] + 1e-3
    best = np.full(len(small), -np.inf, np.float32)
    boxes = np.zeros((len(small), 4), np.float32)
    every = np.arange(len(small))
    for tall in _SHARES:
        for wide in _SHARES:
            h, w = round(tall * size), round(wide * size)
            if tall * wide < _LEAST_AREA or (h, w) == (size, size):
                continue
            piece = _sharp(_resampling(h, size) @ small @ _resampling(w, size).T)
            piece -= piece.mean(axis=(1, 2), keepdims=True)
            piece /= np.maximum(np.sqrt(np.einsum("nij,nij->n", piece, piece))[:, None, None], 1e-6)
            products = np.fft.irfft2(
                spectrum * np.conj(np.fft.rfft2(piece, s=(size, size), axes=(1, 2))), s=(size, size), axes=(1, 2)
            )
            products = products[:, : size - h + 1, : size - w + 1]
            energy = _windows(squares, h, w) - _windows(sums, h, w) ** 2 / (h * w)
            found = (products / np.sqrt(np.maximum(energy, floor * (h * w)))).reshape(len(small), -1)
            place = found.argmax(axis=1)
            value = found[every, place]
            top, left = np.divmod(place, size - w + 1)
            box = np.stack([top, left, top + h, left + w], axis=1) / size
            boxes[value > best] = box[value > best]
            best = np.maximum(best, value)
    return boxes


def _climb(target: Floats, large: Floats, boxes: Floats, likeness: Floats) -> Floats:
    """The likeness after the edges of the boxes were moved, one after the other, while it grew."""
    boxes, likeness = boxes.copy(), likeness.copy()
    for step in _STEPS:
        for edge in range(4):
            for move in (-step, step):
                moved = boxes.copy()
                moved[:, edge] = np.clip(moved[:, edge] + move, 0, 1)
                value = _at(target, large, moved)
                better = value > likeness
                boxes[better], likeness[better] = moved[better], value[better]
    return likeness


def _at(target_NFF: Floats, large_NHW: Floats, boxes_N4: Floats) -> Floats:
    """The correlation of what the boxes show with the targets, which are `_fine` already."""
    down, across = (_box_resampling(boxes_N4[:, a], boxes_N4[:, b]) for a, b in ((0, 2), (1, 3)))
    return np.asarray(
        np.einsum("nij,nij->n", _unit(_sharp(down @ large_NHW @ across.transpose(0, 2, 1))), target_NFF), np.float32
    )


def _fine(pixels_NHW: Floats) -> Floats:
    shrink = _resampling(_FINE, EDGE)
    return _unit(_sharp(shrink @ pixels_NHW @ shrink.T))


def _unit(values_NHW: Floats) -> Floats:
    centred = values_NHW - values_NHW.mean(axis=(1, 2), keepdims=True)
    lengths = np.sqrt(np.einsum("nij,nij->n", centred, centred))
    return np.asarray(centred / np.maximum(lengths, 1e-3)[:, None, None], np.float32)


def _sharp(values_NHW: Floats) -> Floats:
    """Without slow changes."""
    down, across = _blurring(values_NHW.shape[1]), _blurring(values_NHW.shape[2])
    return np.asarray(values_NHW - down @ values_NHW @ across.T, np.float32)


def _blurring(size: int) -> Floats:
    at = np.arange(size)
    weights = np.exp(-(((at[:, None] - at) / max(_BLUR * size, 0.8)) ** 2) / 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _resampling(size: int, of: int) -> Floats:
    """(size, of): linear, with the support that shrinking needs."""
    found: Floats = _box_resampling(np.zeros(1, np.float32), np.ones(1, np.float32), size, of)[0]
    return found


def _box_resampling(low_N: Floats, high_N: Floats, size: int = _FINE, of: int = EDGE) -> Floats:
    """(box, size, of): of the part between two shares of a side."""
    scale = (high_N - low_N) * of / size
    centres = low_N[:, None] * of + (np.arange(size) + 0.5) * scale[:, None] - 0.5
    weights = 1 - np.abs(np.arange(of) - centres[..., None]) / np.maximum(scale, 1)[:, None, None]
    weights = np.maximum(weights, 0)
    return np.asarray(weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-6), np.float32)


def _waves(size: int) -> Floats:
    """(wave, place): the cosine transform's rows (DCT-II), of length 1 but for the first."""
    places = (np.arange(size) + 0.5) * np.pi / size
    return np.asarray(np.cos(np.arange(size)[:, None] * places) * np.sqrt(2 / size), np.float32)


def _sums(values_NHW: Floats) -> NDArray[np.float64]:
    """Sums over all that is above and to the left, with a line and a column of zeros first."""
    found: NDArray[np.float64] = np.pad(
        values_NHW.cumsum(axis=1, dtype=np.float64).cumsum(axis=2), ((0, 0), (1, 0), (1, 0))
    )
    return found


def _windows(sums: NDArray[np.float64], h: int, w: int) -> NDArray[np.float64]:
    return np.asarray(sums[:, h:, w:] - sums[:, :-h, w:] - sums[:, h:, :-w] + sums[:, :-h, :-w])


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
