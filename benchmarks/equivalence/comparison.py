"""Owns the table over K: trials from K cached views against the trial of the same seed with the teacher in the loop."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from teachonce.stages.measures.metrics import Agreement
from trial import TrialBook

#: Columns: head, name of the figure, factor, digits. The second one where there are base and novel classes.
_COLUMNS = (
    ("accuracy %", "accuracy", 100, 1),
    ("harmonic mean %", "harmonic_mean", 100, 1),
    ("as teacher %", "agreement", 100, 1),
    ("KL to teacher", "kl", 1, 3),
    ("Δ accuracy", "accuracy_less", 100, 1),
    ("as online %", "same", 100, 1),
    ("KL to online", "kl_online", 1, 4),
    ("time / online", "time", 1, 2),
)


@dataclass(frozen=True)
class Row:
    """One way to train, over all seeds that are done.

    Attributes:
        how: `online`, K (with the encoding, if it is not the default), or `online, other seed`.
        figures: lists of one figure a seed (or pair of seeds), by name.
    """

    corpus: str
    recipe: str
    how: str
    figures: dict[str, list[float]]

    def cell(self, name: str, factor: float, digits: int) -> str:
        """Mean ± standard deviation over the seeds."""
        values = [factor * value for value in self.figures.get(name, ())]
        if not values:
            return ""
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"


def rows(book: TrialBook) -> Iterator[Row]:
    """A row for each way, in the order in which they were first run; then online against itself with other seeds."""
    lines = book.lines()
    for (corpus, recipe), found in _grouped(lines, "corpus", "recipe").items():
        online = {line["seed"]: line for line in found if line["views"] is None}
        for (views, encoding), same_way in _grouped(found, "views", "encoding").items():
            compared = [_compared(book, line, online.get(line["seed"])) for line in same_way]
            how = "online" if views is None else str(views) + ("" if encoding == "fp16" else f", {encoding}")
            yield Row(corpus, recipe, how, _columns(compared))
        pairs = [
            _against(book, book.logits(a["name"]), b) | {"accuracy_less": abs(a["accuracy"] - b["accuracy"])}
            for a, b in itertools.combinations(online.values(), 2)
        ]
        if pairs:
            yield Row(corpus, recipe, "online, other seed", _columns(pairs))


def table(found: Sequence[Row]) -> Iterator[str]:
    """Markdown: one table for each corpus and recipe."""
    for (corpus, recipe), group in itertools.groupby(found, key=lambda row: (row.corpus, row.recipe)):
        members = list(group)
        columns = [column for column in _COLUMNS if column[1] in members[0].figures | members[1].figures]
        seeds = len(members[0].figures["accuracy"])
        yield f"{corpus}, {recipe}, {seeds} seeds"
        yield ""
        yield f"| views | {' | '.join(head for head, *_ in columns)} |"
        yield "| --- |" + " ---: |" * len(columns)
        for row in members:
            cells = [row.cell(key, factor, digits) for _, key, factor, digits in columns]
            yield f"| {row.how} | {' | '.join(cells)} |"
        yield ""


def _compared(book: TrialBook, line: dict[str, Any], online: dict[str, Any] | None) -> dict[str, float]:
    figures: dict[str, float] = {
        name: line[name]
        for name in ("accuracy", "harmonic_mean", "agreement", "kl", "loss", "cpu_seconds", "seconds")
        if name in line
    }
    if online is None or online is line:
        return figures
    logits_NC = book.logits(line["name"])
    return (
        figures
        | _against(book, logits_NC, online)
        | {
            "accuracy_less": line["accuracy"] - online["accuracy"],
            "time": line["cpu_seconds"] / online["cpu_seconds"],
        }
    )


def _against(book: TrialBook, logits_NC: Any, online: dict[str, Any]) -> dict[str, float]:
    """How far a student is from the online one: share of the same first classes, KL(online ‖ student)."""
    agreement = Agreement()
    agreement.add(book.logits(online["name"]), logits_NC)
    return {"same": agreement.top1.rate, "kl_online": agreement.kl.mean}


def _grouped(lines: Sequence[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def _columns(dicts: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [d[name] for d in dicts if name in d] for name in {n: None for d in dicts for n in d}}
