"""`teachonce evaluate`: measures a student: accuracy by labels, agreement with its stored teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..pipeline.contents import Kind, refuse_swapped
from ..pipeline.progress import Progress
from ..pipeline.settings import check
from ..storage_schemas.errors import InputError
from ..storage_schemas.samples import KEY_LENGTH
from .corpora.label import no_labels_text
from .corpora.left_out import left_out_text
from .decoding.work import Pool
from .inputs.class_match import ClassMatcher, base_classes
from .inputs.image_set import ImageSet, open_images
from .inputs.picture_batches import Batch, picture_batches
from .inputs.picture_views import Outcome, PictureViews, Wanted
from .measures.evaluation import Evaluation
from .measures.metrics import Accuracy, Agreement
from .measures.same_pictures import SamePictures
from .measures.stored_teacher import StoredTeacher
from .models.compute import Compute
from .models.forward import Parts
from .models.picture_pool import pool_ahead
from .settings.evaluate import EvaluateSettings
from .students.bundle import LoadedStudent, load_student
from .students.infer import student_logits
from .views.spec import ViewSpec


@dataclass(frozen=True, slots=True)
class _Job:
    """An image.

    Attributes:
        class_id: -1 where its label is no class.
        row: in the store, -1 where it has no usable sample of that key.
        may_be_same: whether the image may be the picture of that row, as far as can be known without reading it.
    """

    path: str
    class_id: int
    row: int
    may_be_same: bool

    def is_same(self, outcome: Outcome) -> bool:
        return self.may_be_same and outcome.is_meant


def evaluate(
    bundle: str,
    images: str,
    *,
    compute: Compute,
    settings: EvaluateSettings | None = None,
) -> Evaluation:
    """Measure a student on images, from its bundle alone.

    Accuracy is that of the student's own centre view. Agreement compares student and teacher on one view: the
    store's first, drawn at the student's size at the box that the store holds (where the store has centre
    crops, the teacher's kind of centre crop). So a student that copied its teacher agrees with it wholly.

    Args:
        bundle: the student.
        images: a folder of class folders, a tar, a list, or a folder of shards.
        compute: device, precision, threads.
        settings: None for the defaults. Pictures of its store are found as in `SamePictures`; where `base_classes` is None, base
            classes are those that the bundle marks, if any. `accept_other_pixels` only notes that this machine renders the
            store's views otherwise than its teacher's did.

    Raises:
        InputError: no bundle, no images, nothing to measure, a bad list of base classes.
        MismatchError: the store's classes are not the student's, or its views have other pixels here, or the images have
            its names and are other pictures.
        DamagedError: bundle, shards or store are damaged, or the student's logits hold NaN.
    """
    settings = settings or EvaluateSettings()
    check(settings)
    refuse_swapped("evaluate", bundle, images, is_first=Kind.BUNDLE, is_second=None)
    with pool_ahead(compute, images) as pool:
        return _evaluate(bundle, images, compute, settings, pool)


def _evaluate(
    bundle: str, images: str, compute: Compute, settings: EvaluateSettings, pool: Callable[[int], Pool]
) -> Evaluation:
    store, base, batch_size = settings.store, settings.base_classes, settings.batch_size
    student = load_student(bundle, device=compute.device)
    names = student.vectors.names
    base_C = student.vectors.base_C if base is None else base_classes(base, names)
    teacher = None if store is None else StoredTeacher(store, names, settings.generation)
    image_set = open_images(images, name=settings.name, kind=student.kind)
    result = Evaluation(class_names=names, accuracy=Accuracy(len(names), base_C))
    keys_N = _survey(result, image_set, images)
    notices = no_labels_text(result.no_labels.to_json()), left_out_text(result.left_out.to_json())
    result.notes += filter(None, notices)
    same = None
    if teacher is not None:
        same = SamePictures(teacher, image_set, keys_N)
        note = teacher.check_pixels(same.of_the_store, accept_other=settings.accept_other_pixels)
        result.notes += [note] if note else []
        teacher.expect(same.rows_N)
        result.agreement = Agreement()
    _refuse_nothing_to_measure(result, images)
    view = student.preprocess.center_view()
    other = teacher.views if teacher is not None and teacher.views != view else None
    work = PictureViews(
        files=image_set.files,
        kind=image_set.kind,
        limit=image_set.max_pixels,
        size=student.preprocess.size,
        view=view,
        other=other,
    )
    jobs = _jobs(image_set, result, teacher, keys_N, same, other)
    with Progress("evaluate", result.found) as bar:
        batches = picture_batches(pool(result.found), work, jobs, total=result.found, size=batch_size)
        _measure(result, batches, student, teacher, same, compute, bar)
    if not result.usable:
        path, reason = result.unusable[0]
        raise InputError(
            "none of the images can be used",
            code="images-none-usable",
            where=images,
            found=f"{path}: {reason}",
        )
    if same is not None and same.others:
        result.notes.append(same.note())
    return result


def _survey(result: Evaluation, image_set: ImageSet, images: str) -> NDArray[np.bytes_]:
    """Count images and labels before anything is read. Returns the keys (`S32`) in order."""
    keys = bytearray()
    for picture in image_set.pictures():
        result.found += 1
        if picture.no_label:
            result.no_labels.add(picture.no_label, picture.path)
        if picture.label is None:
            result.unlabelled += 1
        else:
            result.labels[picture.label] += 1
        keys += picture.key.encode("ascii")
    result.left_out = image_set.left_out
    if not result.found:
        raise InputError(
            "no images here",
            code="images-missing",
            where=images,
            hint="give a folder of class folders, a tar, a list or shards",
        )
    matcher = ClassMatcher(result.class_names)
    result.matches = {label: matcher.match(label) for label in result.labels}
    return np.frombuffer(bytes(keys), f"S{KEY_LENGTH}")


def _refuse_nothing_to_measure(result: Evaluation, images: str) -> None:
    if result.agreement is not None or any(m.class_id is not None for m in result.matches.values()):
        return
    some = ", ".join(repr(label) for label in sorted(result.labels)[:3])
    some = some or no_labels_text(result.no_labels.to_json()) or "no labels"
    raise InputError(
        "no label is the name of a class, so there is nothing to measure",
        code="labels-without-class",
        where=images,
        expected=f"names like {result.class_names[0]!r}",
        found=some,
        hint="name the folders as the classes are named, or compare with the teacher by --store",
    )


def _jobs(
    image_set: ImageSet,
    result: Evaluation,
    teacher: StoredTeacher | None,
    keys_N: NDArray[np.bytes_],
    same: SamePictures | None,
    other: ViewSpec | None,
) -> Iterator[tuple[_Job, Wanted]]:
    """All images; those that may be their row's picture are drawn at its box too where `other` says how."""
    for index, picture in enumerate(image_set.pictures()):
        if index >= len(keys_N) or keys_N[index] != picture.key.encode("ascii"):
            raise InputError(
                "the images changed while they were measured",
                code="images-changed-meanwhile",
                where=picture.path,
                hint="run it again",
            )
        match = result.matches.get(picture.label) if picture.label is not None else None
        class_id = -1 if match is None or match.class_id is None else match.class_id
        row, may_be_same, digest = -1, False, None
        if same is not None:
            row, (may_be_same, digest) = int(same.rows_N[index]), same.before_reading(index, picture)
        box = None
        if teacher is not None and may_be_same and other is not None:
            box = teacher.box(row)
        yield _Job(picture.path, class_id, row, may_be_same), Wanted(file=picture.file, digest=digest, box=box)


def _measure(
    result: Evaluation,
    batches: Iterable[Batch[_Job]],
    student: LoadedStudent,
    teacher: StoredTeacher | None,
    same: SamePictures | None,
    compute: Compute,
    bar: Progress,
) -> None:
    """Count all batches: each one's own views go through the student, then its second views."""

    def passes() -> Iterator[tuple[tuple[Batch[_Job], bool], Parts]]:
        for batch in batches:
            result.unusable += [(job.path, reason) for job, reason in batch.unusable]
            others = batch.others.take()
            if batch.num_usable:
                yield (batch, not others), batch.views.take()
            if others:
                yield (batch, True), others
            bar.advance(len(batch.found))

    own_NC: NDArray[np.float32] | None = None
    for (batch, is_last), logits_NC in student_logits(student, passes(), compute):
        if own_NC is None:
            own_NC = logits_NC
            class_ids = np.array([job.class_id for job, _ in batch.usable], np.int64)
            labelled = class_ids >= 0
            if labelled.any():
                result.accuracy.add(own_NC[labelled], class_ids[labelled])
        if is_last:
            _compare(result, batch, teacher, same, own_NC, logits_NC)
            own_NC = None


def _compare(
    result: Evaluation,
    batch: Batch[_Job],
    teacher: StoredTeacher | None,
    same: SamePictures | None,
    own_NC: NDArray[np.float32],
    theirs_NC: NDArray[np.float32],
) -> None:
    """Count a batch's agreement with the teacher.

    Args:
        own_NC: the student's logits of all usable images.
        theirs_NC: of the second views of those that are their rows' pictures; the same as `own_NC` where there are none.
    """
    if teacher is None or same is None or result.agreement is None:
        return
    known = []
    for place, (job, outcome) in enumerate(batch.usable):
        if job.row < 0:
            result.not_in_store += 1
        elif job.is_same(outcome):
            known.append(place)
        else:
            same.others[job.row] = job.path
            result.other_pictures += 1
    if known:
        rows = [batch.usable[place][0].row for place in known]
        result.agreement.add(teacher.logits(rows), own_NC[known] if theirs_NC is own_NC else theirs_NC)
