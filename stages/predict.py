"""`teachonce predict`: the classes that a student bundle sees in single images, with probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..pipeline.tables import section, table
from ..pipeline.user_files import UserFile, is_url, read_url
from ..storage_schemas.errors import InputError, TeachonceError, Unreachable
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.plain_text import printable
from .corpora.images import MAX_PIXELS, BadImage, one_image
from .measures.metrics import log_softmax
from .models.compute import Compute
from .samples.ahead import ViewArrays, prepare
from .samples.kind import draw_views
from .students.bundle import load_student
from .students.infer import student_logits

#: Images in one forward pass.
BATCH_SIZE = 32


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
    student = load_student(bundle, device=compute.device)
    names = student.vectors.names
    size, view = student.preprocess.size, student.preprocess.center_view()
    kind = student.kind

    def work(image: str) -> ViewArrays:
        try:
            with one_image():
                sample = kind.decode(_read(image), MAX_PIXELS)
                return draw_views(kind, sample, kind.params(sample, "", view), size, view)
        except Unreachable as error:
            raise BadImage(f"{error.what}: {error.found}") from error

    batch: list[tuple[str, ViewArrays | None, str]] = []

    def settle() -> Iterator[Prediction]:
        good = [pixels for _, pixels, _ in batch if pixels is not None]
        rows = iter(student_logits(student, np.concatenate(good), compute) if good else ())
        for image, pixels, reason in batch:
            if pixels is None:
                yield Prediction(image=image, top=(), reason=reason)
                continue
            probability_C = np.exp(log_softmax(next(rows)[None])[0])
            order = np.argsort(-probability_C, kind="stable")[:top].tolist()
            best = tuple((names[i], float(probability_C[i])) for i in order)
            yield Prediction(image=image, top=best)
        batch.clear()

    for ready in prepare(images, work, compute.threads, 2 * BATCH_SIZE):
        batch.append((ready.item, ready.result, ready.reason))
        if len(batch) == BATCH_SIZE:
            yield from settle()
    yield from settle()


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


def _read(image: str) -> bytes:
    """The bytes of a path or URL; any failure to read them is an error of that image alone."""
    try:
        if is_url(image):
            return read_url(image)
        location = UserFile.of(image)
        if location.is_dir():
            raise BadImage("a folder, not an image; measure folders with `teachonce evaluate`")
        return location.read_file()
    except FileNotFoundError as error:
        raise BadImage("no such file") from error
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from error
    except TeachonceError as error:
        raise BadImage(str(error)) from error
