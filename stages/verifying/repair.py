"""Owns mending a store: which shards are made again and how, and setting their receipts aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.generations import asked_encodings
from ...storage_schemas.params_form import STORED
from ...storage_schemas.samples import shard_name
from ...storage_schemas.store_description import StoreDescription
from ..encodings.request import BY_BUDGET
from ..models.compute import Compute
from ..models.preprocess import Preprocess
from ..models.teacher_config import TeacherConfig
from ..teachers import load_teacher
from ..views.spec import ViewSpec
from .finding import Finding
from .whole import Whole

#: What a teacher's configuration may override of the model's own preprocessing.
_OVERRIDES = ("size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What can be mended by the teacher, and what cannot.

    Attributes:
        shards: of the store that the command that made it can do again.
        beyond: findings in the way, or that another command has to mend.
    """

    shards: tuple[int, ...]
    beyond: tuple[Finding, ...]


def damage_of(findings: Iterable[Finding]) -> Damage:
    """Which shards of the store are wrong, and have tars that are right."""
    found = list(findings)
    wrong_tars = {finding.shard for finding in found if finding.shard is not None and not finding.mendable}
    shards = {f.shard for f in found if f.mendable and f.shard is not None} - wrong_tars
    return Damage(
        shards=tuple(sorted(shards)), beyond=tuple(f for f in found if not (f.mendable and f.shard in shards))
    )


@dataclass(frozen=True, kw_only=True)
class CacheAgain:
    """The arguments of `plan_cache` by which a store was made.

    Attributes:
        views: None for the teacher's own centre crop.
        encoding: of the targets that one was named for; None where there is none.
        max_kl, max_bytes: the budget that chose the others; the store has what came of it.
        fit_views: that encodings were fitted to; None for any number.
    """

    config: TeacherConfig
    views: ViewSpec | None
    interpolation: str | None
    targets: str
    encoding: str | None
    max_kl: float | None
    max_bytes: float | None
    fit_views: int | None
    chunk_views: int | None
    batch_size: int | None
    compute: Compute
    view_params: str = STORED


def cache_again(whole: Whole, config: TeacherConfig) -> CacheAgain:
    """How the store's `cache` ran, as its description says.

    Args:
        config: see `teacher_name.teacher_config`.

    Raises:
        InputError: the teacher cannot be loaded; or it ran on a device that this machine does not have.
    """
    description, said = whole.description, whole.recorded_compute
    recorded = Preprocess.from_json(description.teacher.get("preprocess"), where=whole.store)
    nothing: dict[str, Any] = dict.fromkeys(_OVERRIDES)
    plain = replace(config, **nothing)
    own = load_teacher(plain).spec.preprocess
    given = {name: getattr(recorded, name) for name in _OVERRIDES if getattr(recorded, name) != getattr(own, name)}
    return CacheAgain(
        config=replace(plain, **given),
        views=whole.views if whole.views.is_random else None,
        interpolation=whole.views.interpolation if whole.views.is_random else None,
        targets=",".join(target.name for target in description.spec.targets),
        **_encodings(description),
        chunk_views=description.spec.chunk_views,
        batch_size=said.get("batch_size"),
        view_params=description.spec.view_params,
        compute=compute_again(said, whole.store),
    )


def compute_again(recorded: Mapping[str, Any], store: Location) -> Compute:
    """How a store's teacher computed.

    Args:
        recorded: the field `compute` of the fingerprint.

    Raises:
        InputError: on a device that this machine does not have.
    """
    if recorded.get("device") == "cuda" and not _has_cuda():
        raise InputError(
            "the store was made on a GPU, and its shards can only be made again on one",
            code="cuda-missing",
            where=store,
            hint="repair it on a machine with a GPU",
        )
    return Compute(
        device=str(recorded.get("device", "cpu")),
        precision=str(recorded.get("precision", "fp32")),
        threads=int(recorded.get("threads", 1)),
    )


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def check_same_run(store: Location, recorded: Mapping[str, Json], planned: Fingerprint) -> None:
    """Refuse to mend a store with anything but what made it; before anything is set aside.

    Args:
        recorded: the fingerprint of the store.
        planned: of the stage that is to mend it.

    Raises:
        MismatchError: naming the field.
    """
    planned.check(
        recorded,
        what="the teacher, or what runs it, is not what the store was made with",
        code="repair-other-run",
        where=store,
        hint="name the store's own teacher with --teacher-model and --teacher-pretrained, and repair where it was made",
        whose=("this command", "the store"),
    )


def refuse_by_hand(whole: Whole, shards: Sequence[int]) -> None:
    """Refuse what a run of `cache` as the store's description has it would not write: a store that grew, or was recoded.

    Raises:
        InputError: it did, or was.
    """
    if whole.description.recoded is not None and not whole.receipts.growths:
        raise InputError(
            "a store that was recoded is repaired by recoding",
            code="repair-recoded-store",
            where=whole.store,
            hint=f"restore it from a copy; or {whole.receipts.redo_hint(*shards)}",
        )
    if whole.receipts.growths:
        raise InputError(
            "a store that grew is repaired by hand",
            code="repair-grown-store",
            where=whole.store,
            found=f"generation {whole.generation}",
            hint=f"restore it from a copy; or {whole.receipts.redo_hint(*shards)}",
        )


def set_aside(ledger: Ledger, shards: Sequence[int]) -> list[str]:
    """Keep the receipts of these shards under other names, so that they are done again. Returns the new names.

    A receipt that is kept already, byte for byte, is not kept twice.
    """
    kept = []
    for shard in shards:
        receipt = ledger.folder / "receipts" / f"{shard_name(shard)}.json"
        try:
            data = receipt.read_bytes()
        except FileNotFoundError:
            continue
        names = (f"{receipt.name}.old{number}" for number in ("", *range(2, 10_000)))
        places = (receipt.sibling(name) for name in names)
        old = next(place for place in places if not place.exists() or place.read_bytes() == data)
        if not old.exists():  # a repair that was killed here has written it
            old.write_bytes(data)
        receipt.remove()
        kept.append(old.name)
    return kept


def _encodings(description: StoreDescription) -> dict[str, Any]:
    """What was asked of the encodings of a store, as `cache` takes it."""
    asked = asked_encodings(description)
    if asked is None:
        return {"encoding": description.spec.encoding.name, "max_kl": None, "max_bytes": None, "fit_views": None}
    named = {target.name: asked.get(target.name) for target in description.spec.targets}
    return {
        "encoding": ",".join(f"{name}={text}" for name, text in named.items() if text != BY_BUDGET) or None,
        "max_kl": asked.get("max_kl"),
        "max_bytes": asked.get("max_bytes"),
        "fit_views": asked.get("views"),
    }
