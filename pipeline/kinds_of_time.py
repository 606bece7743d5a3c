"""Owns what the kinds of time mean that units measure: which of them pass side by side, and which one bounds a run."""

from __future__ import annotations

from collections.abc import Mapping

#: Kinds that pass in threads or processes while the same unit also computes; `wait` is what they cost the rest.
BESIDE = ("read", "decode")

#: Kinds in which a model is at work: on the GPU, where there is one.
COMPUTING = ("forward", "train", "text", "validate")


def unit_seconds_of(seconds: Mapping[str, float]) -> float:
    """Time that one worker spent on its units, one after the other."""
    if "wait" not in seconds:
        return sum(seconds.values())
    return sum(value for kind, value in seconds.items() if kind not in BESIDE)


def bottleneck_of(seconds: Mapping[str, float]) -> str | None:
    """The kind of work that the rest waits for; None where nothing was measured."""
    beside = {kind: value for kind, value in seconds.items() if kind in BESIDE}
    rest = {kind: value for kind, value in seconds.items() if kind not in BESIDE}
    if "wait" not in seconds:
        rest |= beside
    longest = max(rest, key=lambda kind: rest[kind], default=None)
    return max(beside, key=lambda kind: beside[kind]) if longest == "wait" and beside else longest
