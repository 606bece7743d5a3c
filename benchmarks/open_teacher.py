"""Peak memory and time of opening a ViT-L/14 teacher from a file, against its weights and against open_clip, in processes of their own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Bench, Line

MODEL = "ViT-L-14"

#: 428 million parameters, 1.7 GB in fp32.
KINDS = ("safetensors, fp32", "torch, fp32", "torch, fp16")


def run(bench: Bench) -> Iterator[Line]:
    """Weights are random; the file is written once for each kind, then opened by us and by open_clip in turn."""
    for kind in KINDS:
        file = bench.scratch / ("w.safetensors" if kind.startswith("safetensors") else "w.pt")
        _measure("write", kind, file)
        ours, open_clip_runs = [], []
        for _ in range(min(3, bench.repeats)):
            ours.append(_measure("teachonce", kind, file))
            open_clip_runs.append(_measure("open_clip", kind, file))
        file.unlink()
        weights = ours[0]["weights"]
        peak = sorted(t["peak"] for t in open_clip_runs)[len(open_clip_runs) // 2] / weights
        yield Line(
            corpus="none",
            what=f"peak memory of opening {MODEL} by its weights in fp32, {kind}",
            ratios=[o["peak"] / weights for o in ours],
            at_most=1.2,
            note=f"weights of {weights / 1e6:.0f} MB; open_clip's create_model takes {peak:.2f} times as much as they do",
        )
        yield Line(
            corpus="none",
            what=f"time of opening {MODEL} by open_clip's create_model, {kind}",
            ratios=[o["seconds"] / t["seconds"] for o, t in zip(ours, open_clip_runs, strict=True)],
            note="ours with the digest of the weights, and with two images through the model",
        )


def _measure(implementation: str, kind: str, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, implementation, kind, str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main() -> None:
    """In the process that is measured: open the teacher, print what it took beyond the imports."""
    implementation, kind, file = sys.argv[1], sys.argv[2], sys.argv[3]
    import logging

    import open_clip
    import torch
    from teachonce.stages.teachers import TeacherConfig
    from teachonce.stages.teachers.open_clip import OpenClipTeacher

    logging.disable()
    if implementation == "write":
        _write(open_clip.create_model(MODEL, pretrained=None).state_dict(), kind, file)
        print("{}")
        return
    torch.zeros(1000).sum()
    before, start = _peak(), time.perf_counter()
    if implementation == "teachonce":
        model = OpenClipTeacher.load(TeacherConfig.of(MODEL, file)).model
    else:
        model = open_clip.create_model(MODEL, pretrained=file)
    seconds = time.perf_counter() - start
    weights = sum(value.numel() * 4 for value in model.state_dict().values())
    print(json.dumps({"peak": _peak() - before, "seconds": seconds, "weights": weights}))


def _write(state: dict, kind: str, file: str) -> None:
    import torch
    from safetensors.torch import save_file

    if kind.endswith("fp16"):
        state = {name: value.half() for name, value in state.items()}
    if kind.startswith("safetensors"):
        save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    _main()
