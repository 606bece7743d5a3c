"""Owns a run at Weights & Biases: the same one after each resume, offline where WANDB_MODE says so."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from ....pipeline.storage import Location
from .tracked import Run, kept_run


class WandB:
    """A run of wandb's. Of this process nothing is sent but the figures and the settings of the training."""

    def __init__(self, run: Run, folder: Location) -> None:
        import wandb

        kept = kept_run(folder, "wandb", lambda: {"project": run.project, "id": secrets.token_hex(4)})
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            login_timeout=10,
        )
        self._run = wandb.init(
            project=kept["project"],
            id=kept["id"],
            resume="allow",
            name=run.name,
            group=run.group or None,
            config=dict(run.about),
            dir=folder.local_path(),
            reinit="create_new",  # several students are trained in one process
            settings=settings,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
