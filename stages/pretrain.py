"""`teachonce pretrain`: tunes a teacher's prompts on a few labelled images of each base class, after PromptSRC."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..pipeline.ledger import Ledger, record_outputs
from ..pipeline.output import check_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.bundle import RUN
from ..storage_schemas.errors import InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.formats import PROMPTS_FOLDER
from ..storage_schemas.plain_text import counted
from ..storage_schemas.prompts import PROMPTS, PromptsConfig
from ..storage_schemas.receipt import Receipt
from .inputs.class_match import base_classes
from .inputs.classes import classes_of
from .measures.labelled import LabelledImages
from .models.compute import Compute, keep_freed_memory
from .models.picture_pool import picture_pool
from .models.preprocess import Normalize
from .models.teacher_config import TeacherConfig
from .models.tokenizer import name_notes
from .pretraining.few_shot import sample_shots
from .pretraining.promptsrc import plain_text_features
from .pretraining.settings import PretrainSettings
from .pretraining.shots import Shots
from .pretraining.tuner import Tuner
from .prompts.clip import PromptedClip, PromptShape, class_ids
from .prompts.folder import write_prompts
from .prompts.text import check_text_tower, count_text_blocks, prompt_texts
from .prompts.vision import check_tower, count_blocks
from .settings.few_shot import FewShotSettings
from .teachers.base import TeacherSpec, require_open_clip
from .teachers.open_clip import OpenClipTeacher
from .teachers.same_weights import check_weights
from .training.checkpoint import discard
from .views.settings import RandomViews
from .views.spec import ViewSpec


@dataclass(frozen=True, kw_only=True)
class PretrainStage:
    """One unit: the prompts of one teacher. Made by `plan_pretrain`, which has checked all that can be known beforehand.

    Attributes:
        images: labelled images that the shots are drawn from, as the user named them.
        teacher: the model that gets prompts.
        names: all classes, base and novel, in order.
        base_C: bool (class,): the classes to learn on.
        shots: images of each of them.
        shots_digest: of the images that were drawn.
        shape: the prompts.
        views: one view of each image for each epoch.
        notes: lines that a person should see before training starts.
    """

    images: str
    out: Location
    config: TeacherConfig
    teacher: TeacherSpec
    names: tuple[str, ...]
    base_C: NDArray[np.bool_]
    shots: int
    shots_digest: str
    settings: PretrainSettings
    shape: PromptShape
    views: ViewSpec
    compute: Compute
    seed: int
    notes: tuple[str, ...]
    checkpoint_every: int | None
    show_progress: bool

    name = "pretrain"

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            fields={
                "schema_version": PROMPTS_FOLDER.version,
                "teacher": {
                    "model": self.teacher.model,
                    "architecture": self.teacher.architecture,
                    "weights": self.teacher.weights_digest,
                    "preprocess": self.teacher.preprocess.to_json(),
                },
                "classes": list(self.names),
                "base_classes": list(self.base_names),
                **self._facts,
            }
        )

    @property
    def base_names(self) -> tuple[str, ...]:
        return tuple(np.array(self.names, object)[self.base_C])

    @property
    def _facts(self) -> dict[str, Json]:
        return {
            "shots": {"per_class": self.shots, "seed": self.seed, "digest": self.shots_digest},
            "settings": self.settings.to_json() | self.shape.to_json(),
            "views": self.views.to_json(),
            "compute": self.compute.to_json(),
        }

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"))

    def plan(self) -> Iterator[Unit]:
        yield Unit(key="prompts", rows=self.shots * len(self.base_names) * self.settings.epochs)

    def open(self) -> RunUnit:
        if self.compute.device == "cpu":
            keep_freed_memory()
        backbone = OpenClipTeacher.load(self.config)
        check_weights(backbone.spec, self.teacher.weights_digest, where=self.config.model)
        shots = draw_shots(self.images, self.names, self.base_C, self.shots, self.seed, self.teacher, self.views)
        digest = shots.check()
        if digest != self.shots_digest:
            raise MismatchError(
                "the images changed",
                code="images-changed",
                where=self.images,
                expected=f"{self.shots_digest} (the plan)",
                found=f"{digest} (now)",
                hint="give every node the same images, or restore them",
            )

        return _Tuning(self, backbone, shots)

    def discard_checkpoint(self) -> None:
        """Free the disk once the receipt is there."""
        if Ledger(self.out, self.name).receipt("prompts") is not None:
            discard(self.out / RUN)

    def build(self, backbone: OpenClipTeacher) -> PromptedClip:
        """The model with prompts as training starts with them, on the CPU."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            clip = PromptedClip(backbone.model, self.shape)
        clip.start_from(self.settings.context, backbone.tokenizer)
        return clip

    def _tune(self, backbone: OpenClipTeacher, shots: Shots, timer: Timer) -> PromptedClip:
        torch.set_num_threads(self.compute.threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        device = torch.device(self.compute.device)
        with closing(picture_pool(self.compute, len(shots.pictures) * self.settings.epochs)) as pool:
            clip = self.build(backbone).to(device)
            with timer("text"), self.compute.inference():
                plain_CD = plain_text_features(backbone.model, backbone.tokenizer, self.base_names)
            Tuner(
                clip=clip,
                normalize=Normalize(self.teacher.preprocess).to(device),
                ids_CT=class_ids(self.settings.context, self.base_names, backbone.tokenizer).to(device),
                plain_text_CD=plain_CD.clone(),  # not an inference tensor: gradients pass beside it
                shots=shots,
                pool=pool,
                settings=self.settings,
                compute=self.compute,
                seed=self.seed,
                folder=self.out / RUN,
                fingerprint=self.fingerprint,
                checkpoint_every=self.checkpoint_every,
                show_progress=self.show_progress,
            ).run(timer)
        return clip

    def _config_of(self, backbone: OpenClipTeacher) -> PromptsConfig:
        spec = backbone.spec
        return PromptsConfig(
            backbone={
                "model": self.config.model,
                "pretrained": self.config.pretrained,
                "architecture": spec.architecture,
                "weights": spec.weights_digest,
                "preprocess": spec.preprocess.to_json(),
            },
            shape=self.shape.to_json(),
            context=self.settings.context,
            class_names=self.names,
            base_classes=self.base_names,
            origin={"method": "PromptSRC", **self._facts},
        )


@dataclass(frozen=True)
class _Tuning:
    """Tunes the prompts and writes their folder."""

    stage: PretrainStage
    backbone: OpenClipTeacher
    shots: Shots

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        clip = self.stage._tune(self.backbone, self.shots, timer)
        with timer("write"):
            names = write_prompts(self.stage.out, clip.prompts(), self.stage._config_of(self.backbone))
            outputs = record_outputs(self.stage.out, list(names))
        learned = (self.stage.out / PROMPTS).read_bytes()
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=(),
            digest=hashlib.blake2b(learned, digest_size=16).hexdigest(),
            fingerprint=self.stage.fingerprint.digest,
        )


def draw_shots(
    images: str,
    names: tuple[str, ...],
    base_C: NDArray[np.bool_],
    shots: int,
    seed: int,
    teacher: TeacherSpec,
    views: ViewSpec,
) -> Shots:
    """The images to learn on, with the place of each one's class among the base classes.

    Raises:
        InputError: a label that is no class, a class without images or with fewer than `shots`.
    """
    labelled = LabelledImages.open(images, names, what="training")
    for label, reason in labelled.unknown.items():
        raise InputError(
            "a label of the images is not in the class list",
            code="label-unknown",
            where=f"{images}: {label!r}",
            found=reason,
            hint="add it to --classes, or take its images out",
        )
    places_N = _places(labelled)
    ids_N = labelled.class_ids_N.astype(np.int64)
    drawn = sample_shots(ids_N, places_N, shots=shots, seed=seed, only_C=base_C, names=names)
    kept = labelled.keep(np.isin(np.arange(labelled.found), drawn))
    pictures = dict(zip(np.sort(drawn).tolist(), kept, strict=True))
    place_C = np.cumsum(base_C) - 1
    return Shots(
        pictures=[(pictures[i][0], int(place_C[pictures[i][1]])) for i in drawn.tolist()],
        size=teacher.preprocess.size,
        views=views,
        files=labelled.image_set.files,
        kind=labelled.image_set.kind,
        max_pixels=labelled.image_set.max_pixels,
        notes=labelled.notes,
    )


def _places(labelled: LabelledImages) -> NDArray[np.int64]:
    """The place of each image in the order to draw in, int64 (image,): a split file's, else that of the paths.

    Shards draw as their folder would, whatever the order of their rows.
    """
    pictures = labelled.image_set.pictures()
    if labelled.image_set.shards is None:
        return np.fromiter((picture.place for picture in pictures), np.int64, labelled.found)
    paths = [picture.path.encode() for picture in pictures]
    places_N = np.empty(labelled.found, np.int64)
    places_N[sorted(range(len(paths)), key=paths.__getitem__)] = np.arange(len(paths))
    return places_N


def plan_pretrain(
    images: str,
    config: TeacherConfig,
    *,
    out: Location | str,
    few: FewShotSettings | None = None,
    settings: PretrainSettings | None = None,
    views: RandomViews | None = None,
    compute: Compute,
    checkpoint_every: int | None = None,
    show_progress: bool = True,
) -> PretrainStage:
    """The stage that tunes a teacher's prompts.

    Args:
        images: labelled images, as `evaluate` takes them; the shots are drawn from them.
        config: an open_clip teacher.
        out: folder for the prompts.
        few: which images to learn on; None for the defaults, as for the others.
        settings: of the training.
        views: of the shots; drawn by the seed of `few`, with the teacher's filter.
        compute: device, precision, threads.
        checkpoint_every: steps between checkpoints beside each epoch's end; decides no bytes.

    Raises:
        InputError: a teacher that cannot take prompts, bad classes, too few images, an impossible setting.
        MismatchError: not raised here, but later by `Ledger.begin`.
    """
    require_open_clip(config.model)
    few, settings, views = few or FewShotSettings(), settings or PretrainSettings(), views or RandomViews()
    check(few)
    settings.check()
    check(views, "view")
    check(config, "teacher")
    classes, base, shots, seed = few.classes, few.base_classes, few.shots, few.seed
    check_output(
        Location.of(out),
        PretrainStage.name,
        inputs=(images,),
        names=(classes, base, config.model, config.pretrained, config.backbone),
    )
    names = classes_of(images, classes)
    base_C = np.ones(len(names), np.bool_) if base is None else base_classes(base, names)
    if base_C.sum() < 2:
        raise InputError(
            "nothing can be learned from one class: the loss is 0",
            code="class-only-one",
            where=f"class {names[int(base_C.argmax())]!r}",
            expected="2 base classes or more",
            found=1,
            hint="name more of them with --base-classes" if base is not None else "give more classes",
        )
    backbone = OpenClipTeacher.load(config)
    check_tower(backbone.model.visual, role="teacher")
    check_text_tower(backbone.model)
    spec = ViewSpec.random(settings.epochs, replace(views, seed=seed), backbone.spec.preprocess.interpolation)
    drawn = draw_shots(images, names, base_C, shots, seed, backbone.spec, spec)
    if settings.batch_size > len(drawn.pictures):
        raise InputError(
            "a batch is larger than all shots together",
            code="batch-too-large",
            where="--batch-size",
            expected=f"at most {len(drawn.pictures)}",
            found=settings.batch_size,
        )
    shape = settings.shape(count_blocks(backbone.model.visual), count_text_blocks(backbone.model))
    stage = PretrainStage(
        images=images,
        out=Location.of(out),
        config=config,
        teacher=backbone.spec,
        names=names,
        base_C=base_C,
        shots=shots,
        shots_digest=drawn.check(),
        settings=settings,
        shape=shape,
        views=spec,
        compute=compute,
        seed=seed,
        notes=(
            f"teacher {backbone.loaded}",
            *_notes(names, base_C, drawn, settings, shape),
            *name_notes(backbone.tokenizer, names, prompt_texts(settings.context, names)),
        ),
        checkpoint_every=checkpoint_every,
        show_progress=show_progress,
    )
    stage.build(backbone)  # refuses a context that is too short, before anything is written
    return stage


def _notes(
    names: tuple[str, ...],
    base_C: NDArray[np.bool_],
    drawn: Shots,
    settings: PretrainSettings,
    shape: PromptShape,
) -> tuple[str, ...]:
    count, steps = len(drawn.pictures), len(drawn.pictures) // settings.batch_size
    notes = [
        *drawn.notes,
        f"{counted(count, 'image')} of {int(base_C.sum())} of {counted(len(names), 'class')}, {counted(steps, 'step')} of {settings.batch_size} an "
        f"epoch, {counted(settings.epochs, 'epoch')}",
    ]
    for tower, requested, real in (
        ("vision", settings.vision_depth, shape.vision_depth),
        ("text", settings.text_depth, shape.text_depth),
    ):
        if real < requested:
            notes.append(f"{tower} prompts go {real} layers deep, not {requested}: the tower has no more blocks")
    return tuple(notes)
