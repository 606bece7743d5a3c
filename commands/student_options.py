"""Owns the options that describe one student: those of the command line, and those that a file of students puts in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
from click.core import ParameterSource

from ..stages.models.settings import COMPUTING, TrainingComputeSettings
from ..stages.models.student_config import StudentConfig
from ..stages.settings.distill import DistillSettings, SeveralStudents
from ..storage_schemas.errors import InputError
from .command import Command, command, option
from .file_options import as_arguments, first_unknown, names_of
from .options import options_of
from .recipe_options import RecipeChoice, RecipeCommand, recipe_options

_DECORATORS: tuple[Callable[[Command], Command], ...] = (
    options_of("student", StudentConfig, prefix="student"),
    option("--recipe", required=True, type=RecipeChoice(), help="Distillation method."),
    recipe_options,
    options_of("settings", DistillSettings),
    options_of("compute", TrainingComputeSettings),
    option("--use-gpu", is_flag=True, section=COMPUTING, help="One GPU for each worker: the same as --device cuda."),
)


def student_options(command: Command) -> Command:
    """Give a command the options of one student: what `StudentRequest.of` takes. It must be a `RecipeCommand`."""
    for decorate in reversed(_DECORATORS):
        command = decorate(command)
    return command


@dataclass(frozen=True, kw_only=True)
class StudentRequest:
    """One student, as options describe it.

    Attributes:
        options: settings of the recipe, by name; None keeps a default.
    """

    student: StudentConfig
    recipe: str
    settings: DistillSettings
    compute: TrainingComputeSettings
    options: Mapping[str, Any]

    @staticmethod
    def of(
        *,
        student: StudentConfig,
        recipe: str,
        settings: DistillSettings,
        compute: TrainingComputeSettings,
        use_gpu: bool,
        **options: Any,
    ) -> StudentRequest:
        """From what a command gets.

        Raises:
            InputError: --use-gpu and --device cpu.
        """
        if use_gpu and compute.device == "cpu":
            raise InputError(
                "--use-gpu and --device cpu exclude each other",
                code="options-exclude-each-other",
                hint="leave one of them out",
            )
        compute = replace(compute, device="cuda") if use_gpu else compute
        return StudentRequest(student=student, recipe=recipe, settings=settings, compute=compute, options=options)

    def with_seeds(self, seed: int, order_seed: int) -> StudentRequest:
        return replace(self, settings=replace(self.settings, seed=seed, order_seed=order_seed))


@command("student", cls=RecipeCommand)
@student_options
def _student(**values: Any) -> StudentRequest:
    """One student of a file: the options that it may have."""
    return StudentRequest.of(**values)


def requests(first: StudentRequest, several: SeveralStudents, ctx: click.Context) -> dict[str, StudentRequest]:
    """The students of one pass, by the names of their folders. They get one order: --order-seed, else --seed of the command line.

    Args:
        first: what the command line describes.
        several: which students; one of its fields is given.
        ctx: of the command line.

    Raises:
        InputError: both are given; a seed twice; --seed beside --seeds; or a file with wrong options.
    """
    if several.seeds is not None and several.students is not None:
        raise InputError(
            "--seeds and --students exclude each other",
            code="options-exclude-each-other",
            hint="give each student of the file its `seed`",
        )
    given = first.settings
    order_seed = given.seed if given.order_seed is None else given.order_seed
    if several.seeds is None:
        return dict(_of_file(str(several.students), order_seed, ctx))
    if ctx.get_parameter_source("seed") is ParameterSource.COMMANDLINE:
        raise InputError(
            "--seed and --seeds exclude each other",
            code="options-exclude-each-other",
            hint="--order-seed is the seed of the order of pairs, which is the same for all",
        )
    twice = next((seed for seed in several.seeds if several.seeds.count(seed) > 1), None)
    if twice is not None:
        raise InputError("a seed is given twice", code="given-twice", where="--seeds", found=twice)
    return {f"seed-{seed}": first.with_seeds(seed, order_seed) for seed in several.seeds}


def check_file(ctx: click.Context) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What each student of the file that a command line names is to read, by the names of options; with its place in the file.

    Raises:
        InputError: the file, or one of its options, is wrong.
    """
    if (file := ctx.params.get("students")) is not None:
        for name, call in _calls(file, ctx):
            yield f"{file}, {name}", call.params


def _of_file(file: str, order_seed: int, ctx: click.Context) -> Iterator[tuple[str, StudentRequest]]:
    for name, call in _calls(file, ctx):
        with call:
            request: StudentRequest = _student.invoke(call)
        own = request.settings.order_seed
        yield name, request.with_seeds(request.settings.seed, order_seed if own is None else own)


def _calls(file: str, ctx: click.Context) -> Iterator[tuple[str, click.Context]]:
    """Each student of a file, with its options in place of those of the command line."""
    from ..pipeline.students_file import read_students
    from ..pipeline.user_files import UserFile

    known = names_of(_student, ctx)
    given = {
        p.name: ctx.params[p.name]
        for p in _student.get_params(ctx)
        if p.name in ctx.params and ctx.get_parameter_source(p.name) is ParameterSource.COMMANDLINE
    }
    for name, options in read_students(UserFile.of(file)).items():
        where = f"{file}, {name}"
        unknown = first_unknown(options, known)
        if unknown is not None:
            raise InputError(
                "a student has no such option",
                code="students-file-option-unknown",
                where=where,
                found=unknown[0],
                hint=unknown[1] or "teachonce distill --help",
            )
        try:
            call = _student.make_context("student", as_arguments({**given, **options}, ()), parent=ctx)
        except click.UsageError as error:
            raise InputError(
                "a student's options are wrong",
                code="students-file-options-wrong",
                where=where,
                found=error.format_message().rstrip("."),
                hint="teachonce distill --help",
            ) from error
        yield name, call
