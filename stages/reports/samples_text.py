"""Owns a page of samples on a terminal: one line each, in the order asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...pipeline.tables import clip, section, table
from ...storage_schemas.errors import IncompleteError, InputError
from ...storage_schemas.fingerprint import Json
from ..inputs.class_match import ClassMatcher
from ..measures.rankings import SCORES, Ranking
from ..measures.sample_block import SampleBlock, SampleFacts
from ..measures.stored import Stored


def sample_ranking(stored: Stored, *, order: str, class_name: str | None, page: int, size: int) -> Ranking:
    """What finds the samples up to the end of a page, while the store is read.

    Args:
        order: `row`, or one of `SCORES`.
        class_name: of the first class, or the label, of the samples that count; None for all.
        page: from 1; `size`: samples on it.

    Raises:
        InputError: no class and no label of that name.
        IncompleteError: the store gives no logits.
    """
    if stored.no_logits:
        raise IncompleteError(
            "there are no samples to order", code="store-without-logits", where=stored.location, found=stored.no_logits
        )
    score = SCORES.get(order, lambda block: np.asarray(-block.rows_N, np.float64))
    return Ranking(score, page * size, None if class_name is None else _of_class(stored, class_name))


def samples_json(stored: Stored, ranking: Ranking, *, page: int, size: int) -> dict[str, Json]:
    """The page, as JSON."""
    found = ranking.samples[(page - 1) * size :]
    return {
        "samples": [_sample(stored, facts) for facts in found],
        "page": page,
        "pages": -(-ranking.matching // size),
        "matching": ranking.matching,
    }


def samples_text(facts: dict[str, Json], order: str) -> str:
    """The page, for people, in 80 columns."""
    rows: list[Sequence[str]] = []
    for sample in facts["samples"]:  # type: ignore[union-attr]
        named = str(sample["path"] or sample["key"])  # type: ignore[index,call-overload]
        rows.append(
            [
                f"{sample['confidence']:.3f}",  # type: ignore[index,call-overload]
                f"{sample['entropy']:.2f}",  # type: ignore[index,call-overload]
                f"{sample['agreement']:.0%}",  # type: ignore[index,call-overload]
                clip(str(sample["class"]), 20),  # type: ignore[index,call-overload]
                str(sample["row"]),  # type: ignore[index,call-overload]
                named if len(named) <= 30 else "…" + named[-29:],
            ]
        )
    head = ["prob.", "entropy", "agree", "first class", "row", "image"]
    title = f"Page {facts['page']} of {facts['pages']}: {facts['matching']:,} samples by {order}"
    return section(title, table(rows, head=head, align="rrrlrl") if rows else "  none")


def _sample(stored: Stored, facts: SampleFacts) -> Json:
    entry = stored.entry(facts.row)
    return {
        "row": facts.row,
        "key": facts.key,
        "path": None if entry is None else entry.path,
        "label": facts.label,
        "class": stored.class_name(facts.first),
        "confidence": facts.confidence,
        "entropy": facts.entropy,
        "agreement": facts.agreement,
        "disagreement": facts.disagreement,
    }


def _of_class(stored: Stored, name: str) -> Callable[[SampleBlock], NDArray[np.bool_]]:
    match = ClassMatcher([stored.class_name(i) for i in range(stored.num_classes)]).match(name)
    labels = stored.labels(0) if stored.shards is not None else None
    if match.class_id is None and not any(label is not None for label in labels or ()):
        raise InputError(f"--class names no class: {match.reason}", code="class-unknown", where=name)

    def matches(block: SampleBlock) -> NDArray[np.bool_]:
        by_class = block.first_N == (-1 if match.class_id is None else match.class_id)
        return np.asarray(by_class | [label == name for label in block.labels_N or [None] * len(block)])

    return matches
