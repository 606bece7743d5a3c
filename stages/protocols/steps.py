"""Owns the commands of a PromptKD benchmark: which make a data set's teacher, which train a student."""

from __future__ import annotations

from ...pipeline.command_runner import to_argv
from ..corpora.coop.layouts import LAYOUTS
from ..models.names import PROMPTS_PREFIX
from .folders import SOURCE, DatasetFolders
from .request import Model, Request
from .settings import BASE2NOVEL, CROSS

#: Of the student, as published.
_PROMPT_DEPTH = {BASE2NOVEL: 9, CROSS: 3}
#: Of the loss, for every target of the cross-dataset protocol.
_CROSS_WEIGHT = 1000

Command = list[str]


def prompts_commands(request: Request, dataset: str) -> list[Command]:
    """What makes the prompts that teach on `dataset`: nothing, if there are some."""
    if request.prompts is not None:
        return []
    assert request.teacher is not None  # only prompts name the model that they were learned for
    if request.protocol == CROSS:
        dataset = SOURCE
    depth = {"vision_depth": 9, "text_depth": 9} if request.protocol == CROSS else {}
    base = "@half" if request.protocol == BASE2NOVEL else None
    out = DatasetFolders(root=request.out, dataset=dataset).prompts
    return [
        [
            *to_argv(
                "pretrain",
                request.split(dataset, "train"),
                **_teacher(request.teacher),
                base_classes=base,
                shots=request.shots,
                seed=request.teacher_seed,
                **depth,
                **request.compute,
                out=out,
            ),
            *request.more.get("pretrain", ()),
        ]
    ]


def teacher_commands(request: Request, dataset: str, where: tuple[str, ...]) -> list[Command]:
    """What makes the targets of the training images, and those of the test images, which show the teacher's accuracy.

    Args:
        request: the benchmark.
        dataset: to teach on.
        where: options that say where `shard` and `cache` run.
    """
    folders = DatasetFolders(root=request.out, dataset=dataset)
    check = request.split(dataset, "val" if "val" in LAYOUTS[dataset].images else "train")
    about = {
        "classes": f"coop:{dataset}={request.data}",
        "base_classes": "@half" if request.protocol == BASE2NOVEL else None,
        **_without_precision(request),
    }
    prompts = request.prompts_of(dataset)
    if prompts is None:
        prompts = DatasetFolders(root=request.out, dataset=SOURCE if request.protocol == CROSS else dataset).prompts
    teacher = {"teacher": f"{PROMPTS_PREFIX}{prompts}"}
    if request.prompts is not None and request.teacher is not None:
        teacher |= {"teacher_backbone": request.teacher.name}
        teacher |= {} if request.teacher.pretrained is None else {"teacher_pretrained": request.teacher.pretrained}
    return [
        [*to_argv("shard", request.split(dataset, "train"), out=folders.shards), *where],
        to_argv("vectors", **teacher, **about, check=check, out=folders.targets),
        [
            *to_argv("cache", folders.shards, **teacher, views=request.views, **request.compute, out=folders.targets),
            *where,
            *request.more.get("cache", ()),
        ],
        [*to_argv("shard", request.split(dataset, "test"), out=folders.test_shards), *where],
        to_argv("vectors", **teacher, **about, out=folders.test_targets),
        [*to_argv("cache", folders.test_shards, **teacher, **request.compute, out=folders.test_targets), *where],
    ]


def student_command(request: Request, dataset: str, student: Model, seed: int) -> Command:
    """What trains one student."""
    folders = DatasetFolders(root=request.out, dataset=dataset, on_test=request.on_test)
    split = request.validation_split(dataset)
    by = None
    if split is not None and request.protocol == BASE2NOVEL:
        by = "harmonic-mean" if request.on_test else "base"
    weight = _CROSS_WEIGHT if request.protocol == CROSS else LAYOUTS[dataset].loss_weight
    return [
        *to_argv(
            "distill",
            folders.shards,
            folders.targets,
            student=student.name,
            student_pretrained=student.pretrained,
            recipe="promptkd",
            prompt_depth=_PROMPT_DEPTH[request.protocol],
            loss_weight=weight,
            epochs=request.epochs,
            reuse_views=request.views < request.epochs,
            seed=seed,
            validation=split and request.split(dataset, split),
            validation_by=by,
            **request.compute,
            out=folders.bundle(student.folder, seed),
        ),
        *request.more.get("distill", ()),
    ]


def evaluate_command(request: Request, dataset: str, student: Model, seed: int) -> Command:
    """What measures it; `measured` does the same and keeps the result."""
    folders = DatasetFolders(root=request.out, dataset=dataset, on_test=request.on_test)
    base = "@half" if request.protocol == BASE2NOVEL else None
    return to_argv(
        "evaluate",
        folders.bundle(student.folder, seed),
        request.split(dataset, "test"),
        base_classes=base,
        **_without_precision(request),
    )


def all_commands(request: Request, where: tuple[str, ...]) -> list[Command]:
    """Every command of the benchmark, in the order of the work."""
    commands = []
    for number, dataset in enumerate(request.datasets):
        if request.protocol == BASE2NOVEL or number == 0:
            commands += prompts_commands(request, dataset)
        commands += teacher_commands(request, dataset, where)
        commands += [
            student_command(request, dataset, student, seed) for student in request.students for seed in request.seeds
        ]
    return commands


def _teacher(model: Model) -> dict[str, str | None]:
    return {"teacher": model.name, "teacher_pretrained": model.pretrained}


def _without_precision(request: Request) -> dict[str, str | int | None]:
    """Class vectors are computed once and students measured as they are published: in fp32."""
    return {name: value for name, value in request.compute.items() if name != "precision"}
