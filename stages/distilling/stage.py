"""Owns the stage of `teachonce distill`: one student that has been planned, opened, trained, and written as a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import torch

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...pipeline.types import Resources, RunUnit, Timer, Unit
from ...storage_schemas.bundle import CONFIG, RUN, VECTORS, WEIGHTS, BundleConfig
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import MismatchError
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.receipt import Output, Receipt
from ..decoding.work import Pool
from ..inputs import picture_views
from ..measures.target_statistics import Statistics
from ..models.class_head import ClassHead
from ..models.compute import Compute, keep_freed_memory
from ..models.student_config import StudentConfig
from ..models.weights import weights_digest
from ..pairs.ahead import BATCHES_MODULE
from ..pairs.batches import IMAGE
from ..recipes.recipe import Recipe
from ..recipes.registry import recipe_named
from ..recipes.settings import TrainSettings
from ..students.bundle import write_bundle
from ..training.build import BuiltStudent, StudentToTrain, build_student
from ..training.checkpoint import TrainState, discard
from ..training.loggers.tracked import Tracking
from ..training.mixture import TargetLogits
from ..training.one_pass import Ended, Stream, train_on_one_pass
from ..training.ranks import Ranks
from ..training.standardize import Standardize
from ..training.targets import TrainingTargets
from ..training.trainer import Trainer
from ..training.validation import Validation
from .pairs import TrainingPairs
from .validation_images import open_validation

#: Processes that prepare batches unless the user has chosen: fewer would be too few even where torch's threads take all cores.
_LEAST_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class DistillStage:
    """One unit: one student. Made by `plan_distill`, which has checked all that can be known beforehand.

    Attributes:
        identity: everything that decides the bundle's bytes, as fingerprint fields.
        origin: the same for people, for the bundle's config.
        pairs: what trains it.
        chosen: what its loss takes of them.
        vectors: class vectors; None where the student has no classes.
        samples: pairs in the whole training.
        validation: labelled images on which to find the best epoch; `validation_by` is the figure.
        compiled: whether to use `torch.compile`.
        cuda_graphs: whether to use CUDA graphs.
        notes: lines that a person should see before training starts.
        reuse: the note at the end on views that were used in several epochs, if that was not chosen.
        tracking: which programs show the figures, beside TensorBoard.
        statistics: of the targets that are compared standardised.
        built: the student as it was planned, while it is in this process and not trained yet.
    """

    out: Location
    config: StudentConfig
    recipe: str
    settings: TrainSettings
    vectors: ClassVectors | None
    compute: Compute
    seed: int
    identity: Mapping[str, Json]
    origin: Mapping[str, Json]
    pairs: TrainingPairs
    chosen: TrainingTargets
    samples: int
    validation: str | None
    validation_by: str
    compiled: bool
    cuda_graphs: bool
    notes: tuple[str, ...]
    reuse: str | None
    checkpoint_every: int | None
    show_progress: bool
    tracking: Tracking = field(default_factory=Tracking)
    statistics: Mapping[str, Statistics] = field(default_factory=dict, compare=False, repr=False)
    built: StudentToTrain = field(default_factory=StudentToTrain, compare=False, repr=False)

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

    def open_pairs(self, pairs: TrainingPairs, built: BuiltStudent, pool: Pool) -> Stream:
        """The stream that trains the student, and others beside it.

        Args:
            pairs: its own, joined with what the others need.
            built: the student.
            pool: where batches are made.
        """
        return pairs.open(
            image_size=built.image_size,
            batch_size=self.settings.batch_size,
            pool=pool,
            pin_memory=self.compute.device == "cuda",
        )

    def _teacher_logits(self, device: torch.device) -> TargetLogits | None:
        found = self.chosen.teacher_logits(float(getattr(self.settings, "temperature", 1.0)))
        return None if found is None else found.to(device)

    def _head(self, device: torch.device, logit_scale: float | None = None) -> ClassHead | None:
        return None if self.vectors is None else ClassHead(self.vectors, logit_scale).to(device)

    def _open_validation(self) -> Validation | None:
        validation = open_validation(self.validation, self.validation_by, self.vectors, self.pairs)
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
            text_scale=stage.chosen.text_scale,
            student_head=self.built.student.classes or stage._head(device, self.built.logit_scale),
            targets=stage.pairs.targets,
            views=tuple(name for name in stage.pairs.anew if name != IMAGE),
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
    pairs = stage.pairs.joined([student.stage.pairs for student, _ in students.values()])
    stream = stage.open_pairs(pairs, first.built, first.pool)
    trainers = {}
    for name, (student, timer) in students.items():
        try:
            trainers[name] = student.trainer(stream.steps_per_epoch), timer
        except Exception as error:
            yield name, error
    yield from train_on_one_pass(trainers, stream, show_progress=stage.show_progress)


def _output(folder: Location, name: str) -> Output:
    data = (folder / name).read_bytes()
    return Output(path=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
