"""What share of the stream's CPU targets and views take: `python benchmarks/encoded_stream.py SHARDS STORE [--size 224] [--epochs 1]`.

STORE holds fp32 logits of the shards' samples. It is recoded to each encoding, with views stored and derived, in a folder that goes away;
then the stream is read in this process, whose CPU time is taken in all, while logits are read and decoded, and while views are read or
drawn. (Zarr decodes in threads of its own, whose time counts; nothing else runs meanwhile.) One line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from teachonce.pipeline.executors.serial import SerialExecutor
from teachonce.pipeline.runner import run_stage
from teachonce.stages.pairs import join, target_rows
from teachonce.stages.pairs.stream import TargetStream
from teachonce.stages.recode import plan_recode
from teachonce.stages.settings.recode import RecodeSettings

ENCODINGS = "fp32,fp16,int8,sampled:50,sampled:25,adaptive,pca:0.85"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("store")
    parser.add_argument("--encodings", default=ENCODINGS)
    parser.add_argument("--size", type=int, default=224, help="pixels of the student's images")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    took: dict[str, float] = defaultdict(float)
    target_rows.read_target = _timed(target_rows.read_target, "logits", took)
    join.read_params = _timed(join.read_params, "views", took)
    with tempfile.TemporaryDirectory() as folder:
        for encoding in options.encodings.split(","):
            for view_params in ("stored", "derived"):
                store = Path(folder) / f"{encoding}-{view_params}.zarr"
                settings = RecodeSettings(
                    encoding=f"logits={encoding}", targets="logits", view_params=view_params, shards=options.shards
                )
                stage = plan_recode(options.store, out=str(store), settings=settings)
                run_stage(stage, stage.out, SerialExecutor(), progress=False)
                print(
                    json.dumps(_line(options, store, took) | {"encoding": encoding, "views": view_params}), flush=True
                )


def _line(options: argparse.Namespace, store: Path, took: dict[str, float]) -> dict[str, Any]:
    """Shares of the CPU time of whole epochs, in percent, and microseconds an image."""
    with TargetStream(
        options.shards,
        str(store),
        image_size=options.size,
        batch_size=64,
        targets=["logits"],
        drop_last=False,
        accept_other_pixels=True,
    ) as stream:
        took.clear()
        images, begun = 0, time.process_time()
        for epoch in range(options.epochs):
            images += sum(len(batch.rows_N) for batch in stream.batches(epoch))
        whole = time.process_time() - begun
    shares = {f"{name}_percent": round(100 * took[name] / whole, 2) for name in ("logits", "views")}
    each = {f"{name}_us": round(1e6 * took[name] / images, 1) for name in ("logits", "views")}
    return shares | each | {"stream_us": round(1e6 * whole / images, 1)}


def _timed(call: Callable[..., Any], name: str, took: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            took[name] += time.process_time() - begun

    return timed


if __name__ == "__main__":
    main()
