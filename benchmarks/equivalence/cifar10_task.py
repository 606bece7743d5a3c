"""Owns CIFAR-10 as a task: a real teacher with a fitted head, a student from random weights, a tiny CLIP for prompts."""

from __future__ import annotations

from pathlib import Path

from cifar10_clip import train_clip
from cifar10_images import CLASSES, labelled, write_held_out, write_images
from cifar10_teacher import fit_teacher, teacher_config
from task import Task, Training
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.views.spec import ViewSpec


def cifar10_task(
    folder: Path, cifar10: Path, *, num_images: int, num_held_out: int, views: int, threads: int = 1
) -> Task:
    """Prepare images, teacher and backbone, unless they are there; about three CPU-minutes. Same seeds, same bytes."""
    teacher_compute = Compute(device="cpu", precision="bf16", threads=threads)
    weights, clip = folder / "teacher.safetensors", folder / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    if not weights.exists():
        fit_teacher(labelled(cifar10, "head"), weights, teacher_compute)
    if not (clip / "open_clip_config.json").exists():
        train_clip(labelled(cifar10, "clip"), clip)
    for name, write, count in (
        ("images", write_images, num_images),
        ("held-out", write_held_out, num_held_out),
    ):
        if len(list((folder / name).rglob("*.jpg"))) != count:
            write(cifar10, folder / name, count // len(CLASSES))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return Task(
        name="cifar10",
        folder=folder,
        teacher=teacher_config(weights),
        teacher_compute=teacher_compute,
        student_compute=Compute(device="cpu", precision="fp32", threads=threads),
        views=ViewSpec(kind="random_resized_crop", count=views),
        trainings={
            "promptkd": Training(
                student=StudentConfig(model=f"local-dir:{clip}"),
                options={
                    "optimizer": "adamw",
                    "lr": 0.001,
                    "schedule": "cosine",
                    "prompt_depth": 4,
                    "batch_size": 50,
                },
            ),
            "kd": Training(
                student=StudentConfig(model="timm:test_resnet", pretrained="random", size=32, crop_pct=1.0),
                options={"lr": 0.003, "batch_size": 50},
            ),
        },
    )
