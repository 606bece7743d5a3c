"""`teachonce anomalies`: where images differ from those that a decoder has learned, from the maps in a store; no teacher is loaded."""

from __future__ import annotations

import json
from typing import Any

from ..pipeline.contents import Kind, refuse_swapped
from ..pipeline.output import check_output, claim_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..storage_schemas.bundle import WEIGHTS
from ..storage_schemas.errors import MismatchError
from ..storage_schemas.store_description import StoreDescription
from .anomaly.pictures import write_pictures
from .anomaly.results import AnomalyResults, open_entries
from .anomaly.stage import AnomalyStage
from .anomaly.truth import Truth, has_defect
from .corpora.shards import ShardSet
from .models.compute import Compute
from .models.preprocess import Preprocess
from .pairs.join import open_pair
from .pairs.store import open_store, read_description
from .samples.images import IMAGES
from .samples.registry import check_kind
from .settings.anomalies import AnomalySettings
from .students.bundle import load_map_student

#: Files of the output, beside `maps` and `pictures`.
SCORES, RESULTS = "scores.csv", "results.json"


def plan_anomalies(
    shards: Location | str,
    store: Location | str,
    bundle: Location | str,
    *,
    out: Location | str,
    compute: Compute,
    settings: AnomalySettings | None = None,
) -> AnomalyStage:
    """The stage that computes anomaly maps of test images.

    Args:
        shards, store: of the test images: cached as those were that the student learned from.
        bundle: a student of `--recipe reverse-distillation`.
        out: folder for maps, scores, figures and pictures.
        settings: None for the defaults.

    Raises:
        InputError, IncompleteError, DamagedError: one of them is not what it should be, or not finished.
        MismatchError: store and shards do not belong together; maps of another teacher, or of other shapes.
    """
    settings = settings or AnomalySettings()
    check(settings)
    refuse_swapped("anomalies", shards, store, is_first=Kind.SHARDS, is_second=Kind.STORE)
    place, folder = Location.of(out), Location.of(bundle)
    check_output(place, AnomalyStage.name, inputs=(shards, store, bundle, settings.masks))
    student, config = load_map_student(folder)
    shard_set, facts = open_pair(ShardSet.open(shards), Location.of(store))
    check_kind(facts.sample_kind, IMAGES.name, where=shard_set.location, expected_by="anomaly maps")
    student.check({target.name: target.shape for target in facts.spec.targets}, where=facts.store)
    about = read_description(open_store(facts.store, facts.generation), facts.store)
    _check_teacher(about, config.origin, facts.store)
    masks = None if settings.masks is None else Truth.of(settings.masks)
    digest = None
    if masks is not None:
        digest = masks.identity(sorted(p for p, label in open_entries(shard_set).items() if has_defect(label)))
    claim_output(place, AnomalyStage.name)
    return AnomalyStage(
        shards=shard_set,
        facts=facts,
        bundle=folder,
        student=(config.files or {}).get(WEIGHTS, ""),
        out=place,
        image_size=Preprocess.from_json(about.teacher["preprocess"], facts.store).size,
        masks=masks,
        masks_digest=digest,
        compute=compute,
        batch_size=settings.batch_size,
    )


def finish_anomalies(stage: AnomalyStage, settings: AnomalySettings) -> dict[str, Any]:
    """Once all units are done: figures and scores of all, and pictures. Returns the figures.

    Raises:
        DamagedError: a file is missing or damaged.
    """
    results = AnomalyResults.of(stage)
    facts = results.to_json()
    _keep(stage.out / SCORES, results.to_csv())
    _keep(stage.out / RESULTS, json.dumps(facts, indent=1, ensure_ascii=False).encode() + b"\n")
    write_pictures(stage, results, settings.pictures)
    return facts


def _check_teacher(about: StoreDescription, origin: Any, store: Location) -> None:
    """The maps must be those of the teacher that the student learned from, of images that were prepared alike."""
    learned = origin["store"]["teacher"]
    for field in ("weights_digest", "preprocess"):
        if learned.get(field) != about.teacher.get(field):
            raise MismatchError(
                "these maps are another teacher's than those that the student learned from",
                code="maps-other-teacher",
                where=f"{store}: field 'teacher.{field}'",
                expected=f"{learned.get('model')}: {learned.get(field)} (the student)",
                found=f"{about.teacher.get('model')}: {about.teacher.get(field)} (the store)",
                hint="cache these images with the teacher and options of the store that the student learned from",
            )


def _keep(location: Location, data: bytes) -> None:
    """Write a file, unless it is there as it should be."""
    if not location.exists() or location.read_bytes() != data:
        location.write_bytes(data)
