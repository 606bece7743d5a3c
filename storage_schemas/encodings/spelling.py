"""Owns the spelling of encodings: `fp16`, or one for each target as in `logits=pca:0.85,embedding=int8`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

LOGITS, EMBEDDING = "logits", "embedding"

#: Stands for all maps of a teacher, whose names begin so.
MAPS = "features.LAYER"
_MAPS_PREFIX = "features."


def is_map(target: str) -> bool:
    """Whether a target of this name is a map of an inner layer."""
    return target.startswith(_MAPS_PREFIX)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What may be written for one encoding.

    Attributes:
        targets: that it is for, `MAPS` for all maps; empty for all.
        parameters: names of its numbers, which follow behind colons, with defaults; None where there is no default.
        ranges: least and largest value of each.
        whole: whether its numbers are whole.
        fitted: whether it is fitted to outputs of the teacher.
    """

    targets: tuple[str, ...] = ()
    parameters: Mapping[str, float | None] = field(default_factory=dict)
    ranges: tuple[tuple[float, float], ...] = ()
    whole: bool = False
    fitted: bool = False

    def is_for(self, target: str) -> bool:
        """Whether a target of this name may have it."""
        return not self.targets or (MAPS if is_map(target) else target) in self.targets


KNOWN: Mapping[str, Known] = {
    "fp32": Known(),
    "fp16": Known(),
    "int8": Known(),
    "int8-channel": Known(targets=(MAPS,)),
    "pca": Known(targets=(LOGITS, EMBEDDING, MAPS), parameters={"step": None}, ranges=((1e-6, 1e3),), fitted=True),
    "pq": Known(targets=(EMBEDDING,), parameters={"parts": None}, ranges=((1, 1 << 16),), whole=True, fitted=True),
    "adaptive": Known(targets=(LOGITS,), parameters={"mass": 0.95, "levels": 31}, ranges=((1e-3, 1 - 1e-6), (1, 255))),
    "sampled": Known(
        targets=(LOGITS,), parameters={"draws": None, "seed": 0}, ranges=((1, 1 << 16), (0, 2**32 - 1)), whole=True
    ),
}


class SpellingError(ValueError):
    """Not an encoding: what was expected, and what was found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


@dataclass(frozen=True, kw_only=True)
class Spelled:
    """One encoding as a user writes it, with all its parameters."""

    name: str
    numbers: tuple[float, ...] = ()

    @property
    def known(self) -> Known:
        return KNOWN[self.name]

    @property
    def text(self) -> str:
        """As `--encoding` takes it; parameters that are as by default are left out."""
        numbers = list(self.numbers)
        for default in reversed(list(self.known.parameters.values())):
            if not numbers or numbers[-1] != default:
                break
            numbers.pop()
        return ":".join([self.name, *(f"{number:.10g}" for number in numbers)])

    def parameters(self) -> dict[str, float]:
        return dict(zip(self.known.parameters, self.numbers, strict=True))


def one(text: str) -> Spelled:
    """An encoding with its parameters: `sampled:50`.

    Raises:
        SpellingError: there is no such encoding, or it does not take these parameters.
    """
    name, *words = text.split(":")
    if name not in KNOWN:
        raise SpellingError(", ".join(map(usage, KNOWN)), name or "an empty name")
    known = KNOWN[name]
    defaults = list(known.parameters.values())
    if len(words) > len(defaults) or None in defaults[len(words) :]:
        raise SpellingError(usage(name), text)
    numbers = []
    for word, (least, most) in zip(words, known.ranges, strict=False):
        try:
            number = float(word)
        except ValueError:
            raise SpellingError(usage(name), text) from None
        if not (math.isfinite(number) and least <= number <= most) or (known.whole and number != int(number)):
            whole = "a whole number " if known.whole else ""
            raise SpellingError(f"{whole}from {least:g} to {most:g} in {usage(name)}", text)
        numbers.append(number)
    return Spelled(name=name, numbers=(*numbers, *(d for d in defaults[len(words) :] if d is not None)))


def usage(name: str) -> str:
    """How an encoding is written: `adaptive[:MASS[:LEVELS]]`."""
    text, end = name, ""
    for parameter, default in KNOWN[name].parameters.items():
        text += f":{parameter.upper()}" if default is None else f"[:{parameter.upper()}"
        end += "" if default is None else "]"
    return text + end


def parse(text: str, targets: tuple[str, ...]) -> dict[str, Spelled]:
    """The encoding of each target, in the order of `targets`.

    Args:
        text: one encoding for all, or `TARGET=ENCODING` with commas; targets that are not named have fp16.

    Raises:
        SpellingError: no encodings, or for other targets.
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) == 1 and "=" not in text:
        spelled = one(words[0])
        return {name: _checked(name, spelled) for name in targets}
    found: dict[str, Spelled] = {}
    for word in words:
        name, equals, encoding = word.partition("=")
        if not equals:
            raise SpellingError("TARGET=ENCODING, with commas between them", word or "an empty word")
        if name not in targets:
            raise SpellingError(f"one of the targets {', '.join(targets)}", name or "an empty name")
        if name in found:
            raise SpellingError(f"one encoding of {name}", text)
        found[name] = _checked(name, one(encoding))
    return {name: found.get(name, one("fp16")) for name in targets}


def _checked(target: str, spelled: Spelled) -> Spelled:
    allowed = spelled.known.targets
    if not spelled.known.is_for(target):
        able = ", ".join(name for name, known in KNOWN.items() if known.is_for(target))
        raise SpellingError(f"{able} for {target} ({spelled.name} is for {' and '.join(allowed)})", spelled.text)
    return spelled
