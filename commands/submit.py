"""`teachonce submit`, on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from ..pipeline.batch.settings import KubernetesSettings, SlurmSettings, SubmitSettings
from ..pipeline.terminal import say, show
from ..storage_schemas.errors import InputError
from ..storage_schemas.plain_text import counted
from .command import Subcommand, command, option
from .options import options_of
from .output import json_option, print_json

if TYPE_CHECKING:
    from ..pipeline.batch.job import Job, Run
    from .run_calls import Call

Settings = TypeVar("Settings", bound=SubmitSettings)


class Schedulers(click.Group):
    command_class = Subcommand


@click.group(cls=Schedulers)
def submit() -> None:
    """Write what runs the stages of a run file on a cluster's scheduler, and submit it with --now.

    One job a stage, each after the one before. `shard` and `cache` are shared out among --slices tasks; a last task looks
    whether all is done. Options may also stand in the file, in its section `submit`. See docs/clusters.md.
    """


def _scheduler_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in (
        click.pass_context,
        json_option,
        option("--now", is_flag=True, help="Submit it at once."),
        option("--out", type=click.Path(), help="Folder for what is written.  [default: beside the file]"),
        click.argument("file", type=click.Path(), metavar="FILE.yaml"),
    ):
        command = decorate(command)
    return command


@command()
@_scheduler_options
@options_of("settings", SlurmSettings, make=dict)
def slurm(ctx: click.Context, file: str, out: str | None, now: bool, as_json: bool, settings: dict[str, Any]) -> None:
    """Write Slurm scripts: job arrays, and jobs that depend on one another.

    Jobs start in the folder of FILE.yaml, which all nodes share, with the `teachonce` of the PATH at submission. A job that
    is near its time limit finishes what is at hand, goes back to the queue and resumes.
    """
    from ..pipeline.batch.slurm import slurm_files

    _submit(ctx, file, out, now, as_json, settings, SlurmSettings, slurm_files, tool="sbatch", here=True)


@command()
@_scheduler_options
@options_of("settings", KubernetesSettings, make=dict)
def kubernetes(
    ctx: click.Context, file: str, out: str | None, now: bool, as_json: bool, settings: dict[str, Any]
) -> None:
    """Write manifests of Kubernetes Jobs, and a script that applies one after another.

    Relative paths begin at the volume of --claim. Whether inputs are there is not looked at: they are elsewhere. With --now, or
    `submit.sh`, the command waits for the jobs; run again it goes on. Needs Kubernetes 1.29.
    """
    from ..pipeline.batch.kubernetes import kubernetes_files

    _submit(ctx, file, out, now, as_json, settings, KubernetesSettings, kubernetes_files, tool="kubectl", here=False)


def _submit(
    ctx: click.Context,
    file: str,
    out: str | None,
    now: bool,
    as_json: bool,
    given: dict[str, Any],
    settings_class: type[Settings],
    files_of: Callable[[Run, Settings], dict[str, str]],
    *,
    tool: str,
    here: bool,
) -> None:
    """What both have in common.

    Args:
        given: values of the settings' options.
        files_of: makes the files.
        tool: the scheduler's program.
        here: whether the jobs see the files that this machine sees.
    """
    import contextlib
    import shlex

    from ..pipeline.batch.job import SUBMIT, Run, write_files
    from ..pipeline.batch.tool import require_tool, run_script
    from ..pipeline.runfile import read_runfile
    from ..pipeline.user_files import UserFile
    from .run_calls import calls_of
    from .run_inputs import RunInputs

    scheduler = str(ctx.info_name)
    location = UserFile.of(file)
    runfile = read_runfile(location)
    settings = settings_class(**_with_section(ctx, given, runfile.submit, str(location)))
    folder = location.path.parent.absolute()
    stem = location.path.name.partition(".")[0]
    target = UserFile.of(folder / f"{stem}-{scheduler}" if out is None else out).location
    with contextlib.chdir(folder):
        calls = calls_of(ctx, runfile, inputs=RunInputs() if here else None)
    if not here and getattr(settings, "claim", None) is None:
        _refuse_local_outputs(calls)
    jobs = tuple(job for number, call in enumerate(calls, 1) for job in _jobs(number, call, settings))
    run = Run(file=location.name, name=settings.run_name(stem), folder=str(folder), jobs=jobs)
    files = files_of(run, settings)
    if now:
        require_tool(tool)
    write_files(target, files)
    typed = f"bash {shlex.quote(str(target / SUBMIT))}"
    if as_json:
        print_json({"out": str(target), "files": list(files), "command": typed})
    else:
        say(f"{scheduler}: {counted(len(jobs), 'job')} in {target}")
        if not now:
            show(typed)
    if now:
        run_script(target / SUBMIT)


def _with_section(
    ctx: click.Context, given: dict[str, Any], sections: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, Any]:
    """Values of options, those of the run file where the command line has none.

    Raises:
        InputError: the file has an option or a scheduler that there is not, or a value that cannot be.
    """
    from .file_options import first_unknown

    parent = ctx.parent
    assert parent is not None
    assert isinstance(parent.command, click.Group)
    schedulers = parent.command.commands
    for name, section in sections.items():
        params = {p.name: p for p in schedulers[name].params} if name in schedulers else {}
        takes = [f.name for f in dataclasses.fields(_SETTINGS[name])] if name in schedulers else []
        place = f"{where}: submit: {name}"
        unknown = first_unknown(section, set(takes)) if takes else (name, "")
        if unknown is not None:
            raise InputError(
                "`teachonce submit` has no such option",
                code="run-file-submit-unknown",
                where=place,
                expected=", ".join(takes or schedulers),
                found=unknown[0],
                hint=unknown[1] or None,
            )
        for key, value in section.items():
            try:
                value = params[key].type_cast_value(ctx, value)
            except click.UsageError as error:
                raise InputError(
                    "an option of `teachonce submit` is wrong",
                    code="run-file-submit-wrong",
                    where=place,
                    found=f"{key}: {error.format_message().rstrip('.')}",
                    hint=f"teachonce submit {name} --help",
                ) from error
            if name == ctx.info_name and ctx.get_parameter_source(key) is not ParameterSource.COMMANDLINE:
                given = {**given, key: value}
    return given


_SETTINGS: dict[str, type[SubmitSettings]] = {"slurm": SlurmSettings, "kubernetes": KubernetesSettings}


def _jobs(number: int, call: Call, settings: SubmitSettings) -> Iterator[Job]:
    """The jobs of one stage. Slices run in processes of their own: what the file says of all stages is not for them."""
    from ..pipeline.batch.job import jobs_of_stage

    params = call.context.params
    whole = any(params.get(name) for name in ("grow", "dry_run", "slice", "finish"))
    sliced = {"slice", "finish"} <= params.keys() and not whole
    return jobs_of_stage(
        number,
        call.command,
        call.own_argv if sliced else call.argv,
        slices=settings.slices if sliced else None,
        on_gpu="device" in params or "use_gpu" in params,
        grace=params.get("grace"),
    )


def _refuse_local_outputs(calls: list[Call]) -> None:
    from ..pipeline.storage import is_url

    for call in calls:
        out = call.context.params.get("out")
        if isinstance(out, str) and not is_url(out):
            raise InputError(
                "an output would end with its pod",
                code="submit-output-in-pod",
                where=f"{call.command}: out",
                found=out,
                hint="give --claim, the PersistentVolumeClaim that holds it, or a URL such as s3://BUCKET/NAME",
            )


for scheduler in (slurm, kubernetes):
    submit.add_command(scheduler)
