"""`teachonce export`: a student in a form that other programs load, kept only if it computes what the student does."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from ..pipeline.output import check_output
from ..pipeline.settings import check
from ..pipeline.storage import Location
from ..storage_schemas.bundle import VECTORS, encode_vectors
from ..storage_schemas.errors import InputError
from ..storage_schemas.fingerprint import Json
from ..storage_schemas.plain_text import counted
from .exporting.about import NAME, about, claim
from .exporting.compare import Difference, check_images, compare
from .exporting.form import Export
from .exporting.registry import form_named
from .models.weights import brief
from .settings.export import ExportSettings
from .students.bundle import load_student

#: Names of all files that an export may have; what lies there of an earlier one is replaced.
FILES = (
    NAME,
    VECTORS,
    "config.json",
    "model.onnx",
    "model.pt",
    "model.safetensors",
    "open_clip_config.json",
    "open_clip_model.safetensors",
)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export.

    Attributes:
        out: its folder.
        files: bytes of each, by name.
        difference: from the student.
        on: the images that it was compared on.
        load: a line of Python that loads it.
    """

    out: Location
    form: str
    result: str
    files: Mapping[str, int]
    difference: Difference
    on: str
    load: str

    def to_json(self) -> Json:
        return {
            "out": str(self.out),
            "form": self.form,
            "result": self.result,
            "files": dict(self.files),
            "checked": {**self.difference.__dict__, "share": self.difference.share, "on": self.on},
            "load": self.load,
        }

    def to_text(self) -> str:
        """Lines for people."""
        d = self.difference
        same = "" if d.first_class is None else f"; the first class is the same for {d.first_class} of them"
        return (
            f"{self.form}: {', '.join(f'{name} ({size:,} bytes)' for name, size in self.files.items())} in {self.out}\n"
            f"{self.result} differ from the student's by at most {d.greatest:.2g} (largest {d.largest:.4g}) on "
            f"{counted(d.images, 'image')} of {self.on}{same}\n"
            f"load it with {self.load}"
        )


def export_bundle(bundle: str, *, out: str, settings: ExportSettings) -> Exported:
    """Write a student in another form, load it again, and compare the two.

    Args:
        bundle: folder of `teachonce distill --out`.
        out: folder for the files: new, empty, or of an earlier export.
        settings: form, result, and what to compare on.

    Raises:
        InputError: no bundle; the form has no exact counterpart; no folder on this machine.
        MissingDependency: the form needs a library.
        DamagedError: the export computes something else. Nothing is left of it.
    """
    check(settings)
    folder = Location.of(out)
    check_output(folder, "export", (bundle, settings.images))
    path = folder.local_path()
    if path is None:
        raise InputError(
            "only local folders can be used here", code="place-not-local", where=folder, hint="choose a local folder"
        )
    student, form = load_student(bundle), form_named(settings.to)
    has_classes = student.class_vectors is not None
    result = settings.result or ("logits" if has_classes and form.name != "open_clip" else "embedding")
    if result == "logits":
        student.vectors  # noqa: B018  # refuses a student that has none
    if form.name == "timm" and not has_classes and settings.result is None:
        result = "features"
    if settings.pixels != "float-nchw" and form.name not in ("onnx", "torchscript"):
        raise InputError(
            "this form takes normalised images alone",
            code="options-exclude-each-other",
            where=f"--pixels {settings.pixels}",
            found=f"--to {form.name}",
            hint="leave out --pixels",
        )
    export = Export(bundle=bundle, student=student, result=result, pixels=settings.pixels)
    images = check_images(export, settings.images)
    files = dict(form.files(export))
    if result != "logits" and has_classes:
        files.setdefault(VECTORS, encode_vectors(student.vectors))
    with _kept_if_good(folder):
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            run = form.reopen(export, path)
        except Exception as error:
            raise InputError(
                "the export cannot be loaded again",
                code="export-failed",
                where=export.bundle,
                found=brief(error),
                hint="export it in another form; nothing was kept of this one",
            ) from error
        difference = compare(export, run, images, settings.tolerance)
        (folder / NAME).write_bytes(about(form.name, export, files, difference, settings.images))
    return Exported(
        out=folder,
        form=form.name,
        result=result,
        files={name: len(data) for name, data in files.items()},
        difference=difference,
        on=settings.images or "drawn pictures",
        load=form.how_to_load(str(folder)),
    )


@contextlib.contextmanager
def _kept_if_good(folder: Location):  # type: ignore[no-untyped-def]
    """Inside, the folder's files are written; if anything fails there, they and the folder are gone again."""
    was_there = folder.exists()
    folder.make_dir()
    (folder / NAME).write_bytes(claim())
    for name in FILES:
        if name != NAME:
            (folder / name).remove()
    try:
        yield
    except BaseException:
        for name in FILES:
            (folder / name).remove()
        if not was_there:
            folder.remove_folder()
        raise
