"""The step rate of `vl2v`'s second stage beside that of `kd`: `python benchmarks/vl2v.py SHARDS STORE --pretrained WEIGHTS [--student NAME]`.

Both train the same student on the same images, `--per-domain` of each domain a step, in turns, after a stage 1. What is compared is
the time of a step, waiting for data among it, as the training's log has it, and the CPU time of the whole training. One line of JSON:
how much longer a step of stage 2 takes, of each pair and in the median. SHARDS hold images at DOMAIN/CLASS/IMAGE, STORE embeddings
with a CLIP model's class vectors (`benchmarks/drawn_domains.py` makes some).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.pipeline.storage import Location
from teachonce.stages.distill import plan_distill
from teachonce.stages.measures.training_time import training_time
from teachonce.stages.models.compute import Compute
from teachonce.stages.models.student_config import StudentConfig
from teachonce.stages.settings.distill import DistillSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("store")
    parser.add_argument("--student", default="timm:efficientnet_lite0")
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--per-domain", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "stage-1"
        _train(options, first, "vl2v", options.pretrained, stage=1)
        pairs = []
        for number in range(options.pairs):
            kd = _train(options, Path(folder) / f"kd-{number}", "kd", options.pretrained)
            vl2v = _train(options, Path(folder) / f"vl2v-{number}", "vl2v", str(first), stage=2)
            pairs.append({"wall": vl2v["wall"] / kd["wall"], "cpu": vl2v["cpu"] / kd["cpu"], "kd_step_ms": kd["wall"]})
    print(
        json.dumps(
            {
                "what": "a step of vl2v's stage 2, in steps of kd",
                "wall": statistics.median(pair["wall"] for pair in pairs),
                "cpu": statistics.median(pair["cpu"] for pair in pairs),
                "pairs": pairs,
            }
        )
    )


def _train(options: argparse.Namespace, out: Path, recipe: str, pretrained: str, **more: Any) -> dict[str, float]:
    """Milliseconds of a step, on the clock; and CPU seconds of the training, its processes' included."""
    settings = {
        "per_domain": options.per_domain,
        "steps_per_epoch": options.steps,
        "epochs": 1,
        "hold_out": 0.0,
        "select": "best",
        **more,
    }
    before = _cpu()
    stage = plan_distill(
        options.shards,
        options.store,
        # A finished student keeps its size.
        StudentConfig(
            model=options.student, pretrained=pretrained, size=None if more.get("stage") == 2 else options.size
        ),
        out=str(out),
        recipe=recipe,
        options=settings,
        settings=DistillSettings(),
        compute=Compute(device="cpu", precision="fp32", threads=1, decode_workers=1),
        show_progress=False,
    )
    run_stage(stage, stage.out, SerialExecutor(), progress=False)
    time = training_time(Location.of(out), "distill")
    assert time is not None
    return {"wall": 1000 * time.seconds / time.steps, "cpu": _cpu() - before}


def _cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


if __name__ == "__main__":
    main()
