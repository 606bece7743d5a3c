"""Owns which loggers a run has: TensorBoard where it is installed, others where the user asks for them."""

from __future__ import annotations

import importlib.util
from functools import partial

from ....pipeline.storage import Location
from ....storage_schemas.errors import MissingDependency
from .logger import Guarded, Logger
from .tensorboard import open_tensorboard
from .tracked import Tracking

#: The module, and the extra that brings it, of each program that is asked for by name.
_NEEDS = {"wandb": "wandb", "mlflow": "mlflow"}


def check_tracking(tracking: Tracking) -> None:
    """Refuse a program that is not installed, before any training.

    Raises:
        MissingDependency: names it.
    """
    for option, module in _NEEDS.items():
        if getattr(tracking, option) is not None and importlib.util.find_spec(module) is None:
            raise MissingDependency(f"--{option} needs {module}", f"pip install 'teachonce[{option}]'")


def open_loggers(folder: Location, step: int, tracking: Tracking) -> list[Logger]:
    """The loggers of a run that goes on from `step`; its files lie in `folder`."""
    loggers = [open_tensorboard(folder / "tensorboard", step)]
    if tracking.wandb is not None:
        loggers.append(Guarded("Weights & Biases", partial(_wandb, tracking, folder)))
    if tracking.mlflow is not None:
        loggers.append(Guarded("MLflow", partial(_mlflow, tracking, folder)))
    return [logger for logger in loggers if logger is not None]


def _wandb(tracking: Tracking, folder: Location) -> Logger:
    from .wandb import WandB

    return WandB(tracking.run(str(tracking.wandb)), folder)


def _mlflow(tracking: Tracking, folder: Location) -> Logger:
    from .mlflow import MLflow

    return MLflow(tracking.run(str(tracking.mlflow)), folder)
