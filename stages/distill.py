"""`teachonce distill`: trains a student from shards and store alone; the teacher is never loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..pipeline.contents import Kind, refuse_swapped
from ..pipeline.ledger import Ledger
from ..pipeline.output import check_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..storage_schemas.bundle import bundle_version
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.growth import FIRST
from .corpora.shards import ShardSet
from .distilling.checks import check_cuda_graphs, refuse_both, refuse_one_class, refuse_seen_domains, with_batch
from .distilling.notes import note_on_reuse, notes_before, notes_on_draws, notes_on_parts
from .distilling.pairs import TrainingPairs
from .distilling.stage import DistillStage
from .distilling.validation_images import open_validation, refuse_missing
from .models.compute import Compute
from .models.student_config import StudentConfig
from .pairs.local_copies import DEFAULT_GB, LocalCache
from .pairs.order import check_batch
from .pairs.store import generation_of
from .pairs.training_rows import RowRule
from .recipes.registry import recipe_named
from .samples.registry import check_kind
from .settings.distill import DistillSettings
from .training.build import BuiltStudent, StudentToTrain, build_student
from .training.loggers.registry import check_tracking
from .training.loggers.tracked import Tracking
from .training.named_sources import NamedSources
from .training.ranks import Ranks
from .training.targets import choose_targets


def plan_distill(
    shards: Location | str,
    store: Location | str,
    config: StudentConfig,
    *,
    out: Location | str,
    recipe: str,
    options: Mapping[str, Any],
    settings: DistillSettings | None = None,
    compute: Compute,
    workers: int = 1,
    group: str = "",
    show_progress: bool = True,
) -> DistillStage:
    """The stage that trains a student.

    Args:
        shards: folder of finished shards.
        store: target store made from them.
        config: the student.
        out: the bundle.
        recipe: the name of one, see `recipes.registry`.
        options: fields of its settings that replace the recipe's defaults; None keeps them.
        settings: beside the recipe's; None for the defaults.
        compute: device, precision, threads.
        workers: processes among which each batch is shared out; they train what one would, to rounding.
        group: the name that students of one pass have in common where figures are shown; '' for one alone.

    Raises:
        InputError, IncompleteError, MismatchError: whatever can be known before training.
    """
    method = recipe_named(recipe)
    settings = settings or DistillSettings()
    check(settings)
    check_tracking(Tracking(wandb=settings.wandb, mlflow=settings.mlflow))
    if settings.cuda_graphs:
        check_cuda_graphs(settings, compute, max(workers, Ranks.here().world_size))
    order_seed = settings.seed if settings.order_seed is None else settings.order_seed
    check(config, "student")
    validation = settings.validation
    named = NamedSources(
        vectors=settings.vectors,
        stores=settings.also,
        mix=settings.mix,
        weights=settings.mix_weights or (),
        views=settings.views,
        labels=settings.labels,
        captions=settings.captions,
    )
    training = method.defaults.override(recipe, options)
    if validation is not None and training.hold_out:
        refuse_both(options.get("hold_out"))
        training = replace(training, hold_out=0.0)
    refuse_swapped("distill", shards, store, is_first=Kind.SHARDS, is_second=Kind.STORE)
    check_output(
        Location.of(out),
        DistillStage.name,
        inputs=(shards, store, validation, *named.paths),
        names=(config.model, config.pretrained),
    )
    shard_set, location = ShardSet.open(shards), Location.of(store)
    generation = settings.generation or _begun_on(Location.of(out), location)
    chosen = choose_targets(shard_set, location, named, method, training, generation)
    refuse_one_class(chosen, training, where=named.vectors or store)
    built = build_student(
        config, method, training, chosen.vectors, chosen.specs, seed=settings.seed, teacher=chosen.preprocess
    )
    if method.reads_images:
        check_kind(
            shard_set.corpus.sample_kind,
            built.backbone.preprocess.sample_kind,
            where=shard_set.location,
            expected_by="the student",
        )
    pairs = TrainingPairs(
        shards=shard_set,
        store=location,
        targets=chosen.names,
        sources=chosen.sources,
        rows=RowRule(
            leave_out=settings.leave_out,
            hold_out=training.hold_out,
            per_domain=training.per_domain,
            steps=training.steps_per_epoch,
            seed=order_seed,
            complete=chosen.class_ids if method.needs_all_labels(training) else (),
        ),
        anew=method.views_anew(training, built.backbone.preprocess) if method.reads_images else {},
        order_seed=order_seed,
        views=settings.views,
        accept_other_pixels=settings.accept_other_pixels,
        generation=generation,
        local_cache=_local_cache(settings),
    )
    stream = pairs.open(image_size=built.image_size, batch_size=training.batch_size)
    pairs = pairs.found(stream)
    shard_set = pairs.shards
    refuse_seen_domains(built, shard_set, settings.leave_out)
    if training.per_domain:
        training = with_batch(training, stream, options.get("batch_size"))
    parts = workers * training.accumulate
    check_batch(stream.samples_per_epoch, training.batch_size, drop_last=True, world_size=parts)
    checking = open_validation(validation, settings.validation_by, chosen.vectors, pairs)
    refuse_missing(training, checking)
    statistics = pairs.statistics(method.standardized(training, chosen.names), stream)
    shared: dict[str, Json] = {
        "recipe": recipe,
        "settings": training.to_json() | _real_depth(built),
        "compute": compute.to_json(),
        "seed": settings.seed,
        **({} if order_seed == settings.seed else {"order_seed": order_seed}),
        "views": {"count": stream.num_views, "schedule": "epoch mod count"},
        **chosen.identity,
        **({"leave_out": sorted(settings.leave_out)} if settings.leave_out else {}),
        **({"statistics": {name: one.digest for name, one in statistics.items()}} if statistics else {}),
        **({"anew": {name: view.to_json() for name, view in pairs.anew.items()}} if pairs.anew else {}),
        **({"compiled": True} if settings.compiled else {}),
        **({"cuda_graphs": True} if settings.cuda_graphs else {}),
    }
    identity = {
        "schema_version": bundle_version(chosen.vectors is not None, built.student.head.levels),
        "corpus_id": shard_set.corpus.corpus_id,
        "store": stream.store.fingerprint,
        **({} if chosen.vectors is None else {"class_vectors": chosen.vectors.digest}),
        "student": {
            "model": dict(built.backbone.config),
            "preprocess": built.backbone.preprocess.to_json(),
            "weights": built.digest,
        },
        **shared,
        **({"validation": checking.digest} if checking is not None else {}),
    }
    origin = {
        "corpus": {
            "name": shard_set.corpus.name,
            "id": shard_set.corpus.corpus_id,
            "samples": stream.num_samples,
        },
        "store": {
            "fingerprint": stream.store.fingerprint,
            **({} if stream.store.generation == FIRST else {"generation": stream.store.generation}),
            "teacher": chosen.teacher,
        },
        **({} if chosen.vectors is None else {"class_vectors": chosen.vectors.digest}),
        "student_weights": built.backbone.weights,
        **shared,
    }
    return DistillStage(
        out=Location.of(out),
        config=config,
        recipe=recipe,
        settings=training,
        vectors=chosen.vectors,
        compute=compute,
        seed=settings.seed,
        identity=identity,
        origin=origin,
        pairs=pairs,
        chosen=chosen,
        samples=stream.steps_per_epoch * training.batch_size * training.epochs,
        validation=validation,
        validation_by=settings.validation_by,
        compiled=settings.compiled,
        cuda_graphs=settings.cuda_graphs,
        notes=notes_before(built, stream, training, recipe, config, checking)
        + tuple(source.note for source in chosen.sources if source.note)
        + notes_on_draws(chosen, training)
        + notes_on_parts(method, training, parts),
        reuse=None if settings.reuse_views or pairs.anew else note_on_reuse(stream, training),
        checkpoint_every=settings.checkpoint_every,
        show_progress=show_progress,
        tracking=Tracking(
            wandb=settings.wandb,
            mlflow=settings.mlflow,
            name=Location.of(out).name,
            group=group,
            about={"student": config.model, **origin},
        ),
        statistics=statistics,
        built=StudentToTrain(built),
    )


def _local_cache(settings: DistillSettings) -> LocalCache | None:
    if settings.local_cache is None:
        if settings.local_cache_gb is not None:
            raise InputError(
                "--local-cache-gb needs --local-cache",
                code="option-needs-another",
                where="--local-cache-gb",
                found=f"{settings.local_cache_gb:g}",
                hint="name the folder too: --local-cache FOLDER",
            )
        return None
    return LocalCache(folder=settings.local_cache, gb=settings.local_cache_gb or DEFAULT_GB)


def _begun_on(out: Location, store: Location) -> str | None:
    """The generation of the store that a run in this folder was begun on: it goes on with it, also where the store has grown since."""
    plan = Ledger(out, DistillStage.name).plan()
    return None if plan is None else generation_of(store, str(plan.fingerprint.fields.get("store")))


def _real_depth(built: BuiltStudent) -> dict[str, Json]:
    """Prompts go no deeper than the student has blocks."""
    depth = built.student.head.prompt_depth
    return {"prompt_depth": depth} if depth else {}
