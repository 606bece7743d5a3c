"""Owns the report of an imported checkpoint: as JSON, and as a table for people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ...pipeline.storage import Location
from ...pipeline.tables import section, table
from ...pipeline.user_files import UserFile
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.plain_text import counted
from ..models.weights import WeightsFile
from .class_texts import ClassTexts
from .frozen import Drift
from .layout import CheckpointLayout


@dataclass(frozen=True, kw_only=True)
class CheckpointContents:
    """What a checkpoint held, and what was taken of it. Facts only.

    Attributes:
        name: the file's name; not where it lay.
        sha256: of its bytes.
        kind: see `layout`.
        epoch: as the file says; None where it does not.
        prompts: for each tower (layers, tokens, channels).
        frozen: the model's own weights; None where the file holds prompts alone.
        taken: whose frozen weights are used: `checkpoint` or `backbone`.
        class_texts: the fixed token embeddings; None where there are none.
        projector: tensors of the student's projector.
        left_out: tensors that are known and not used, by what they are.
        notes: lines that a person should see.
    """

    name: str
    sha256: str
    kind: str
    epoch: int | None
    prompts: dict[str, tuple[int, int, int]]
    frozen: Drift | None
    taken: str
    class_texts: ClassTexts | None = None
    projector: int = 0
    left_out: dict[str, int]
    notes: tuple[str, ...]

    def facts(self) -> Json:
        """For the folder's own record: without the notes for people."""
        facts = self.to_json()
        del facts["notes"]
        return facts

    def to_json(self) -> Json:
        return asdict(self) | {
            "prompts": {
                tower: {"layers": layers, "tokens": tokens, "channels": channels}
                for tower, (layers, tokens, channels) in self.prompts.items()
            },
            "class_texts": None
            if self.class_texts is None
            else {"count": self.class_texts.count, "in_class_list": self.class_texts.known},
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Import:
    """What is to be written of a checkpoint.

    Attributes:
        found: what the file held.
        identity: everything that decides the bytes, as fingerprint fields.
        write: writes a folder and returns the names of its files.
    """

    found: CheckpointContents
    identity: Mapping[str, Json]
    write: Callable[[Location], tuple[str, ...]]


def contents_text(found: CheckpointContents) -> str:
    """A few lines for people."""
    epoch = "" if found.epoch is None else f", epoch {found.epoch}"
    rows = [["kind", found.kind + epoch]]
    rows += [
        [
            f"{tower} prompts",
            f"{counted(layers, 'layer')} × {counted(tokens, 'token')} × {counted(channels, 'channel')}",
        ]
        for tower, (layers, tokens, channels) in found.prompts.items()
    ]
    if found.frozen is None:
        rows.append(["frozen weights", "none: the backbone's are used"])
    else:
        drift = found.frozen
        rows.append(["frozen weights", f"{counted(drift.tensors, 'tensor')}; the {found.taken}'s are used"])
        rows.append(
            ["", f"off the backbone's by {drift.relative:.2g} of their size, at most {drift.largest:.2g} ({drift.at})"]
        )
    if found.projector:
        rows.append(["projector", f"{counted(found.projector, 'tensor')}"])
    if found.class_texts is not None:
        texts = found.class_texts
        rows.append(["class texts", f"{texts.count}, of which {texts.known} are in the class list"])
    rows += [["left out", f"{count} {what}"] for what, count in found.left_out.items()]
    return section(found.name, table(rows))


def describe(
    location: UserFile,
    file: WeightsFile,
    layout: CheckpointLayout,
    prompts: dict[str, tuple[int, int, int]],
    **more: Any,
) -> CheckpointContents:
    """What a file held; `more` are the remaining fields of `CheckpointContents`. Reads the whole file for its digest."""
    epoch = file.beside.get("epoch")
    left_out = {
        "fixed token embeddings": len(layout.fixed),
        "of the frozen copy of the image tower": len(layout.copy),
    }
    if not layout.whole:
        left_out["logit scale"] = len(layout.frozen)
    return CheckpointContents(
        name=location.name,
        sha256=_sha256(location),
        kind=layout.kind,
        epoch=epoch if isinstance(epoch, int) else None,
        prompts=prompts,
        left_out={what: count for what, count in left_out.items() if count},
        **more,
    )


def prompt_sizes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Layers, tokens and channels of the prompts among some tensors, by tower."""
    places = {
        "vision_prompts_LPD": "vision",
        "text_prompts_LPD": "text",
        "backbone.prompts_LPD": "vision",
    }
    return {
        places[name]: (value.shape[0], value.shape[1], value.shape[2])
        for name, value in tensors.items()
        if name in places and value.numel()
    }


def activation_note(model: nn.Module, option: str, name: str) -> tuple[str, ...]:
    """A line for a model that is not built as the authors' is, whose activation does not show in the weights."""
    if any(type(module).__name__ == "QuickGELU" for module in model.modules()):
        return ()
    return (
        f"{option} {name} is built with GELU, the authors' code with QuickGELU: for weights from OpenAI name a model that "
        "ends in -quickgelu, or the tag openai",
    )


def _sha256(location: UserFile) -> str:
    state = hashlib.sha256()
    with location.open() as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()
