"""Owns learning rates: a pure function of where training is, so a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

from ...storage_schemas.errors import InputError

SCHEDULES = ("cosine", "coop", "constant")

#: Learning rate of the warm-up epochs of `coop`.
COOP_WARMUP_LR = 1e-5


def learning_rate(
    schedule: str,
    *,
    lr: float,
    epoch: int,
    step: int,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int,
    min_lr: float = 0.0,
) -> float:
    """The learning rate of step `step` of epoch `epoch`, both from 0.

    - `cosine`: rises linearly over the warm-up, then falls as half a cosine to `min_lr`, in every step
      (Loshchilov and Hutter, SGDR, ICLR 2017).
    - `coop`: 1e-5 in the warm-up epochs, then lr (1 + cos(pi (epoch - warmup_epochs) / epochs)) / 2, once an
      epoch (Zhou et al., CoOp, IJCV 2022, whose code PromptKD uses).
    - `constant`: rises linearly over the warm-up, then stays.

    Raises:
        InputError: no such schedule.
    """
    if schedule == "coop":
        if epoch < warmup_epochs:
            return COOP_WARMUP_LR
        return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
    if schedule not in SCHEDULES:
        raise InputError(
            "unknown schedule",
            code="schedule-unknown",
            where="--schedule",
            expected=", ".join(SCHEDULES),
            found=schedule,
        )
    done, warmup = epoch * steps_per_epoch + step, warmup_epochs * steps_per_epoch
    if done < warmup:
        return lr * (done + 1) / warmup
    if schedule == "constant":
        return lr
    fallen = (1 + math.cos(math.pi * (done - warmup) / max(epochs * steps_per_epoch - warmup, 1))) / 2
    return min_lr + (lr - min_lr) * fallen if min_lr else lr * fallen
