"""`teachonce models`: the models that can be named as teacher or student, with what they take and where they come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..pipeline.tables import clip, table
from ..storage_schemas.errors import InputError
from ..storage_schemas.near_names import near_names
from .models.catalogue import Measures, NamedModel, measure, open_clip_models, timm_models
from .models.names import TIMM_PREFIX

#: More models than this are listed without what takes a tenth of a second each to find out.
MEASURED_AT_MOST = 100


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model in the list; `measures` is None where it was not, or cannot be, built to be measured."""

    named: NamedModel
    measures: Measures | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self.named) | {
            "width": self.measures and self.measures.width,
            "parameters": self.measures and self.measures.parameters,
        }


def list_models(text: str | None, *, role: str | None) -> list[ListedModel]:
    """Models whose names contain a text.

    Args:
        text: words, all of which must be in the name; case, `-`, `_` and `/` do not matter. None for all models.
        role: `teacher` or `student` lists only those that can be one.

    Raises:
        InputError: there is none.
    """
    known = [*open_clip_models(), *timm_models()]
    fitting = [model for model in known if role != "teacher" or model.can_teach]
    found = [model for model in fitting if text is None or _matches(model.name, text)]
    if not found:
        full = {model.name.removeprefix(TIMM_PREFIX): model.name for model in reversed(fitting)}
        near = [full[name] for name in near_names(text or "", list(full))]
        raise InputError(
            "no model has such a name",
            code="model-unknown",
            where=text,
            hint=f"did you mean {', '.join(near)}?" if near else "`teachonce models` lists them all",
        )
    measured = len(found) <= MEASURED_AT_MOST
    return [ListedModel(named=model, measures=measure(model.name) if measured else None) for model in found]


def models_text(listed: Sequence[ListedModel]) -> str:
    """A table for people, and what else can be named."""
    measured = len(listed) <= MEASURED_AT_MOST
    rows = []
    for model in listed:
        named, measures = model.named, model.measures
        numbers = [f"{measures.width}", _millions(measures.parameters)] if measures else ["?", "?"]
        rows.append(
            [
                named.name,
                f"{named.size}",
                *(numbers if measured else []),
                clip(", ".join(named.weights) or "none", 60),
                "transformers" if named.needs else "",
            ]
        )
    head = ["model", "pixels", *(["width", "parameters"] if measured else []), "weights", "needs"]
    lines = [table(rows, head=head, align="lrrrll" if measured else "lrll", indent=0)]
    if not measured:
        lines.append(f"{len(listed)} models. Add TEXT to see width and parameters of up to {MEASURED_AT_MOST}.")
    return "\n".join(lines)


def _matches(name: str, text: str) -> bool:
    plain = _plain(name)
    return all(_plain(word) in plain for word in text.split())


def _plain(text: str) -> str:
    return re.sub(r"[-_/]", "", text.lower())


def _millions(count: int) -> str:
    return f"{count / 1e6:.0f} M" if count >= 1e8 else f"{count / 1e6:.1f} M"
