"""Owns how a model computes: device, bf16 or fp32, torch threads; and what of that decides bytes."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ...pipeline.cores import usable_cores
from ...pipeline.settings import check
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ..decoding.pool import decode_workers, make_pool
from ..decoding.work import Pool
from .settings import AUTOCAST, WEIGHTS, ComputeSettings

#: Options of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Resolved settings: no `auto` left.

    Attributes:
        device: `cpu` or `cuda`.
        precision: `fp32`, `AUTOCAST` or `WEIGHTS`. The latter is autocast too, of a model that `bf16_copy` has made.
        threads: torch threads of one worker; in bf16 on the CPU they decide low bits, hence the bytes.
        decode_workers: processes that decode images ahead, 0 for threads; None leaves it to the machine that does the work.
    """

    device: str
    precision: str
    threads: int
    decode_workers: int | None = 0

    @property
    def autocast(self) -> bool:
        """Whether passes run under autocast in bf16."""
        return self.precision != "fp32"

    def to_json(self) -> Json:
        """What decides bytes: threads only matter on the CPU."""
        facts: dict[str, Json] = {"device": self.device, "precision": self.precision}
        return facts | {"threads": self.threads} if self.device == "cpu" else facts

    def pool(self, *modules: str, least: int = 0) -> Pool:
        """Where images are decoded ahead; its processes import these modules, and start now.

        Args:
            modules: those of the works.
            least: so many processes at least where the user has not chosen.
        """
        workers = decode_workers(self.decode_workers, device=self.device, threads=self.threads, least=least)
        return make_pool(workers, self.threads, modules)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, autocast in bf16 unless in fp32, deterministic kernels, and this many threads in this thread."""
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        with (
            torch.inference_mode(),
            torch.autocast(self.device, torch.bfloat16, enabled=self.autocast),
        ):
            yield


def resolve_compute(settings: ComputeSettings, *, elsewhere: bool = False) -> Compute:
    """Settle `auto`: CUDA where this machine has it; bf16 where it is faster; as many threads as cores, four at most.

    `bf16` and `amp_bf16` are the same here: autocast. See `teacher_compute` for weights in bf16.

    `elsewhere`: the work runs on other machines (Ray), so this one need not have the device.

    Raises:
        InputError: `cuda` was chosen where torch finds none; an impossible setting.
    """
    check(settings)
    device, precision = settings.device, settings.precision
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise InputError("no CUDA device here", code="cuda-missing", where="--device cuda", hint="use --device cpu")
    if precision == "auto":
        precision = AUTOCAST if _bf16_is_faster(device) else "fp32"
    elif precision != "fp32":
        precision = AUTOCAST
    if device == "cpu" and not elsewhere:
        keep_freed_memory()
    return Compute(
        device=device,
        precision=precision,
        threads=settings.threads or min(4, usable_cores()),
        decode_workers=settings.decode_workers,
    )


def teacher_compute(settings: ComputeSettings, *, elsewhere: bool = False) -> Compute:
    """Settle `auto` for a teacher's pass over many images: weights in bf16 where bf16 is faster.

    Raises:
        InputError: see `resolve_compute`.
    """
    compute = resolve_compute(settings, elsewhere=elsewhere)
    if compute.precision == AUTOCAST and settings.precision != "amp_bf16":
        return replace(compute, precision=WEIGHTS)
    return compute


def training_compute(settings: ComputeSettings, *, elsewhere: bool = False) -> Compute:
    """Settle `auto` for training: autocast on CUDA, fp32 on the CPU. `bf16` and `amp_bf16` are the same.

    Raises:
        InputError: `cuda` was chosen where torch finds none; an impossible setting.
    """
    compute = resolve_compute(settings, elsewhere=elsewhere)
    if settings.precision == "auto" and compute.device == "cpu":
        return replace(compute, precision="fp32")
    return compute


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next batch, in one arena for all threads. Call it early.

    torch allocates its activations anew in every forward pass. glibc gives large blocks back to the system at once,
    whose pages are then zeroed and mapped again: a quarter of the CPU time of ViT-B/32 in bf16. Threads that have
    allocated before this call stay in their own arenas. Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_ARENA_MAX, 1),
    ):
        mallopt(option, value)


def _bf16_is_faster(device: str) -> bool:
    if device == "cuda":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)
