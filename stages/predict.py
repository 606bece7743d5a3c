"""`teachonce predict`: the classes that a student bundle sees in single images, with probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..pipeline.tables import section, table
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.plain_text import printable
from .corpora.images import MAX_PIXELS
from .inputs import typed_images
from .inputs.picture_batches import Batch, picture_batches
from .inputs.picture_views import PictureViews, Wanted
from .models.compute import Compute
from .models.forward import Parts
from .models.picture_pool import picture_pool
from .models.softmax import probabilities
from .students.bundle import LoadedStudent, load_student
from .students.infer import student_logits
from .students.prediction import BATCH_SIZE
from .students.prediction import Prediction as Seen


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The student's prediction for one image.

    Attributes:
        image: as the user typed it.
        top: (class name, probability), the most probable first; empty where the image cannot be used.
        reason: why it cannot be used, else ''.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    reason: str = ""


def predict(bundle: str, images: Sequence[str], *, top: int, compute: Compute) -> Iterator[Prediction]:
    """Predictions in the order of `images` (paths or URLs), from the bundle alone.

    Raises:
        InputError: `-`, or no bundle.
        DamagedError: the bundle is damaged, or the student's logits hold NaN.
    """
    if "-" in images:
        raise InputError(
            "images cannot come from stdin",
            code="stdin-refused",
            where="-",
            hint="save it to a file and give its path",
        )
    with closing(picture_pool(compute, len(images), typed_images.__name__)) as pool:
        student = load_student(bundle, device=compute.device)
        names = student.vectors.names
        work = PictureViews(
            files=typed_images.TypedImages(),
            kind=student.kind,
            limit=MAX_PIXELS,
            size=student.preprocess.size,
            view=student.preprocess.center_view(),
            lenient=True,
        )
        wanted = ((image, Wanted(file=image)) for image in images)
        batches = picture_batches(pool, work, wanted, total=len(images), size=BATCH_SIZE, count_unusable=True)
        for batch, logits_NC in _through(student, batches, compute):
            rows = iter(logits_NC)
            for image, outcome in batch.found:
                if outcome.reason is not None:
                    yield Prediction(image=image, top=(), reason=outcome.reason)
                    continue
                yield Prediction(
                    image=image, top=Seen(names=names, probabilities_C=probabilities(next(rows)[None])[0]).top(top)
                )


def _through(
    student: LoadedStudent, batches: Iterable[Batch[str]], compute: Compute
) -> Iterator[tuple[Batch[str], Sequence[NDArray[np.float32]]]]:
    """All batches in order with the logits of their usable images."""
    waiting: deque[Batch[str]] = deque()

    def passes() -> Iterator[tuple[Batch[str], Parts]]:
        for batch in batches:
            waiting.append(batch)
            if batch.num_usable:
                yield batch, batch.views.take()

    for batch, logits_NC in student_logits(student, passes(), compute, option=None):
        while waiting[0] is not batch:
            yield waiting.popleft(), ()
        yield waiting.popleft(), list(logits_NC)
    for batch in waiting:
        yield batch, ()


def prediction_json(prediction: Prediction) -> Json:
    """One image's entry of `--json`."""
    if prediction.reason:
        return {"image": prediction.image, "error": prediction.reason}
    top = [{"class": name, "probability": probability} for name, probability in prediction.top]
    return {"image": prediction.image, "top": top}


def prediction_text(prediction: Prediction) -> str:
    """One image's table."""
    rows = [[f"{probability:.4f}", name] for name, probability in prediction.top]
    return section(printable(prediction.image), table(rows, align="rl"))
