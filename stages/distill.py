"""`teachonce distill`: trains a student from shards and store alone; the teacher is never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..pipeline.contents import Kind, refuse_swapped
from ..pipeline.ledger import Ledger
from ..pipeline.output import check_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.bundle import CONFIG, RUN, VECTORS, WEIGHTS, BundleConfig, bundle_version
from ..storage_schemas.class_vectors import ClassVectors
from ..storage_schemas.encodings.sampled import Sampled
from ..storage_schemas.errors import InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.growth import FIRST
from ..storage_schemas.plain_text import counted
from ..storage_schemas.receipt import Output, Receipt
from .corpora.shards import ShardSet
from .corpora.spelling import split_generation
from .decoding.work import Pool
from .inputs import picture_views
from .measures.target_statistics import Statistics, target_statistics
from .models.class_head import ClassHead
from .models.compute import Compute, keep_freed_memory
from .models.names import RANDOM
from .models.student_config import StudentConfig
from .models.weights import weights_digest
from .pairs.ahead import BATCHES_MODULE
from .pairs.batches import IMAGE
from .pairs.local_copies import DEFAULT_GB, LocalCache
from .pairs.manifest_labels import LABEL
from .pairs.order import check_batch
from .pairs.other_store import OF, OtherStore, path_of
from .pairs.sources import TargetSource
from .pairs.store import generation_of
from .pairs.stream import TargetStream
from .pairs.training_rows import RowRule, TrainingRows
from .recipes.recipe import Recipe
from .recipes.registry import recipe_named
from .recipes.settings import TrainSettings
from .samples.registry import check_kind, kind_named
from .settings.distill import DistillSettings
from .students.bundle import write_bundle
from .training.build import BuiltStudent, StudentToTrain, build_student
from .training.checkpoint import TrainState, discard
from .training.loggers.registry import check_tracking
from .training.loggers.tracked import Tracking
from .training.mixture import TargetLogits
from .training.one_pass import Ended, Stream, train_on_one_pass
from .training.ranks import Ranks
from .training.standardize import Standardize
from .training.stores_beside import StoresBeside
from .training.targets import TrainingTargets, choose_targets
from .training.trainer import Trainer
from .training.validation import Validation
from .views.anew import ViewAnew

#: Processes that prepare batches unless the user has chosen: fewer would be too few even where torch's threads take all cores.
_LEAST_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class DistillStage:
    """One unit: one student. Made by `plan_distill`, which has checked all that can be known beforehand.

    Attributes:
        identity: everything that decides the bundle's bytes, as fingerprint fields.
        origin: the same for people, for the bundle's config.
        chosen: what to read from the store.
        rows: those that train; None for all.
        vectors: class vectors; None where the student has no classes.
        order_seed: of the order of pairs.
        samples: pairs in the whole training.
        views: epoch e reads view e mod this.
        validation: labelled images on which to find the best epoch; `validation_by` is the figure.
        compiled: whether to use `torch.compile`.
        cuda_graphs: whether to use CUDA graphs.
        accept_other_pixels: whether to train where images look otherwise than the teacher saw them.
        generation: the name of the store's that it is trained from.
        local_cache: copies of shards on this machine; decides no bytes.
        anew: views that are drawn anew in each epoch.
        notes: lines that a person should see before training starts.
        reuse: the note at the end on views that were used in several epochs, if that was not chosen.
        tracking: which programs show the figures, beside TensorBoard.
        statistics: of the targets that are compared standardised.
        built: the student as it was planned, while it is in this process and not trained yet.
    """

    shards: ShardSet
    store: Location
    out: Location
    config: StudentConfig
    recipe: str
    settings: TrainSettings
    vectors: ClassVectors | None
    compute: Compute
    seed: int
    order_seed: int
    identity: Mapping[str, Json]
    origin: Mapping[str, Json]
    chosen: TrainingTargets
    rows: TrainingRows | None
    samples: int
    views: int
    validation: str | None
    validation_by: str
    compiled: bool
    cuda_graphs: bool
    accept_other_pixels: bool
    generation: str
    notes: tuple[str, ...]
    reuse: str | None
    checkpoint_every: int | None
    show_progress: bool
    local_cache: LocalCache | None = None
    anew: Mapping[str, ViewAnew] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    statistics: Mapping[str, Statistics] = field(default_factory=dict, compare=False, repr=False)
    built: StudentToTrain = field(default_factory=StudentToTrain, compare=False, repr=False)

    name = "distill"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets to read from the store."""
        return self.chosen.names

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.identity)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="student", rows=self.samples)

    def open(self) -> RunUnit:
        pool = self.open_pool()
        try:
            return OpenStudent.of(self, pool)
        except BaseException:
            pool.close()
            raise

    def discard_checkpoint(self) -> None:
        """Free the disk once the receipt is there."""
        if Ledger(self.out, self.name).receipt("student") is not None:
            discard(self.out / RUN)

    def open_pool(self) -> Pool:
        """Where batches of pairs and validation images are decoded ahead. It starts now, while students are built."""
        return self.compute.pool(BATCHES_MODULE, picture_views.__name__, least=_LEAST_WORKERS)

    def open_pairs(
        self,
        built: BuiltStudent,
        targets: Sequence[str],
        pool: Pool,
        sources: Sequence[TargetSource] | None = None,
    ) -> Stream:
        """The stream of pairs that trains the student, and others beside it.

        Args:
            built: the student.
            targets: names of those to read: its own, and what the others need.
            pool: where batches are made.
            sources: of those that the store does not hold; None for its own.
        """
        return open_stream(
            self.shards,
            self.store,
            built,
            self.settings,
            targets=tuple(targets),
            sources=self.chosen.sources if sources is None else tuple(sources),
            rows=self.rows,
            anew=self.anew,
            seed=self.order_seed,
            views=self.views,
            pool=pool,
            pin_memory=self.compute.device == "cuda",
            accept_other_pixels=self.accept_other_pixels,
            generation=self.generation,
            local_cache=self.local_cache,
        )

    def _teacher_logits(self, device: torch.device) -> TargetLogits | None:
        found = self.chosen.teacher_logits(float(getattr(self.settings, "temperature", 1.0)))
        return None if found is None else found.to(device)

    def _head(self, device: torch.device, logit_scale: float | None = None) -> ClassHead | None:
        return None if self.vectors is None else ClassHead(self.vectors, logit_scale).to(device)

    def _open_validation(self) -> Validation | None:
        validation = _validation(self.validation, self.validation_by, self.vectors, self.shards, self.rows)
        if validation is None:
            return None
        expected = self.identity["validation"]
        if validation.digest != expected:
            raise MismatchError(
                "the validation images changed",
                code="images-changed",
                where=self._validated_on,
                expected=f"{expected} (the plan)",
                found=f"{validation.digest} (now)",
                hint="give every node the same images, or restore them",
            )
        return validation

    @property
    def _validated_on(self) -> str:
        return self.validation or f"--hold-out {self.settings.hold_out:g}"

    def _bundle_config(self, built: BuiltStudent, vectors: ClassVectors | None, state: TrainState) -> BundleConfig:
        found: dict[str, Json] = {"steps": state.step}
        if state.best is not None:
            by = {} if self.validation_by == "top1" else {"by": self.validation_by}
            found["validation"] = {"images": self._validated_on, **by, **asdict(state.best)}
        found |= state.average
        return BundleConfig(
            student=built.backbone.config,
            head=replace(built.student.head, classes=0).to_json(),
            preprocess=built.backbone.preprocess.to_json(),
            class_names=() if vectors is None else vectors.names,
            base_classes=None if vectors is None else vectors.base_names,
            logit_scale=built.logit_scale if vectors is None else vectors.logit_scale,
            normalized=built.student.head.normalized,
            origin={**self.origin, **found},
        )


@dataclass(frozen=True)
class OpenStudent:
    """A student in memory, ready to be trained. As a function it does its stage's unit: a pass for this student alone.

    Attributes:
        pool: where its pairs and validation images are decoded; students of one pass have the same.
    """

    stage: DistillStage
    built: BuiltStudent
    recipe: Recipe
    pool: Pool

    @staticmethod
    def of(stage: DistillStage, pool: Pool) -> OpenStudent:
        """Build the student.

        Raises:
            MismatchError: its weights are not those that were planned with.
        """
        recipe = recipe_named(stage.recipe)
        built = stage.built.take() or build_student(
            stage.config,
            recipe,
            stage.settings,
            stage.vectors,
            stage.chosen.specs,
            seed=stage.seed,
            teacher=stage.chosen.preprocess,
        )
        if built.digest != stage.identity["student"]["weights"]:
            raise MismatchError(
                "this machine starts from other weights of the student",
                code="student-weights-differ-here",
                where=stage.config.model,
                expected=f"{stage.identity['student']['weights']} (the plan)",
                found=f"{built.digest} (this machine)",
                hint="give every node the same weights file and the same version of torch",
            )
        return OpenStudent(stage, built, recipe, pool)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        ((_, ended),) = train_students({unit.key: (self, timer)})
        if isinstance(ended, Exception):
            raise ended
        return self.write(unit, timer, ended)

    def close(self) -> None:
        self.pool.close()

    def trainer(self, steps_per_epoch: int) -> Trainer:
        """How it is trained on the device."""
        stage, device = self.stage, torch.device(self.stage.compute.device)
        return Trainer(
            student=self.built.student.to(device),
            recipe=self.recipe,
            settings=stage.settings,
            teacher_logits=stage._teacher_logits(device),
            standardize=Standardize(stage.statistics).to(device) if stage.statistics else None,
            student_head=self.built.student.classes or stage._head(device, self.built.logit_scale),
            targets=stage.targets,
            views=tuple(name for name in stage.anew if name != IMAGE),
            steps_per_epoch=steps_per_epoch,
            preprocess=self.built.backbone.preprocess,
            compute=stage.compute,
            seed=stage.seed,
            folder=stage.out / RUN,
            fingerprint=stage.fingerprint,
            validation=stage._open_validation(),
            pool=self.pool,
            ranks=Ranks.here(),
            compiled=stage.compiled,
            cuda_graphs=stage.cuda_graphs,
            checkpoint_every=stage.checkpoint_every,
            tracking=stage.tracking,
        )

    def write(self, unit: Unit, timer: Timer, state: TrainState) -> Receipt:
        """Write the bundle of a student that has been trained. Only the first rank does, and all wait for it."""
        stage = self.stage
        with timer("write"):
            vectors = self.built.vectors(stage.vectors)
            self.built.finish()
            if Ranks.here().is_first:
                config = stage._bundle_config(self.built, vectors, state)
                write_bundle(stage.out, self.built.student, vectors, config)
            Ranks.here().agree(None)  # all wait until the bundle is there
            names = (CONFIG, WEIGHTS) if stage.vectors is None else (CONFIG, WEIGHTS, VECTORS)
            outputs = tuple(_output(stage.out, name) for name in names)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=(),
            digest=weights_digest(self.built.student),
            fingerprint=stage.fingerprint.digest,
        )


def train_students(students: Mapping[str, tuple[OpenStudent, Timer]]) -> Iterator[Ended]:
    """Train students on one pass over the pairs; each as it ends, see `train_on_one_pass`.

    Args:
        students: by name, each with what its times go to. They agree in all that decides the pairs.
    """
    first = next(student for student, _ in students.values())
    stage = first.stage
    if stage.compute.device == "cpu":
        keep_freed_memory()
    torch.set_num_threads(stage.compute.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    targets = dict.fromkeys(name for student, _ in students.values() for name in student.stage.targets)
    sources = [source for student, _ in students.values() for source in student.stage.chosen.sources]
    stream = stage.open_pairs(first.built, tuple(targets), first.pool, _once(sources))
    trainers = {}
    for name, (student, timer) in students.items():
        try:
            trainers[name] = student.trainer(stream.steps_per_epoch), timer
        except Exception as error:
            yield name, error
    yield from train_on_one_pass(trainers, stream, show_progress=stage.show_progress)


def _once(sources: Sequence[TargetSource]) -> list[TargetSource]:
    """The sources of several students, each once."""
    found: list[TargetSource] = []
    for source in sources:
        if source not in found:
            found.append(source)
    return found


def open_stream(
    shards: ShardSet,
    store: Location,
    built: BuiltStudent,
    settings: TrainSettings,
    *,
    targets: tuple[str, ...],
    sources: tuple[TargetSource, ...] = (),
    rows: RowRule | TrainingRows | None = None,
    anew: Mapping[str, ViewAnew] | None = None,
    seed: int,
    views: int | None = None,
    pool: Pool | None = None,
    pin_memory: bool = False,
    accept_other_pixels: bool = False,
    generation: str | None = None,
    local_cache: LocalCache | None = None,
) -> TargetStream:
    """The pairs that train this student."""
    return TargetStream(
        shards,
        store,
        image_size=built.image_size,
        batch_size=settings.batch_size,
        seed=seed,
        targets=targets,
        sources=sources,
        rows=rows,
        anew=anew,
        views=views,
        drop_last=True,
        pool=pool,
        pin_memory=pin_memory,
        accept_other_pixels=accept_other_pixels,
        generation=generation,
        local_cache=local_cache,
    )


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
        _check_cuda_graphs(settings, compute, max(workers, Ranks.here().world_size))
    order_seed = settings.seed if settings.order_seed is None else settings.order_seed
    check(config, "student")
    vectors, validation = settings.vectors, settings.validation
    training = method.defaults.override(recipe, options)
    if validation is not None and training.hold_out:
        _refuse_both(options.get("hold_out"))
        training = replace(training, hold_out=0.0)
    refuse_swapped("distill", shards, store, is_first=Kind.SHARDS, is_second=Kind.STORE)
    check_output(
        Location.of(out),
        DistillStage.name,
        inputs=(shards, store, vectors, validation, _place_of(settings.labels), *map(path_of, settings.also)),
        names=(config.model, config.pretrained),
    )
    shard_set, location = ShardSet.open(shards), Location.of(store)
    generation = settings.generation or _begun_on(Location.of(out), location)
    others = StoresBeside(
        stores=settings.also, mix=settings.mix, weights=settings.mix_weights or (), views=settings.views
    )
    chosen = choose_targets(shard_set, location, vectors, method, training, generation, others, settings.labels)
    _refuse_one_class(chosen, training, where=vectors or store)
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
    local_cache = _local_cache(settings)
    anew = method.views_anew(training, built.backbone.preprocess) if method.reads_images else {}
    stream = open_stream(
        shard_set,
        location,
        built,
        training,
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
        anew=anew,
        seed=order_seed,
        views=settings.views,
        accept_other_pixels=settings.accept_other_pixels,
        generation=generation,
        local_cache=local_cache,
    )
    shard_set = stream.shards
    parts = workers * training.accumulate
    _refuse_seen_domains(built, shard_set, settings.leave_out)
    if training.per_domain:
        training = _with_batch(training, stream, options.get("batch_size"))
    check_batch(stream.samples_per_epoch, training.batch_size, drop_last=True, world_size=parts)
    checking = _validation(validation, settings.validation_by, chosen.vectors, shard_set, stream.rows)
    if training.select == "swad" and checking is None:
        raise InputError(
            "SWAD needs validation images",
            code="option-needs-another",
            where="--select swad",
            hint="add --hold-out 0.2 or --validation IMAGES, or choose --select best",
        )
    if training.patience and checking is None:
        raise InputError(
            "early stopping needs validation images",
            code="option-needs-another",
            where="--patience",
            hint="add --validation IMAGES, or --hold-out 0.2",
        )
    statistics = _statistics(method.standardized(training, chosen.names), chosen, stream)
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
        **({"anew": {name: view.to_json() for name, view in anew.items()}} if anew else {}),
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
        shards=shard_set,
        store=location,
        out=Location.of(out),
        config=config,
        recipe=recipe,
        settings=training,
        vectors=chosen.vectors,
        compute=compute,
        seed=settings.seed,
        order_seed=order_seed,
        identity=identity,
        origin=origin,
        chosen=chosen,
        rows=stream.rows,
        samples=stream.steps_per_epoch * training.batch_size * training.epochs,
        views=stream.num_views,
        validation=validation,
        validation_by=settings.validation_by,
        compiled=settings.compiled,
        cuda_graphs=settings.cuda_graphs,
        accept_other_pixels=settings.accept_other_pixels,
        generation=stream.store.generation,
        notes=_notes(built, stream, training, recipe, config, checking)
        + tuple(source.note for source in chosen.sources if source.note)
        + _notes_on_draws(chosen, training),
        reuse=None if settings.reuse_views or anew else _reuse(stream, training),
        checkpoint_every=settings.checkpoint_every,
        show_progress=show_progress,
        local_cache=local_cache,
        anew=anew,
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


def _refuse_both(hold_out: object) -> None:
    """Refuse a share to hold out that a user chose beside other images to validate on; a recipe's default gives way."""
    if hold_out:
        raise InputError(
            "--validation and --hold-out exclude each other",
            code="options-exclude-each-other",
            where="--hold-out",
            found=hold_out,
            hint="leave one of them out",
        )


def _refuse_seen_domains(built: BuiltStudent, shards: ShardSet, leave_out: Sequence[str]) -> None:
    """A student that has learned from a domain is no test of leaving it out."""
    start = built.start or {}
    seen = sorted(set(leave_out) - set(start.get("leave_out", ())))
    if seen and start.get("corpus", {}).get("id") == shards.corpus.corpus_id:
        raise InputError(
            "the student to start from has learned from a domain that is left out",
            code="domain-already-seen",
            where="--student-pretrained",
            expected=" ".join(f"--leave-out {domain}" for domain in sorted(leave_out)),
            found=" ".join(f"--leave-out {domain}" for domain in start.get("leave_out", ())) or "no domain left out",
            hint="start from a student that was trained without it",
        )


def _with_batch(settings: TrainSettings, stream: TargetStream, given: int | None) -> TrainSettings:
    """The settings with the samples of a step that the domains make."""
    if given is not None and given != stream.batch_size:
        raise InputError(
            "--per-domain decides how large a batch is",
            code="options-exclude-each-other",
            where="--batch-size",
            expected=f"{stream.batch_size}: {settings.per_domain} of each domain",
            found=given,
            hint="leave out --batch-size",
        )
    settings = replace(settings, batch_size=stream.batch_size)
    settings.check()
    return settings


def _statistics(names: Sequence[str], chosen: TrainingTargets, stream: TargetStream) -> dict[str, Statistics]:
    """Of targets of the store, and of others beside it."""
    found: dict[str, Statistics] = {}
    others = [source for source in chosen.sources if isinstance(source, OtherStore)]
    for facts, prefix in ((stream.store, ""), *((other.facts, f"{other.name}{OF}") for other in others)):
        own = {
            name.removeprefix(prefix): name
            for name in names
            if (OF in name) == bool(prefix) and name.startswith(prefix)
        }
        if own:
            found |= target_statistics(facts, own, stream.num_views)
    return found


def _place_of(labels: str | None) -> str | None:
    return None if labels is None else split_generation(labels)[0]


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


def _check_cuda_graphs(settings: DistillSettings, compute: Compute, processes: int) -> None:
    if compute.device != "cuda":
        raise InputError(
            "CUDA graphs need a GPU",
            code="option-needs-another",
            where="--cuda-graphs",
            expected="--device cuda",
            found=compute.device,
            hint="leave out --cuda-graphs",
        )
    if settings.compiled or processes > 1:
        raise InputError(
            "CUDA graphs are for one process, without --compile",
            code="options-exclude-each-other",
            where="--cuda-graphs",
            found="--compile" if settings.compiled else f"{processes} processes",
            hint="leave out one of them",
        )


def _refuse_one_class(chosen: TrainingTargets, settings: TrainSettings, where: object) -> None:
    """A divergence over one class is 0 whatever the student gives, so nothing would be learned from it alone."""
    vectors = chosen.vectors
    if vectors is None or vectors.num_classes > 1 or _other_terms(chosen, settings):
        return
    looks = hasattr(settings, "embedding_loss")
    other = ", or let kd look at embeddings: --embedding-loss cosine" if looks else ""
    raise InputError(
        "nothing can be learned from one class: the loss is 0",
        code="class-only-one",
        where=f"{where}, class {vectors.names[0]!r}",
        expected="2 classes or more",
        found=1,
        hint=f"compute class vectors of more classes into another store and name it with --vectors{other}",
    )


def _other_terms(chosen: TrainingTargets, settings: TrainSettings) -> bool:
    """Whether the loss has a term for other targets than logits, with a weight that is not 0."""
    return not set(chosen.requested) <= {"logits", LABEL} and bool(getattr(settings, "embedding_weight", 1))


def _validation(
    images: str | None, by: str, vectors: ClassVectors | None, shards: ShardSet, rows: TrainingRows | None
) -> Validation | None:
    held = rows is not None and bool(rows.listing.rule.hold_out)
    if (images is not None or held) and vectors is None:
        raise InputError(
            "validation needs class vectors, and this student has none",
            code="validation-needs-vectors",
            where="--hold-out" if images is None else f"--validation {images}",
            hint="learn the teacher's embedding too, from a store with class vectors; or leave it out",
        )
    if images is not None and vectors is not None:
        kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        return Validation.open(images, vectors.names, by=by, base_C=vectors.base_C, kind=kind)
    if rows is not None and held and vectors is not None:
        kind = kind_named(shards.corpus.sample_kind, where=shards.location)
        return Validation.held_out(shards, rows.held_out, vectors.names, by=by, base_C=vectors.base_C, kind=kind)
    if by != "top1":
        raise InputError(
            "a figure to select by needs validation images",
            code="option-needs-another",
            where=f"--validation-by {by}",
            hint="add --validation IMAGES, or --hold-out 0.2",
        )
    return None


def _real_depth(built: BuiltStudent) -> dict[str, Json]:
    """Prompts go no deeper than the student has blocks."""
    depth = built.student.head.prompt_depth
    return {"prompt_depth": depth} if depth else {}


def _notes(
    built: BuiltStudent,
    stream: TargetStream,
    settings: TrainSettings,
    recipe: str,
    config: StudentConfig,
    checking: Validation | None,
) -> tuple[str, ...]:
    total = sum(p.numel() for p in built.student.parameters())
    trained = sum(p.numel() for p in built.student.trained().values())
    notes = [
        f"student {built.backbone.to_text(config.model, built.digest)}",
        f"{total:,} parameters, {trained:,} of them trained by recipe {recipe}",
        f"{counted(stream.num_samples, 'sample')}, {counted(stream.steps_per_epoch, 'step')} of {settings.batch_size} an epoch, "
        f"{counted(settings.epochs, 'epoch')}",
    ]
    if stream.note:
        notes.append(stream.note)
    if stream.rows is not None and (note := stream.rows.note()):
        notes.append(note)
    if checking is not None:
        labelled = checking.labelled
        notes.append(
            f"validation on {len(labelled)} of the {counted(labelled.found, 'image')} in {labelled.images}, "
            f"whose labels are {'names of base classes' if checking.by == 'base' else 'class names'}"
        )
        notes += labelled.notes
    depth, wanted = built.student.head.prompt_depth, getattr(settings, "prompt_depth", 0)
    if depth < wanted:
        notes.append(f"prompts go {depth} layers deep, not {wanted}: the student has no more blocks")
    notes += [f"{level.target} is compared with the student's {level.layer}" for level in built.student.head.levels]
    if config.pretrained is None and built.backbone.weights.startswith(RANDOM):
        notes.append("no --student-pretrained: the student starts from random weights")
    return tuple(notes)


def _notes_on_draws(chosen: TrainingTargets, settings: TrainSettings) -> tuple[str, ...]:
    """A warning where targets are draws, which are right on average at T = 1 alone."""
    temperature = getattr(settings, "temperature", 1.0)
    drawn = [name for name, target in chosen.specs.items() if isinstance(target.encoding, Sampled)]
    if not drawn or temperature == 1:
        return ()
    return (
        f"{', '.join(drawn)} are draws from the teacher's distribution: at temperature {temperature:g} their gradients are biased; "
        "use --temperature 1, or a store in another encoding",
    )


def _reuse(stream: TargetStream, settings: TrainSettings) -> str | None:
    if stream.num_views >= settings.epochs:
        return None
    uses = settings.epochs / stream.num_views
    return (
        f"{counted(stream.num_views, 'view')} were used in {counted(settings.epochs, 'epoch')}, each about {uses:.3g} times; "
        "--reuse-views leaves out this note"
    )


def _output(folder: Location, name: str) -> Output:
    data = (folder / name).read_bytes()
    return Output(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
