"""Owns writing a student to its bundle, and loading one: no network, no original weights, no teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import safetensors
import safetensors.torch
import torch
from PIL import Image

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.storage import Location
from ...storage_schemas.bundle import CONFIG, VECTORS, WEIGHTS, BundleConfig, decode_vectors, encode_vectors
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError
from ...storage_schemas.folder_config import check_file, file_digest
from ..models.preprocess import Preprocess
from ..samples.images import IMAGES
from ..samples.kind import SampleKind, draw_views
from ..samples.registry import kind_named
from .head import Head
from .rebuild import rebuild_student
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


def write_bundle(location: Location, student: Student, vectors: ClassVectors | None, config: BundleConfig) -> None:
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
    folder = Location.of(location)
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
    preprocess = Preprocess.from_json(config.preprocess, folder / CONFIG)
    head = Head.from_json(config.head, folder / CONFIG)
    if vectors is not None and vectors.embed_dim != head.embed_dim:
        raise DamagedError(
            "the bundle's class vectors are not for its student",
            code="bundle-vectors-do-not-fit",
            where=folder,
            expected=f"{head.embed_dim} channels, as the student gives",
            found=f"{vectors.embed_dim}",
            hint="copy the bundle again",
        )
    student = rebuild_student(folder, config.student, preprocess, head, weights)
    student.requires_grad_(False)
    return LoadedStudent(
        student=cast("CalledStudent", student.eval().to(device)),
        class_vectors=vectors,
        config=config,
        preprocess=preprocess,
    )


def _checked(folder: Location, name: str, config: BundleConfig) -> bytes:
    data = (folder / name).read_bytes()
    check_file(data, name, config.files, where=folder, hint="copy the bundle again")
    return data
