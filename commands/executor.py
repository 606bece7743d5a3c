"""Owns where units of work run: the settings for it, and the executor that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pipeline.settings import setting, with_default
from ..storage_schemas.errors import InputError
from .command import WHERE

if TYPE_CHECKING:
    from ..pipeline.runner import Executor
    from ..pipeline.types import Resources


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """For every command that does units of work."""

    executor: str = setting("ray", choices=("ray", "serial"), group=WHERE, help="On Ray, or one after another here.")
    ray_address: str | None = setting(
        None, group=WHERE, help="Join this Ray cluster: `auto` or HOST:PORT. Without it, Ray starts here."
    )
    workers: int | None = setting(None, least=1, default_text="what fits", group=WHERE, help="Worker processes on Ray.")

    @property
    def elsewhere(self) -> bool:
        """Whether the work may run on other machines than this one."""
        return self.executor == "ray"

    def workers_here(self, needs: Resources) -> int:
        """Workers that this machine would have; one for a cluster that is not joined, if their number is not given."""
        if self.workers is not None or self.executor == "serial" or self.ray_address is not None:
            return self.workers or 1
        from ..pipeline.cores import usable_cores
        from ..pipeline.executors.ray import place

        gpus = 0
        if needs.gpus:
            import torch

            gpus = max(1, torch.cuda.device_count())  # who has none plans for one worker elsewhere
        return place([(usable_cores(), gpus)], cpus=needs.cpus, gpus=needs.gpus, workers=None)[0]

    def make(self) -> Executor:
        """The executor that these settings name.

        Raises:
            InputError: an option of Ray's without Ray.
        """
        if self.executor == "ray":
            from ..pipeline.executors.ray import RayExecutor

            return RayExecutor(address=self.ray_address, workers=self.workers)
        if self.ray_address is not None:
            raise InputError("--ray-address needs --executor ray", code="option-needs-another", where=self.ray_address)
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
class SerialByDefault(ExecutorSettings):
    """For commands whose work is one unit."""

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

    def make(self) -> Executor:
        if self.workers is None or self.workers == 1:
            return super().make()
        from ..pipeline.executors.ray_train import RayTrainExecutor

        return RayTrainExecutor(address=self.ray_address, workers=self.workers)
