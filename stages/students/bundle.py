"""Owns writing a student to its bundle, and loading one: no network, no original weights, no teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, overload

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.settings import impossible
from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, VECTORS, WEIGHTS, BundleConfig, decode_vectors, encode_vectors
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError
from ...storage_schemas.folder_config import check_file, file_digest
from ...storage_schemas.plain_text import typed
from ..models.preprocess import Preprocess
from ..samples.images import IMAGES
from ..samples.kind import SampleKind, draw_views
from ..samples.registry import kind_named
from .base import BaseStudent
from .head import Head
from .map_student import MapStudent
from .prediction import BATCH_SIZE, AnyImage, Prediction, is_one_image, many, predict_images
from .rebuild import rebuild_map_student, rebuild_student
from .student import Student

if TYPE_CHECKING:

    class CalledStudent(Student):
        """A student whose call has a type; torch's modules leave theirs open."""

        def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LoadedStudent:
    """A student from its bundle alone; `print` shows it on one line.

    Attributes:
        student: in eval mode, its parameters without gradients; uint8 images (N, 3, size, size) to fp32 embeddings (N, width)
            that `vectors.logits` takes. Images must lie on its device.
        class_vectors: with the student's own logit scale; None where it was trained without classes. `vectors` are these, or refuse.
        config: the content of `config.json`.
        preprocess: size and test-time crop of the images.
    """

    student: CalledStudent
    class_vectors: ClassVectors | None
    config: BundleConfig
    preprocess: Preprocess

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """What the student sees of an image: uint8 (3, size, size), resized and cropped as `evaluate` and `predict` do it."""
        size = self.preprocess.size
        view, rgb = self.preprocess.center_view(), image.convert("RGB")
        return torch.from_numpy(draw_views(IMAGES, rgb, IMAGES.params(rgb, "", view), size, view)[0])

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: AnyImage, *, temperature: float = ..., batch_size: int = ..., keep_unusable: bool = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: Iterable[AnyImage], *, temperature: float = ..., batch_size: int = ..., keep_unusable: bool = ...
    ) -> list[Prediction]: ...
    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        temperature: float = 1.0,
        batch_size: int = BATCH_SIZE,
        keep_unusable: bool = False,
    ) -> Prediction | list[Prediction]:
        """The classes that the student sees, with probabilities: the numbers of `teachonce predict`.

        Images are resized and cropped as there, on the device that the student was loaded to. Several threads may call this
        at once. Torch's settings (threads, precision) stay as they are.

        Args:
            images: one image, or any number of them, also an iterator, of which a batch at a time is in memory. Each is one
                of Pillow's, an array uint8 (height, width, 3), the bytes of a file, or a path or URL. A text is read or
                fetched as it stands: a service gives this method bytes, never what a client typed.
            temperature: logits are divided by it; 1 for the student's own probabilities.
            batch_size: images in one forward pass.
            keep_unusable: whether an image that cannot be used gets a `Prediction` that says why, instead of an error.

        Returns:
            A `Prediction` for one image, a list of them in the same order for several.

        Raises:
            InputError: an image cannot be used; a temperature that is not above 0, or a batch of none; the student has no
                class vectors.
            DamagedError: the student gives NaN or infinity.
        """
        if batch_size < 1:
            raise impossible("batch_size", "at least 1", batch_size)
        found = predict_images(
            many(images),
            names=self.vectors.names,
            pixels=self.pixels,
            logits=self._logits,
            batch_size=batch_size,
            temperature=temperature,
            keep_unusable=keep_unusable,
        )
        return next(iter(found)) if is_one_image(images) else list(found)

    def _logits(self, images_NCHW: torch.Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            embedding_ND = self.student(images_NCHW.to(self.device)).float().cpu()
        return self.vectors.logits(embedding_ND.numpy())

    @property
    def device(self) -> torch.device:
        """Where the student is, and its images must be."""
        return next(self.student.buffers()).device

    @property
    def kind(self) -> SampleKind:
        """The kind of samples that it takes.

        Raises:
            MismatchError: it is not known here.
        """
        return kind_named(self.preprocess.sample_kind, where="config.json")

    @property
    def vectors(self) -> ClassVectors:
        """The class vectors; `vectors.names` are the classes.

        Raises:
            InputError: the student has none.
        """
        if self.class_vectors is None:
            raise InputError(
                "this student has no class vectors, so it tells no classes",
                code="student-without-classes",
                where=self.config.student.get("name"),
                expected="one that learned logits, or the embedding, from a store with class vectors",
                found=f"recipe {self.config.origin.get('recipe')}, targets {', '.join(self.config.origin.get('targets', ()))}",
                hint="use its features with `load_student`; or teachonce vectors … --out STORE, and distill with `embedding` among the targets",
            )
        return self.class_vectors

    def __repr__(self) -> str:
        model, size = str(self.config.student.get("name")), self.preprocess.size
        vectors = self.class_vectors
        classes = "no classes" if vectors is None else f"{vectors.num_classes} classes"
        return (
            f"LoadedStudent({model!r}, {classes}, width {self.student.head.embed_dim}, images of {size}x{size} pixels)"
        )


def write_bundle(location: Location, student: BaseStudent, vectors: ClassVectors | None, config: BundleConfig) -> None:
    """Write the files, that of class vectors where there are some; `config.json` last, since it alone makes a folder a bundle."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in student.state_dict().items()}
    files = {WEIGHTS: safetensors.torch.save(weights)}
    if vectors is not None:
        files[VECTORS] = encode_vectors(vectors)
    (location / CONFIG).remove()
    for name, data in files.items():
        (location / name).write_bytes(data)
    digests = {name: file_digest(data) for name, data in files.items()}
    (location / CONFIG).write_bytes(replace(config, files=digests).to_bytes())


def load_student(location: Location | str, *, device: str = "cpu") -> LoadedStudent:
    """Load a bundle for inference: no network, no original weights, no teacher. `from teachonce import load_student`.

    Args:
        location: the folder that `teachonce distill --out` wrote.
        device: where the student goes, as torch names it (`cpu`, `cuda`). The class vectors stay arrays in memory.

    Returns:
        A `LoadedStudent`: `vectors.logits(student(images_NCHW))` are the fp32 logits (N, C) of uint8 images.

    Raises:
        InputError: there is no bundle.
        IncompleteError: `teachonce distill` has not finished there.
        MismatchError: a bundle of another version.
        DamagedError: files that do not belong together or cannot be read.
    """
    opened = _open(Location.of(location))
    if _reads_maps(opened.config):
        raise InputError(
            "this student reads a teacher's maps, not images",
            code="student-reads-maps",
            where=opened.folder,
            expected="a student of images",
            found=f"a decoder, {opened.config.origin.get('recipe')}",
            hint=f"teachonce anomalies SHARDS STORE {typed(opened.folder)} --out …",
        )
    vectors, head = opened.vectors, opened.head
    if vectors is not None and vectors.embed_dim != head.embed_dim:
        raise DamagedError(
            "the bundle's class vectors are not for its student",
            code="bundle-vectors-do-not-fit",
            where=opened.folder,
            expected=f"{head.embed_dim} channels, as the student gives",
            found=f"{vectors.embed_dim}",
            hint="copy the bundle again",
        )
    student = rebuild_student(opened.folder, opened.config.student, opened.preprocess, head, opened.weights)
    student.requires_grad_(False)
    return LoadedStudent(
        student=cast("CalledStudent", student.eval().to(device)),
        class_vectors=vectors,
        config=opened.config,
        preprocess=opened.preprocess,
    )


def load_map_student(location: Location | str, *, device: str = "cpu") -> tuple[MapStudent, BundleConfig]:
    """Load the bundle of a student that reads maps, in eval mode and without gradients; and the content of its `config.json`.

    Args:
        location, device: as in `load_student`.

    Raises:
        InputError: there is no bundle, or that of a student that reads images.
        IncompleteError, MismatchError, DamagedError: as in `load_student`.
    """
    opened = _open(Location.of(location))
    if not _reads_maps(opened.config):
        raise InputError(
            "this student reads images, not a teacher's maps",
            code="student-reads-images",
            where=opened.folder,
            expected="a student of --recipe reverse-distillation",
            found=f"{opened.config.student.get('name')}, recipe {opened.config.origin.get('recipe')}",
            hint="teachonce evaluate, or teachonce predict",
        )
    student = rebuild_map_student(opened.folder, opened.config.student, opened.head, opened.weights)
    student.requires_grad_(False)
    return student.eval().to(device), opened.config


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What lies in a bundle, read and compared with its digests."""

    folder: Location
    config: BundleConfig
    preprocess: Preprocess
    head: Head
    vectors: ClassVectors | None
    weights: dict[str, torch.Tensor]


def _reads_maps(config: BundleConfig) -> bool:
    return config.student.get("family") == "decoder"


def _open(folder: Location) -> _Opened:
    if not (folder / CONFIG).exists():
        if (folder / "run").exists():
            raise IncompleteError(
                "the student is not finished",
                code="student-unfinished",
                where=folder,
                hint="run the same `teachonce distill` command again",
            )
        raise InputError(
            "no student bundle here",
            code="bundle-missing",
            where=folder,
            expected=Kind.BUNDLE,
            found=kind_of(folder),
            hint=how_to_make(folder, "teachonce distill SHARDS STORE --student …"),
        )
    config = BundleConfig.from_bytes((folder / CONFIG).read_bytes(), where=folder / CONFIG)
    try:
        vectors = None
        if config.class_names:
            vectors = decode_vectors(_checked(folder, VECTORS, config), config, folder / VECTORS)
        weights = safetensors.torch.load(_checked(folder, WEIGHTS, config))
    except (FileNotFoundError, safetensors.SafetensorError, KeyError) as error:
        raise DamagedError(
            "a bundle's file is missing or damaged",
            code="bundle-damaged",
            where=folder,
            found=str(error),
            hint="copy the bundle again",
        ) from error
    return _Opened(
        folder=folder,
        config=config,
        preprocess=Preprocess.from_json(config.preprocess, folder / CONFIG),
        head=Head.from_json(config.head, folder / CONFIG),
        vectors=vectors,
        weights=weights,
    )


def _checked(folder: Location, name: str, config: BundleConfig) -> bytes:
    data = (folder / name).read_bytes()
    check_file(data, name, config.files, where=folder, hint="copy the bundle again")
    return data
