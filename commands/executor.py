"""Owns where units of work run: the settings for it, and the executor that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..pipeline.settings import setting, with_default
from ..pipeline.worker_range import WorkerRange
from ..storage_schemas.errors import InputError
from .command import WHERE

if TYPE_CHECKING:
    from ..pipeline.executors.launched import Launched
    from ..pipeline.runner import Executor
    from ..pipeline.slices import Slice
    from ..pipeline.types import Resources


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """For every command that does units of work."""

    executor: str = setting("ray", choices=("ray", "serial"), group=WHERE, help="On Ray, or one after another here.")
    ray_address: str | None = setting(
        None, group=WHERE, help="Join this Ray cluster: `auto` or HOST:PORT. Without it, Ray starts here."
    )
    workers: int | WorkerRange | None = setting(  # noqa: RUF009
        None,
        least=1,
        unit="N|MIN..MAX",
        default_text="what fits",
        group=WHERE,
        help="Worker processes on Ray. MIN..MAX: begin with MIN, take up to MAX as nodes come, go on as nodes go.",
    )
    unit_timeout: float | None = setting(
        None,
        above=0.0,
        unit="SECONDS",
        default_text="none",
        group=WHERE,
        help="On Ray: a worker that takes longer with one shard is killed; the shard is tried 4 times, then it has failed.",
    )
    grace: float = setting(
        60.0,
        least=0.0,
        unit="SECONDS",
        group=WHERE,
        help="After SIGTERM or SIGUSR1, how long what is at hand may take to finish; then exit code 75: the same command resumes.",
    )

    #: How many share one GPU. Commands with units that compute on one have an option for it.
    workers_per_gpu: int = 1

    @property
    def elsewhere(self) -> bool:
        """Whether the work may run on other machines than this one."""
        return self.executor == "ray"

    def workers_here(self, needs: Resources) -> int:
        """Workers that this machine would have; one for a cluster that is not joined, if their number is not given."""
        if self.workers is not None or self.executor == "serial" or self.ray_address is not None:
            most = self.workers.most if isinstance(self.workers, WorkerRange) else self.workers
            return most or 1
        from ..pipeline.cores import usable_cores
        from ..pipeline.executors.ray import place

        gpus = 0
        if needs.gpus:
            import torch

            gpus = max(1, torch.cuda.device_count())  # who has none plans for one worker elsewhere
        share = needs.gpus / self.workers_per_gpu
        return place([(usable_cores(), gpus)], cpus=needs.cpus, gpus=share, workers=None)[0]

    def make(self) -> Executor:
        """The executor that these settings name. From here on a signal that asks for a stop lets it finish what is at hand.

        Raises:
            InputError: an option of Ray's without Ray.
        """
        from ..pipeline import stopping

        stopping.arm(self.grace)
        if self.executor == "ray":
            from ..pipeline.executors.ray import RayExecutor

            return RayExecutor(
                address=self.ray_address,
                workers=self.workers,
                unit_timeout=self.unit_timeout,
                workers_per_gpu=self.workers_per_gpu,
            )
        if self.ray_address is not None:
            raise InputError("--ray-address needs --executor ray", code="option-needs-another", where=self.ray_address)
        if self.unit_timeout is not None:
            raise InputError(
                "a time limit for a unit needs --executor ray",
                code="option-needs-another",
                where="--unit-timeout",
                found=f"{self.unit_timeout:g}",
            )
        if self.workers_per_gpu != 1:
            raise InputError(
                "several workers for a GPU need --executor ray",
                code="option-needs-another",
                where="--workers-per-gpu",
                found=self.workers_per_gpu,
            )
        if self.workers not in (None, 1):
            raise InputError(
                "several workers need --executor ray",
                code="option-needs-another",
                where="--workers",
                found=self.workers,
            )
        from ..pipeline.executors.serial import SerialExecutor

        return SerialExecutor()


@dataclass(frozen=True, kw_only=True)
class SlicedExecutorSettings(ExecutorSettings):
    """For stages whose units several commands may share out among them."""

    executor: str = setting(
        "ray",
        choices=("ray", "serial"),
        default_text="ray; serial with --slice",
        group=WHERE,
        help="On Ray, or one after another here.",
    )
    slice: str | None = setting(
        None,
        unit="I/N",
        group=WHERE,
        help="Do this part of the work, from 0/N to N-1/N: for job arrays. Slices may run side by side and again; --finish comes last.",
    )
    finish: bool = setting(
        False,
        group=WHERE,
        help="After all slices: look whether every unit is done, and do none. Exits with 1 and names what is left.",
    )

    @property
    def part(self) -> Slice | None:
        """The slice; None for all units.

        Raises:
            InputError: `slice` is none.
        """
        from ..pipeline.slices import Slice

        return None if self.slice is None else Slice.parse(self.slice)


@dataclass(frozen=True, kw_only=True)
class CachingExecutorSettings(SlicedExecutorSettings):
    """For `cache`, whose units may compute on GPUs."""

    workers_per_gpu: int = setting(
        1,
        least=1,
        group=WHERE,
        help="On Ray: workers that share one GPU, where one alone leaves it idle. Each loads the teacher.",
    )


def caching_executor(**settings: Any) -> CachingExecutorSettings:
    """The same for `cache`.

    Raises:
        InputError: a slice is to be done, and to be the last.
    """
    return CachingExecutorSettings(**_here_for_slices(settings))


def sliced_executor(**settings: Any) -> SlicedExecutorSettings:
    """From options as they were given: with a slice, and no word on where it runs, it runs here.

    Raises:
        InputError: a slice is to be done, and to be the last.
    """
    return SlicedExecutorSettings(**_here_for_slices(settings))


def _here_for_slices(settings: dict[str, Any]) -> dict[str, Any]:
    if settings["slice"] is not None and settings["finish"]:
        raise InputError(
            "--finish comes after all slices",
            code="options-exclude-each-other",
            where="--slice, --finish",
            hint="leave one out",
        )
    context = click.get_current_context()
    named = context.get_parameter_source("executor") not in (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    if settings["slice"] is not None and not named:
        settings["executor"] = "serial"
    return settings


@dataclass(frozen=True, kw_only=True)
class SerialByDefault(ExecutorSettings):
    """For commands whose work is one unit."""

    executor: str = with_default(ExecutorSettings, "executor", "serial")


@dataclass(frozen=True, kw_only=True)
class SlicedSerialByDefault(SlicedExecutorSettings):
    """For `verify`, whose units are short."""

    executor: str = with_default(ExecutorSettings, "executor", "serial")


@dataclass(frozen=True, kw_only=True)
class TrainingExecutorSettings(SerialByDefault):
    """For a student: several workers train it together."""

    workers: int | None = setting(
        None,
        least=1,
        default_text="1",
        group=WHERE,
        help="Processes that train one student together, on Ray: each batch is shared out among them.",
    )

    @property
    def elsewhere(self) -> bool:
        return super().elsewhere or (self.workers or 1) > 1

    @property
    def processes(self) -> int:
        """How many train one student together."""
        launched = self.launched
        return (self.workers or 1) if launched is None else launched.size

    @property
    def launched(self) -> Launched | None:
        """This process among those that torchrun has started; None where it started none.

        Raises:
            InputError: an option says otherwise where work runs.
        """
        from ..pipeline.executors.launched import Launched, refuse

        launched = Launched.here()
        if launched is not None:
            if self.workers is not None:
                refuse("--workers", self.workers)
            if self.executor == "ray":
                refuse("--executor", self.executor)
            if self.ray_address is not None:
                refuse("--ray-address", self.ray_address)
            if self.unit_timeout is not None:
                refuse("--unit-timeout", f"{self.unit_timeout:g}")
        return launched

    def make(self) -> Executor:
        from ..pipeline import stopping

        launched = self.launched
        if launched is not None:
            from ..pipeline.executors.torchrun import TorchrunExecutor

            stopping.arm(self.grace)
            return TorchrunExecutor(launched=launched)
        if self.workers is None or self.workers == 1:
            return super().make()
        if self.unit_timeout is not None:
            raise InputError(
                "training on several workers has no time limit",
                code="options-exclude-each-other",
                where="--unit-timeout",
                found=f"--workers {self.workers}",
                hint="leave out --unit-timeout",
            )
        from ..pipeline.executors.ray_train import RayTrainExecutor

        stopping.arm(0)
        return RayTrainExecutor(address=self.ray_address, workers=self.workers)
