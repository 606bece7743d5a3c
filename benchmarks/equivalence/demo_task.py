"""Owns the demo's compositional images (80 classes: 8 colours × 10 digits) and its two CLIP models, as a task."""

from __future__ import annotations

from pathlib import Path

from task import Task, Training
from teachonce.stages.demo import images, tour
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.views.spec import ViewSpec

#: The models as they come with the package.
MODELS = Path(images.__file__).parent


def demo_task(folder: Path, *, num_images: int, num_held_out: int, views: int, threads: int = 1) -> Task:
    """Draw the images, unless they are there; settings are the demo's, chosen on its validation drawings.

    Everything runs in fp32.
    """
    for name, split, count, labels in (
        ("images", "domain", num_images, False),
        ("held-out", "held_out", num_held_out, True),
    ):
        if count and len(list((folder / name).rglob("*.png"))) != count:
            images.write_folder(folder / name, split, "domain", count, labels=labels)
    for file, names in (
        ("classes.txt", images.class_names()),
        ("base-classes.txt", images.base_class_names()),
    ):
        (folder / file).write_text("".join(f"{name}\n" for name in names))
    compute = Compute(device="cpu", precision="fp32", threads=threads)
    student = StudentConfig(model=f"local-dir:{MODELS / 'student'}")
    return Task(
        name="demo",
        folder=folder,
        teacher=TeacherConfig(model=f"local-dir:{MODELS / 'teacher'}"),
        teacher_compute=compute,
        student_compute=compute,
        views=ViewSpec(kind="random_resized_crop", count=views, scale=(0.5, 1.0), flip=0.0),
        trainings={
            recipe: Training(student=student, options={**options, "batch_size": 100})
            for recipe, options in tour.STUDENT_OPTIONS.items()
        },
        base=True,
    )
