"""Stage I by the number of classes: peak memory of a process, and the cost of a step, with and without class chunks.

A step is that of `pretrain` on a ViT-B/16 with random weights in bf16, 4 images, prompts 9 layers deep. `padded` runs the
text tower the way the authors do: all classes at once, all 77 positions.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from harness import Bench, Cost, Line, pairs, slownesses

MODEL, BATCH_SIZE, DEPTH, CHUNK = "ViT-B-16", 4, 9, 32

#: Numbers of classes: ImageNet's, and a tenth of it.
MANY, FEW = 1000, 100


def run(bench: Bench) -> Iterator[Line]:
    turns = min(3, bench.repeats)
    peaks = {}
    for name, classes in (
        ("chunked", FEW),
        ("chunked", MANY),
        ("whole", FEW),
        ("whole", MANY),
        ("padded", FEW),
    ):
        peaks[name, classes] = [_measure(name, classes, bench.threads)["peak"] for _ in range(turns)]
    for name, bound in (("chunked", 1.5), ("whole", None)):
        few, many = peaks[name, FEW], peaks[name, MANY]
        yield Line(
            what=f"peak memory of stage I, {MANY} classes by {FEW}, {_words(name)}",
            corpus="",
            ratios=[m / f for m, f in zip(many, few, strict=True)],
            at_most=bound,
            note=f"{few[0] / 1024:.0f} and {many[0] / 1024:.0f} MiB, {_measure('model', FEW, bench.threads)['peak'] / 1024:.0f} "
            "MiB with no step done",
        )
    yield Line(
        what=f"peak memory of stage I, {FEW} classes, {_words('padded')}, by {_words('chunked')}",
        corpus="",
        ratios=[p / c for p, c in zip(peaks["padded", FEW], peaks["chunked", FEW], strict=True)],
        note=f"{peaks['padded', FEW][0] / 1024:.0f} MiB",
    )
    for classes in (FEW, MANY):
        steps = {name: Step(name, classes, bench.threads) for name in ("chunked", "whole")}
        found = pairs(steps["chunked"], steps["whole"], turns)
        wall, cpu = slownesses(found)
        yield Line(
            what=f"time of a step of stage I, {classes} classes, {_words('chunked')} by {_words('whole')}",
            corpus="",
            ratios=wall,
            cpu_ratios=cpu,
            note=f"{found[0][0].wall:.1f} and {found[0][1].wall:.1f} s",
        )
    found = pairs(Step("chunked", FEW, bench.threads), Step("padded", FEW, bench.threads), turns)
    wall, cpu = slownesses(found)
    yield Line(
        what=f"time of a step of stage I, {FEW} classes, {_words('chunked')} by {_words('padded')}",
        corpus="",
        ratios=wall,
        cpu_ratios=cpu,
        at_most=1.0,
        note=f"{found[0][0].wall:.1f} and {found[0][1].wall:.1f} s",
    )


def _words(name: str) -> str:
    return {"chunked": f"chunks of {CHUNK}", "whole": "all at once", "padded": "all at once in 77 positions"}[name]


def _measure(name: str, classes: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, name, str(classes), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Step:
    """One step, called again and again: forward, loss, backward, optimizer."""

    def __init__(self, name: str, classes: int, threads: int) -> None:
        import open_clip
        import torch
        from teachonce.pipeline.storage import Location
        from teachonce.stages.models.compute import Compute, keep_freed_memory
        from teachonce.stages.models.preprocess import Normalize
        from teachonce.stages.pretraining.settings import PretrainSettings
        from teachonce.stages.pretraining.tuner import Tuner, make_optimizer
        from teachonce.stages.prompts.clip import PromptedClip, class_ids
        from teachonce.stages.teachers import TeacherConfig
        from teachonce.stages.teachers.open_clip import OpenClipTeacher
        from teachonce.storage_schemas.fingerprint import Fingerprint

        keep_freed_memory()
        torch.set_num_threads(threads)
        backbone = OpenClipTeacher.load(TeacherConfig(model=MODEL, pretrained="random"))
        chunk = CHUNK if name == "chunked" else 0
        settings = PretrainSettings(class_chunk=chunk, batch_size=BATCH_SIZE)
        clip = PromptedClip(backbone.model, settings.shape(12, 12)).eval()
        ids_CT = class_ids(settings.context, open_clip.IMAGENET_CLASSNAMES[:classes], backbone.tokenizer)
        if name == "padded":
            ids_CT[0, -1] = ids_CT.max()  # an end token in the last place: no position is left out
            ids_CT[0, 1:-1] = 1
        self._optimizer = make_optimizer(clip, settings)
        self._images_NCHW = torch.randint(0, 256, (BATCH_SIZE, 3, 224, 224), dtype=torch.uint8)
        self._labels_N = torch.arange(BATCH_SIZE)
        plain_CD = torch.nn.functional.normalize(torch.randn(classes, backbone.spec.embed_dim), dim=-1)
        self._tuner = Tuner(
            clip=clip,
            normalize=Normalize(backbone.spec.preprocess),
            ids_CT=ids_CT,
            plain_text_CD=plain_CD,
            shots=None,
            pool=None,
            settings=settings,
            compute=Compute(device="cpu", precision="bf16", threads=threads),
            seed=0,
            folder=Location.of("unused"),
            fingerprint=Fingerprint(fields={}),
        )

    def __call__(self) -> Cost:
        wall, cpu = time.perf_counter(), time.process_time()
        self._tuner.step(self._optimizer, self._images_NCHW, self._labels_N, lr=1e-3)
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _main() -> None:
    """In the process that is measured: two steps (none for `model`); prints the peak of resident memory in KiB."""
    name, classes, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    step = Step("chunked" if name == "model" else name, classes, threads)
    for _ in range(0 if name == "model" else 2):
        step()
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    _main()
