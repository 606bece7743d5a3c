"""Owns what stored values show by themselves beside those of the teacher: of other rows, classes in another order, another scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .cause import AGAIN, SHARD_AGAIN, Cause
from .differences import LOGITS, apart
from .rerun import Values
from .sampled_rows import RowSampler, SampledRows
from .tolerance import SCALE, Tolerance

#: Other shards that are searched for the values of a row.
_SHARDS = 32

#: Views from which on a permutation of the classes can be told.
_LEAST_VIEWS = 3

_AGAIN_HERE = SHARD_AGAIN


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was stored of some rows, what the teacher gives for them, and what rounding explains.

    Attributes:
        in_bf16: what it would explain if one of the two were in bf16.
    """

    sample: SampledRows
    given: Values
    allowed: dict[str, Tolerance]
    in_bf16: dict[str, Tolerance]
    sampler: RowSampler
    num_shards: int

    def off(self, name: str, given: NDArray[np.float32] | None = None) -> bool:
        """Whether a target is not what is stored."""
        values = self.given[name] if given is None else given
        return not self.allowed[name].allows(apart(name, self.sample.stored[name], values))

    @property
    def wrong(self) -> list[str]:
        """Targets that are not what is stored."""
        return [name for name in self.sample.stored if self.off(name)]


def value_causes(evidence: Evidence) -> Iterator[Cause]:
    """The causes that the values themselves show, for each target that is wrong."""
    for name in evidence.wrong:
        yield from _lengths(evidence, name)
        if name == LOGITS:
            yield from _columns(evidence)
        yield from _of_other_views(evidence, name)
        yield from _of_other_rows(evidence, name)


def _lengths(evidence: Evidence, name: str) -> Iterator[Cause]:
    """The same directions, with other lengths; or logits that differ by one number a class."""
    stored, given = evidence.sample.stored[name], evidence.given[name]
    found, allowed = apart(name, stored, given), evidence.allowed[name]
    apart_by = abs(float(np.median(found.scale_M)) - 1)
    is_other_scale = apart_by > SCALE or (found.kl_M is not None and apart_by > 1e-3)
    if (
        is_other_scale
        and float(np.median(found.cosine_M)) <= allowed.cosine
        and (found.cosine_M <= allowed.cosine_single).all()
    ):
        factor = 1 / float(np.median(found.scale_M))
        yield Cause(
            code="logit-scale-other" if name == LOGITS else "embedding-scale-other",
            what="the stored logits have another scale"
            if name == LOGITS
            else f"vectors of '{name}' have another length",
            hint="cache into a new store with the teacher's own logit scale" if name == LOGITS else AGAIN,
            expected="factor 1",
            found=f"factor {factor:.4g}",
        )
        return
    if name == LOGITS and len(stored) >= _LEAST_VIEWS:
        offset_C = np.median(stored - given, axis=0)
        if not evidence.off(name, given + offset_C) and np.ptp(offset_C) > 1e-3:
            yield Cause(
                code="logit-bias-other",
                what="the stored logits differ by one number for each class: another bias, or none",
                hint="cache into a new store with the class vectors of this teacher",
                expected="the bias of the class vectors",
                found=f"numbers from {offset_C.min():.3g} to {offset_C.max():.3g} more",
            )


def _columns(evidence: Evidence) -> Iterator[Cause]:
    """Logits of the same classes in another order."""
    stored, given = (
        values - values.mean(-1, keepdims=True) for values in (evidence.sample.stored[LOGITS], evidence.given[LOGITS])
    )
    if len(stored) < _LEAST_VIEWS or stored.shape[1] < 2:
        return
    order_C = _matching(stored, given)
    if order_C is not None and not evidence.off(LOGITS, evidence.given[LOGITS][:, order_C]):
        moved = np.flatnonzero(order_C != np.arange(len(order_C)))
        first = int(moved[0]) if len(moved) else 0
        yield Cause(
            code="classes-in-another-order",
            what="the stored logits are of the classes in another order",
            hint="cache into a new store with the class list in its order",
            expected=f"class {first} in column {first}",
            found=f"class {int(order_C[first])} there, {len(moved)} of {len(order_C)} classes elsewhere",
        )


def _matching(stored: NDArray[np.float32], given: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """For each stored column the given one that is nearest to it; None where two are nearest to one."""
    a, b = stored.astype(np.float64).T, given.astype(np.float64).T
    distance = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
    order_C = distance.argmin(axis=1)
    return order_C if len(set(order_C.tolist())) == len(order_C) else None


def _of_other_views(evidence: Evidence, name: str) -> Iterator[Cause]:
    """Values of another view of the same image."""
    views = evidence.sample.views
    if len(views) < 2:
        return
    stored = evidence.sample.stored[name].reshape(len(evidence.sample.rows), len(views), -1)
    given = evidence.given[name].reshape(stored.shape)
    for shift in range(1, len(views)):
        rolled = np.roll(given, shift, axis=1).reshape(evidence.given[name].shape)
        if not evidence.off(name, rolled):
            yield _other_views(f"view {views[0]} in place of view {views[shift % len(views)]}")
            return
    reversed_ = given[:, ::-1].reshape(evidence.given[name].shape)
    if not evidence.off(name, reversed_):
        yield _other_views("views in the opposite order")


def _other_views(found: str) -> Cause:
    return Cause(
        code="values-of-another-view",
        what="the stored values are those of other views of the same images",
        hint=_AGAIN_HERE,
        expected="each view's own",
        found=found,
    )


def _of_other_rows(evidence: Evidence, name: str) -> Iterator[Cause]:
    """Values of other rows of the shard, or of another shard."""
    sample, view = evidence.sample, evidence.sample.views[0]
    given = evidence.given[name].reshape(len(sample.rows), len(sample.views), -1)[:, 0]
    here = evidence.sampler.stored_of_shard(sample.shard, name, view)
    start = evidence.sampler.first_row(sample.shard)
    nearest, is_near = _nearest(evidence, name, given, here)
    if is_near.mean() > 0.5:
        places = [
            (int(place), row - start) for place, row, near in zip(nearest, sample.rows, is_near, strict=True) if near
        ]
        if all(place == own for place, own in places):
            return
        by = _shift(places, here)
        if by is not None:
            yield Cause(
                code="values-shifted",
                what=f"the stored values of '{name}' are shifted against their rows",
                hint=_AGAIN_HERE,
                expected="each row's own",
                found=f"a row's values stand {abs(by)} {'row' if abs(by) == 1 else 'rows'} {'below' if by > 0 else 'above'} it",
            )
        else:
            own = next(i for i, (place, own) in enumerate(places) if place != own)
            yield Cause(
                code="values-in-another-order",
                what=f"the stored values of '{name}' are in another order than their rows",
                hint=_AGAIN_HERE,
                expected="each row's own",
                found=f"those of row {places[own][1] + start} in row {places[own][0] + start}",
            )
        return
    yield from _of_another_shard(evidence, name, given)


def _shift(places: Sequence[tuple[int, int]], stored: NDArray[np.float32]) -> int | None:
    """By how many usable rows all values are shifted, around the end; None where they are not shifted by one number."""
    flat = stored.reshape(len(stored), -1)
    rank = np.cumsum(np.isfinite(flat).all(axis=1)) - 1
    count = int(rank[-1]) + 1
    shifts = {int(rank[place] - rank[own]) % count for place, own in places}
    if len(shifts) != 1:
        return None
    by = shifts.pop()
    return by if by <= count // 2 else by - count


def _of_another_shard(evidence: Evidence, name: str, given: NDArray[np.float32]) -> Iterator[Cause]:
    """These rows' values stand in another shard; or what stands here is a copy of another's."""
    sample = evidence.sample
    own = sample.stored[name].reshape(len(sample.rows), len(sample.views), -1)[:, 0]
    for other in range(min(evidence.num_shards, _SHARDS)):
        if other == sample.shard:
            continue
        theirs = evidence.sampler.stored_of_shard(other, name, sample.views[0])
        _, is_near = _nearest(evidence, name, given, theirs)
        copied = {row.tobytes() for row in theirs.reshape(len(theirs), -1)}
        is_copied = np.array([row.tobytes() in copied for row in own])
        if max(is_near.mean(), is_copied.mean()) > 0.5:
            yield Cause(
                code="values-of-another-shard",
                what=f"the stored values of '{name}' are those of another shard",
                hint=_AGAIN_HERE,
                expected=f"those of shard {sample.shard}",
                found=f"those of shard {other}",
            )
            return


def _nearest(
    evidence: Evidence, name: str, given: NDArray[np.float32], stored: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each given row the nearest stored one, and whether rounding explains what lies between."""
    flat = stored.reshape(len(stored), -1)
    usable = np.flatnonzero(np.isfinite(flat).all(axis=1))
    a, b = _directions(name, given), _directions(name, flat[usable])
    places = usable[(a @ b.T).argmax(axis=1)]
    found = apart(name, flat[places], given)
    return places, ~evidence.allowed[name].off(found)


def _directions(name: str, values: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = values.astype(np.float64)
    if name == LOGITS:
        flat = flat - flat.mean(-1, keepdims=True)
    found: NDArray[np.float64] = flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-30)
    return found
