"""`teachonce evaluate`: measures a student: accuracy by labels, agreement with its stored teacher."""

from __future__ import annotations

from collections.abc import Iterator
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
from .inputs.class_match import ClassMatcher, base_classes
from .inputs.image_set import ImageSet, Picture, open_images
from .measures.evaluation import Evaluation
from .measures.metrics import Accuracy, Agreement
from .measures.same_pictures import SamePictures
from .measures.stored_teacher import StoredTeacher
from .models.compute import Compute
from .samples.ahead import Ready, ViewArrays, prepare
from .samples.kind import draw_views
from .settings.evaluate import EvaluateSettings
from .students.bundle import LoadedStudent, load_student
from .students.infer import student_logits
from .views.spec import CENTER


@dataclass(frozen=True)
class _Job:
    index: int
    picture: Picture
    class_id: int
    row: int
    box: np.void


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
    store, base, batch_size = settings.store, settings.base_classes, settings.batch_size
    refuse_swapped("evaluate", bundle, images, is_first=Kind.BUNDLE, is_second=None)
    student = load_student(bundle, device=compute.device)
    names = student.vectors.names
    base_C = student.vectors.base_C if base is None else base_classes(base, names)
    teacher = None if store is None else StoredTeacher(store, names)
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
    work = _Renderer(student, image_set, teacher, same)
    with Progress("evaluate", result.found) as bar:
        batch: list[Ready[_Job, ViewArrays]] = []
        jobs = _jobs(image_set, result, teacher, keys_N, same)
        for ready in prepare(jobs, work, compute.threads, 2 * batch_size):
            if ready.result is None:
                result.unusable.append((ready.item.picture.path, ready.reason))
            else:
                batch.append(ready)
            if len(batch) == batch_size:
                _count(result, batch, student, teacher, same, compute)
                batch.clear()
            bar.advance(1)
        if batch:
            _count(result, batch, student, teacher, same, compute)
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
) -> Iterator[_Job]:
    for index, picture in enumerate(image_set.pictures()):
        if index >= len(keys_N) or keys_N[index] != picture.key.encode("ascii"):
            raise InputError(
                "the images changed while they were measured",
                code="images-changed-meanwhile",
                where=picture.path,
                hint="run it again",
            )
        match = result.matches.get(picture.label) if picture.label is not None else None
        row = -1 if same is None else int(same.rows_N[index])
        box = teacher.box(row) if teacher is not None and row >= 0 else CENTER
        class_id = match.class_id if match is not None else None
        yield _Job(index, picture, -1 if class_id is None else class_id, row, box)


class _Renderer:
    """Pixels of an image: the student's own centre view, then, if it is another, the view to compare on."""

    def __init__(
        self, student: LoadedStudent, image_set: ImageSet, teacher: StoredTeacher | None, same: SamePictures | None
    ) -> None:
        self._size, self._own = student.preprocess.size, student.preprocess.center_view()
        self._teacher_views = teacher.views if teacher is not None and teacher.views != self._own else None
        self._kind, self._limit, self._same = image_set.kind, image_set.max_pixels, same

    def __call__(self, job: _Job) -> ViewArrays:
        data = job.picture.read()
        kind, size = self._kind, self._size
        sample = kind.decode(data, self._limit)
        own = draw_views(kind, sample, kind.params(sample, "", self._own), size, self._own)
        is_same = self._same is not None and self._same.is_same(job.index, job.picture, data)
        if self._teacher_views is not None and is_same:
            return np.concatenate([own, draw_views(kind, sample, [job.box], size, self._teacher_views)])
        return own


def _count(
    result: Evaluation,
    batch: list[Ready[_Job, ViewArrays]],
    student: LoadedStudent,
    teacher: StoredTeacher | None,
    same: SamePictures | None,
    compute: Compute,
) -> None:
    pixels = [ready.result for ready in batch if ready.result is not None]
    own_NC = student_logits(student, np.stack([p[0] for p in pixels]), compute)
    class_ids = np.array([ready.item.class_id for ready in batch], np.int64)
    labelled = class_ids >= 0
    if labelled.any():
        result.accuracy.add(own_NC[labelled], class_ids[labelled])
    if teacher is None or same is None or result.agreement is None:
        return
    rows = [ready.item.row for ready in batch]
    known = [i for i, row in enumerate(rows) if row >= 0 and row not in same.others]
    result.not_in_store += rows.count(-1)
    result.other_pictures += len(rows) - rows.count(-1) - len(known)
    if known:
        other = len(pixels[known[0]]) > 1
        theirs_NC = (
            student_logits(student, np.stack([pixels[i][1] for i in known]), compute) if other else own_NC[known]
        )
        result.agreement.add(teacher.logits([rows[i] for i in known]), theirs_NC)
