"""`teachonce distill`: trains a student from shards and store alone; the teacher is never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..pipeline.ledger import Ledger
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas import SCHEMA_VERSION
from ..storage_schemas.bundle import CONFIG, VECTORS, WEIGHTS, BundleConfig
from ..storage_schemas.class_vectors import ClassVectors
from ..storage_schemas.errors import MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.receipt import Output, Receipt
from .compute import Compute, keep_freed_memory, resolve_compute
from .corpora.shards import ShardSet
from .pairs.stream import PairStream
from .recipes import Recipe, Settings, recipe_named
from .students.bundle import write_bundle
from .students.family import RANDOM
from .students.student import ClassHead
from .training.starting import BuiltStudent, StudentConfig, build_student
from .training.targets import choose_targets
from .training.trainer import CHECKPOINT, Stream, Trainer
from .weights import weights_digest

#: Folder under the bundle for what only the run needs: checkpoint, log, curves.
RUN = "run"


@dataclass(frozen=True, kw_only=True)
class DistillStage:
    """One unit: one student. Made by `plan_distill`, which has checked all that can be known beforehand.

    Attributes:
        identity: everything that decides the bundle's bytes, as fingerprint fields.
        origin: the same in words, for the bundle's config.
        targets: names of the targets to read from the store.
        samples: pairs in the whole training.
        notes: lines that a person should see before training starts.
    """

    shards: ShardSet
    store: Location
    out: Location
    config: StudentConfig
    recipe: str
    settings: Settings
    vectors: ClassVectors
    compute: Compute
    seed: int
    identity: Mapping[str, Json]
    origin: Mapping[str, Json]
    targets: tuple[str, ...]
    samples: int
    notes: tuple[str, ...]
    loader_workers: int
    checkpoint_every: int | None
    show_progress: bool

    name = "distill"

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.identity)

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="student", rows=self.samples)

    def open(self) -> RunUnit:
        recipe = recipe_named(self.recipe)
        built = build_student(self.config, recipe, self.settings, self.vectors, seed=self.seed)
        if built.digest != self.identity["student"]["weights"]:
            raise MismatchError(
                "this machine starts from other weights of the student", where=self.config.model,
                expected=self.identity["student"]["weights"], found=built.digest,
                hint="give every node the same weights file and the same version of torch",
            )  # fmt: skip

        def run(unit: Unit, timer: Timer) -> Receipt:
            self._train(built, recipe, timer)
            with timer("write"):
                write_bundle(self.out, built.student, self.vectors_of(built), self._bundle_config(built))
                outputs = tuple(_output(self.out, name) for name in (CONFIG, WEIGHTS, VECTORS))
            return Receipt(
                key=unit.key, outputs=outputs, rows=unit.rows, invalid_rows=(),
                digest=weights_digest(built.student), fingerprint=self.fingerprint.digest,
            )  # fmt: skip

        return run

    def vectors_of(self, built: BuiltStudent) -> ClassVectors:
        """The class vectors as this student uses them: with its own logit scale."""
        return replace(self.vectors, logit_scale=built.logit_scale)

    def discard_checkpoint(self) -> None:
        """Free the disk once the receipt is there."""
        if Ledger(self.out, self.name).receipt("student") is not None:
            (self.out / RUN / CHECKPOINT).remove()

    def open_pairs(self, built: BuiltStudent) -> Stream:
        """The stream of pairs that trains the student."""
        return open_stream(
            self.shards, self.store, built, self.settings, targets=self.targets, seed=self.seed,
            loader_workers=self.loader_workers, pin_memory=self.compute.device == "cuda",
        )  # fmt: skip

    def _train(self, built: BuiltStudent, recipe: Recipe, timer: Timer) -> None:
        if self.compute.device == "cpu":
            keep_freed_memory()
        torch.set_num_threads(self.compute.threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        device = torch.device(self.compute.device)
        stream = self.open_pairs(built)
        try:
            Trainer(
                student=built.student.to(device),
                recipe=recipe,
                settings=self.settings,
                teacher_head=ClassHead(self.vectors).to(device),
                student_head=ClassHead(self.vectors, built.logit_scale).to(device),
                stream=stream,
                compute=self.compute,
                seed=self.seed,
                folder=self.out / RUN,
                fingerprint=self.fingerprint,
                checkpoint_every=self.checkpoint_every,
                show_progress=self.show_progress,
            ).run(timer)
        finally:
            stream.close()

    def _bundle_config(self, built: BuiltStudent) -> BundleConfig:
        return BundleConfig(
            student=built.backbone.config,
            head=built.student.head.to_json(),
            preprocess=built.backbone.preprocess.to_json(),
            class_names=self.vectors.names,
            logit_scale=built.logit_scale,
            normalized=self.vectors.normalized,
            origin=self.origin,
        )


def training_compute(device: str, precision: str, threads: int | None, *, elsewhere: bool = False) -> Compute:
    """Settle `auto` for training: bf16 on CUDA, fp32 on the CPU.

    Raises:
        InputError: `cuda` was asked for where torch finds none.
    """
    compute = resolve_compute(device, precision, threads, elsewhere=elsewhere)
    if precision == "auto" and compute.device == "cpu":
        return replace(compute, precision="fp32")
    return compute


def open_stream(
    shards: ShardSet,
    store: Location,
    built: BuiltStudent,
    settings: Settings,
    *,
    targets: tuple[str, ...],
    seed: int,
    loader_workers: int = 0,
    pin_memory: bool = False,
) -> PairStream:
    """The pairs that train this student."""
    return PairStream(
        shards,
        store,
        size=built.backbone.preprocess.size,
        batch_size=settings.batch_size,
        seed=seed,
        targets=targets,
        drop_last=True,
        loader_workers=loader_workers,
        pin_memory=pin_memory,
    )


def plan_distill(
    shards: str,
    store: str,
    config: StudentConfig,
    *,
    out: str,
    recipe: str,
    options: Mapping[str, Any],
    vectors: str | None = None,
    compute: Compute,
    seed: int = 0,
    loader_workers: int = 0,
    checkpoint_every: int | None = None,
    show_progress: bool = True,
) -> DistillStage:
    """The stage that trains a student.

    Args:
        shards: folder of finished shards.
        store: target store made from them.
        config: the student.
        out: the bundle.
        recipe: `kd` or `promptkd`.
        options: fields of `Settings` that replace the recipe's defaults; None keeps them.
        vectors: another store whose class vectors are used; the embeddings must be cached then.
        compute: device, precision, threads.
        seed: of the order, of new weights and of dropout.
        loader_workers: processes that prepare batches; decides no bytes.
        checkpoint_every: steps between checkpoints beside each epoch's end; decides no bytes.

    Raises:
        InputError, IncompleteError, MismatchError: whatever can be known before training.
    """
    method = recipe_named(recipe)
    settings = method.defaults.override(recipe, options)
    shard_set, location = ShardSet.open(shards), Location.of(store)
    taught = choose_targets(location, vectors, needs_embedding=method.needs_embedding(settings))
    built = build_student(config, method, settings, taught.vectors, seed=seed)
    stream = open_stream(shard_set, location, built, settings, targets=taught.targets, seed=seed)
    cached = Ledger(location, "cache").require_complete(hint="run the same `teachonce cache` command again")
    shared: dict[str, Json] = {
        "recipe": recipe,
        "settings": settings.to_json() | _real_depth(built, settings),
        "compute": compute.to_json(),
        "seed": seed,
        "views": {"count": stream.num_views, "schedule": "epoch mod count"},
        "targets": list(taught.targets),
    }
    identity = {
        "schema_version": SCHEMA_VERSION,
        "corpus_id": shard_set.corpus.corpus_id,
        "store": cached.fingerprint.digest,
        "class_vectors": taught.vectors.digest,
        "student": {
            "model": dict(built.backbone.config),
            "preprocess": built.backbone.preprocess.to_json(),
            "weights": built.digest,
        },
        **shared,
    }
    origin = {
        "corpus": {
            "name": shard_set.corpus.name,
            "id": shard_set.corpus.corpus_id,
            "samples": stream.num_samples,
        },
        "store": {"fingerprint": cached.fingerprint.digest, "teacher": taught.teacher},
        "class_vectors": taught.vectors.digest,
        "student_weights": built.backbone.weights,
        "steps": stream.steps_per_epoch * settings.epochs,
        **shared,
    }
    return DistillStage(
        shards=shard_set,
        store=location,
        out=Location.of(out),
        config=config,
        recipe=recipe,
        settings=settings,
        vectors=taught.vectors,
        compute=compute,
        seed=seed,
        identity=identity,
        origin=origin,
        targets=taught.targets,
        samples=stream.steps_per_epoch * settings.batch_size * settings.epochs,
        notes=_notes(built, stream, settings, recipe, config),
        loader_workers=loader_workers,
        checkpoint_every=checkpoint_every,
        show_progress=show_progress,
    )


def _real_depth(built: BuiltStudent, settings: Settings) -> dict[str, Json]:
    """Prompts go no deeper than the student has blocks."""
    return {"prompt_depth": built.student.head.prompt_depth} if settings.prompt_depth else {}


def _notes(
    built: BuiltStudent, stream: PairStream, settings: Settings, recipe: str, config: StudentConfig
) -> tuple[str, ...]:
    total = sum(p.numel() for p in built.student.parameters())
    trained = sum(p.numel() for p in built.student.trained().values())
    notes = [
        f"student {config.model} (weights: {built.backbone.weights}), {total:,} parameters, "
        f"{trained:,} of them trained by recipe {recipe}",
        f"{stream.num_samples} samples, {stream.steps_per_epoch} steps of {settings.batch_size} an epoch, "
        f"{settings.epochs} epochs",
    ]  # fmt: skip
    if stream.num_views < settings.epochs:
        uses = settings.epochs / stream.num_views
        notes.append(f"the store has {stream.num_views} views: each serves about {uses:.3g} epochs")
    depth = built.student.head.prompt_depth
    if settings.prompt_depth and depth < settings.prompt_depth:
        notes.append(
            f"prompts go {depth} layers deep, not {settings.prompt_depth}: the student has no more blocks"
        )
    if config.pretrained is None and built.backbone.weights.startswith(RANDOM):
        notes.append("no --student-pretrained: the student starts from random weights")
    return tuple(notes)


def _output(folder: Location, name: str) -> Output:
    data = (folder / name).read_bytes()
    return Output(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
