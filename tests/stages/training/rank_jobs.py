"""Does jobs in two real processes of torch.distributed (gloo), forked when torch is imported. See `test_ranks.py`.

One JSON job a line on stdin: {"do": a function below, "folder": where rank r leaves r.safetensors and r.json, …}. One line
on stdout for each: the exit codes of the ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

WORLD = 2
CPU = torch.device("cpu")


def exchange(folder: Path) -> None:
    """All that ranks tell each other."""
    from teachonce.stages.training.ranks import Ranks

    ranks = Ranks.here()
    mine = {"rank": ranks.rank, "text": "ä" * 100 * ranks.rank, "none": None}
    keep(
        folder,
        facts={
            "here": [ranks.rank, ranks.world_size, ranks.is_first],
            "gathered": ranks.gather(mine),
            "agreed": ranks.agree(mine),
            "any": [ranks.any(False), ranks.any(ranks.rank == 1)],
        },
        tensors={"mean": ranks.mean(torch.tensor([1.0, 2.0], requires_grad=True) * (ranks.rank + 1))},
    )


def other_weights(folder: Path) -> None:
    """Ranks that start from different weights."""
    from teachonce.stages.training.ranks import Ranks
    from teachonce.storage_schemas.errors import MismatchError

    torch.manual_seed(dist.get_rank())
    try:
        Ranks.here().wrap(nn.Linear(2, 2), CPU)
    except MismatchError as error:
        keep(folder, facts=str(error))


def steps(folder: Path, model: str, dtype: str, parts: int = 1) -> None:
    """Two steps of gradients on this rank's half of a batch: outputs, gradients and buffers."""
    from teachonce.stages.training.ranks import Ranks, accumulating

    ranks = Ranks.here()
    module, images = make(model, getattr(torch, dtype))
    wrapped = ranks.wrap(module, CPU)
    half = len(images) // ranks.world_size
    images = images[ranks.rank * half : (ranks.rank + 1) * half]
    outputs = []
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        for part in range(parts):
            if part + 1 < parts:
                with accumulating(wrapped):
                    outputs.append(backward(wrapped, images[part::parts], parts))
            else:
                outputs.append(backward(wrapped, images[part::parts], parts))
    tensors = {f"gradient/{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    tensors |= {f"state/{n}": value for n, value in module.state_dict().items()}
    keep(folder, facts=sorted(module.state_dict()), tensors={"output": torch.cat(outputs), **tensors})


def backward(module: nn.Module, images: torch.Tensor, parts: int = 1) -> torch.Tensor:
    """Outputs; the gradient of a loss that is a mean over samples adds up."""
    output = module(images)
    wanted = torch.linspace(-1, 1, output[0].numel(), dtype=output.dtype)
    ((output.flatten(1) - wanted).square().mean() / parts).backward()
    return output.detach()


def make(model: str, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor]:
    """A seeded module in training mode, and 8 inputs for it whose halves are not alike."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64)
    images[4:] = 3 * images[4:] + 2
    torch.manual_seed(0)
    if model == "projector":
        from teachonce.stages.students.head import Head
        from teachonce.stages.students.student import make_projector

        head = Head(width=48, embed_dim=6, projector="mlp", normalized=True)
        module = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), make_projector(head))
    elif model == "cumulative":  # no momentum, nothing learned; and a weight that no output depends on
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None, affine=False), nn.Flatten())
        module.register_parameter("unused", nn.Parameter(torch.ones(2)))
    elif model == "odd":  # layers that do not train, or keep no averages
        module = nn.Sequential(
            nn.BatchNorm2d(3).requires_grad_(False),
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4, track_running_stats=False),
            nn.Flatten(),
        )
    else:
        import timm

        module = timm.create_model(model, num_classes=5)
    return module.to(dtype).train(), images.to(dtype)


def distill(folder: Path, out: str, unit_options: dict[str, Any], stop_after: int | None = None) -> None:
    """This rank's part of a whole `distill`; the first rank commits. Or it is gone after some steps."""
    from teachonce.pipeline.ledger import Ledger, Plan
    from teachonce.pipeline.types import Unit
    from teachonce.pipeline.worker import Worker
    from teachonce.stages.distill import plan_distill
    from teachonce.stages.models.compute import Compute
    from teachonce.stages.models.student_config import StudentConfig
    from teachonce.stages.settings.distill import DistillSettings
    from teachonce.stages.training.trainer import Trainer

    step = Trainer.step

    def last_step(self: Trainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs["step"] == stop_after:
            os._exit(7)
        return step(self, *args, **kwargs)

    Trainer.step = last_step
    options = dict(unit_options)
    config = StudentConfig(**options.pop("student"))
    compute = Compute(device="cpu", precision="fp32", threads=1)
    own = {name: options.pop(name) for name in DistillSettings.__dataclass_fields__ if name in options}
    stage = plan_distill(
        options.pop("shards"),
        options.pop("store"),
        config,
        out=out,
        compute=compute,
        show_progress=False,
        settings=DistillSettings(**own),
        **options,
    )
    ledger = Ledger(stage.out, stage.name)
    first = dist.get_rank() == 0
    if first:
        ledger.begin(Plan(stage=stage.name, fingerprint=stage.fingerprint, units=1, rows=stage.samples), hint="")
    Worker(stage, ledger).attempt(Unit(key="student", rows=stage.samples), commit=first)


def stop(folder: Path, *, asked: list[int | None]) -> None:
    """Steps until all leave off; each rank is asked as the step begins that `asked` names for it."""
    from teachonce.pipeline import stopping
    from teachonce.stages.training.common_stop import CommonStop
    from teachonce.stages.training.ranks import Ranks

    ranks = Ranks.here()
    common, steps = CommonStop(ranks), 0
    while not common.is_due():
        if asked[ranks.rank] == steps:
            stopping.ask(f"SIG{'TERM' if ranks.rank else 'USR1'}")
        steps += 1
        assert steps < 50
    keep(folder, facts=[steps, stopping.asked()])


def keep(folder: Path, facts: Any = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Leave what this rank found."""
    import safetensors.torch

    whole = {name: value.detach().clone().contiguous() for name, value in (tensors or {}).items()}
    (folder / f"{dist.get_rank()}.safetensors").write_bytes(safetensors.torch.save(whole))
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(facts))


def run(rank: int, job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    folder = Path(job.pop("folder"))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    globals()[job.pop("do")](folder, **job)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    import timm  # noqa: F401  # imported once, so that each job starts at once

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # gloo, as in torch 2.10, greets on stdout
    for line in sys.stdin:
        children = []
        for rank in range(WORLD):
            child = os.fork()
            if child == 0:
                try:
                    run(rank, json.loads(line))
                except BaseException as error:
                    print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), file=answers, flush=True)


if __name__ == "__main__":
    main()
