"""Growth of a store by `teachonce vectors --grow`: more classes, whose logits are formed of the embeddings that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..storage_schemas.class_vectors import ClassVectors, origin_model, read_origin
from ..storage_schemas.errors import InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.growth import Growth, ranges
from ..storage_schemas.plain_text import counted, typed
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import array_names, open_root
from .growth.class_arrays import class_arrays
from .growth.derived import DerivedStage
from .growth.encodings import refuse_fitted_to_classes
from .growth.room import Step, make_room
from .inputs.class_match import base_classes
from .inputs.classes import DEFAULT_TEMPLATES, read_classes, read_templates
from .models.compute import Compute
from .models.teacher_config import TeacherConfig
from .pairs.store import open_store, read_description, read_generations, read_vectors, store_receipts
from .settings.vectors import VectorsSettings
from .teachers import Teacher, load_teacher
from .teachers.base import refuse_templates
from .teachers.class_check import check_accuracy, check_spread
from .teachers.offers import EMBEDDING, LOGITS

#: Views in a product of matrices, where the store does not say how many were in a forward pass.
_BATCH = 64


def plan_more_classes(
    config: TeacherConfig, *, out: Location | str, settings: VectorsSettings, compute: Compute
) -> Iterator[Step]:
    """The generation of a store that has more classes: those that it has, in their order, and behind them the new ones of a list.

    Where the store has all of them, the generations that it has grown by so, so that lost shards are made again.

    Args:
        config: the teacher that the class vectors are from.
        out: the finished store.
        settings: `classes` are new ones, or all; `templates` None for those of the store.
        compute: of the text tower.

    Raises:
        IncompleteError: the store is not finished, or has no class vectors.
        InputError: no class list; or the store holds logits and no embeddings.
        MismatchError: another teacher, or other templates.
    """
    check(settings)
    check(config, "teacher")
    store = Location.of(out)
    root = open_store(store)
    before, known = read_description(root, store), read_vectors(root, store)
    store_receipts(store).require_complete()
    if settings.classes is None:
        raise InputError(
            "which classes to add is not said",
            code="option-needs-another",
            where="--grow",
            expected="--classes LIST",
            hint="give a list of the new classes, or of all",
        )
    names = tuple(name for name in read_classes(settings.classes) if name not in known.names)
    if not names:
        yield from _there(store)
        return
    _refuse_logits_alone(before, store)
    if any(target.name == LOGITS for target in before.spec.targets):
        refuse_fitted_to_classes(before, store, LOGITS)
    origin = read_origin(root, store)
    templates = _templates(config, settings, origin, store)
    teacher = load_teacher(config)
    _refuse_other_teacher(root, store, teacher)
    vectors, checked = _vectors(teacher, known, teacher.class_names(names), templates, settings, compute)
    generations = read_generations(store)
    name = generations.next_name
    folder = Growth(name=name, parent=before.generation, what="classes").folder
    has_logits = any(target.name == LOGITS for target in before.spec.targets)
    spec = _spec(before.spec, vectors.num_classes) if has_logits else before.spec
    arrays = [*class_arrays(vectors), *(array_names(spec, (LOGITS,)) if has_logits else [])]
    growth = Growth(
        name=name,
        parent=before.generation,
        what="classes",
        shards=ranges(list(range(spec.num_shards))) if has_logits else (),
        arrays={**({} if before.growth is None else before.growth.arrays), **{a: f"{folder}/{a}" for a in arrays}},
        made=tuple(f"{folder}/{a}" for a in arrays),
    )
    parent = Fingerprint(fields=before.fingerprint)
    fields = {
        **before.fingerprint,
        "schema_version": max(spec.version, int(before.fingerprint.get("schema_version", 1))),
        "class_vectors": vectors.digest,
        "growth": {"what": "classes", "parent": parent.digest},
    }
    description = replace(before, spec=spec, fingerprint=fields, growth=growth)
    writing = open_root(store.zarr_store(), mode="a", where=store)
    make_room(writing, store, generations, description, (LOGITS,) if has_logits else ())
    stage = _stage(store, description, vectors, origin | ({} if checked is None else {"check": checked}), compute)
    note = f"generation {name}: {known.num_classes} to {vectors.num_classes} classes"
    yield Step(
        stage=stage,
        store=store,
        notes=(*teacher.name_notes(names, templates), note + (", logits from the embeddings" if has_logits else "")),
    )


def _stage(
    store: Location, description: StoreDescription, vectors: ClassVectors, origin: Json, compute: Compute
) -> DerivedStage:
    assert description.growth is not None
    computed: Any = description.fingerprint.get("compute") or {}
    return DerivedStage(
        store=store,
        spec=description.spec,
        growth=description.growth,
        vectors=vectors,
        origin=origin,
        fingerprint=Fingerprint(fields=description.fingerprint),
        batch_size=int(computed.get("batch_size", _BATCH)),
        threads=compute.threads,
    )


def _there(store: Location) -> Iterator[Step]:
    """The generations with more classes that the store has."""
    generations = read_generations(store)
    for description in generations.chain(generations.current):
        growth = description.growth
        if growth is None or growth.what != "classes":
            continue
        root = open_store(store, growth.name)
        vectors, origin = read_vectors(root, store), read_origin(root, store)
        compute = Compute(device="cpu", precision="fp32", threads=1)
        yield Step(
            stage=_stage(store, description, vectors, origin, compute),
            store=store,
            notes=(f"generation {growth.name} is there: {counted(vectors.num_classes, 'class')}",),
        )


def _refuse_logits_alone(before: StoreDescription, store: Location) -> None:
    names = {target.name for target in before.spec.targets}
    if LOGITS in names and EMBEDDING not in names:
        raise InputError(
            "logits of more classes need embeddings, and the store holds logits alone",
            code="growth-needs-embeddings",
            where=store,
            expected=EMBEDDING,
            found=", ".join(target.name for target in before.spec.targets),
            hint=f"add embeddings first, for which the teacher sees every image again: teachonce cache SHARDS --teacher … "
            f"--targets embedding --grow --out {typed(store)}",
        )


def _templates(config: TeacherConfig, settings: VectorsSettings, origin: Json, store: Location) -> tuple[str, ...]:
    """Those that the store's class vectors are of."""
    refuse_templates(config, settings.templates)
    known = tuple(origin.get("templates") or ())
    if settings.templates is None:
        return known or DEFAULT_TEMPLATES
    given = read_templates(settings.templates)
    if given != known:
        raise MismatchError(
            "the store's class vectors are of other prompts",
            code="growth-other-settings",
            where=f"{store}: field 'templates'",
            expected=f"{', '.join(given)} (this command)",
            found=f"{', '.join(known) or 'none'} (the store)",
            hint="leave out --templates",
        )
    return given


def _refuse_other_teacher(root: Any, store: Location, teacher: Teacher) -> None:
    origin = origin_model(root, store)
    if origin.weights_digest != teacher.spec.weights_digest:
        raise MismatchError(
            "the store's class vectors are another teacher's",
            code="vectors-other-teacher",
            where=f"{store}: field 'teacher.weights'",
            expected=f"{teacher.spec.model} {teacher.spec.weights_digest} (this teacher)",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint="use that teacher, or another --out",
        )


def _vectors(
    teacher: Teacher,
    known: ClassVectors,
    names: tuple[str, ...],
    templates: tuple[str, ...],
    settings: VectorsSettings,
    compute: Compute,
) -> tuple[ClassVectors, Json]:
    """The known class vectors and behind them those of new names; and what came of trying them on images, if that was asked for."""
    import torch

    placed = teacher.to(torch.device(compute.device))
    with compute.inference():
        new = placed.class_vectors(names, templates)
    bias_C = None if known.bias_C is None or new.bias_C is None else np.concatenate([known.bias_C, new.bias_C])
    base_C = None if known.base_C is None else np.concatenate([known.base_C, np.zeros(len(names), np.bool_)])
    vectors = replace(
        known,
        names=known.names + names,
        vectors_CD=np.concatenate([known.vectors_CD, new.vectors_CD]),
        bias_C=bias_C,
        base_C=base_C,
    )
    if settings.base_classes is not None:
        vectors = replace(vectors, base_C=base_classes(settings.base_classes, vectors.names))
    check_spread(vectors, where=teacher.spec.model)
    if settings.check is None:
        return vectors, None
    checked = check_accuracy(placed, vectors, settings.check, compute, where=teacher.spec.model)
    return vectors, checked.to_json()


def _spec(spec: StoreSpec, classes: int) -> StoreSpec:
    """The same with logits of so many classes, in arrays of their own."""

    def larger(target: TargetSpec) -> TargetSpec:
        return TargetSpec.of(
            target.name,
            target.axes[2:],
            (classes,),
            shard_size=spec.shard_size,
            num_rows=spec.num_rows,
            num_views=spec.views_together,
            encoding=spec.encoding_of(target),
            own=target.encoding is not None,
        )

    return replace(spec, targets=tuple(larger(t) if t.name == LOGITS else t for t in spec.targets))
