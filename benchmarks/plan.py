"""Measures what `teachonce plan` foretells by what it then takes: bytes of shards and store, seconds of `cache`, each as a ratio.

python benchmarks/plan.py PHOTOS --pretrained WEIGHTS
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click


@click.command()
@click.argument("corpus", type=click.Path(exists=True, path_type=Path))
@click.option("--teacher", default="timm:efficientnet_lite0", show_default=True)
@click.option("--pretrained", required=True, help="Weights of the teacher, or `random`.")
@click.option("--views", default="1,4", show_default=True, help="Numbers of random views, with commas.")
@click.option("--targets", default="logits", show_default=True)
@click.option("--encoding", default="fp16", show_default=True)
@click.option("--executor", type=click.Choice(("serial", "ray")), default="serial", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of timing the teacher in the plan.")
def main(
    corpus: Path,
    teacher: str,
    pretrained: str,
    views: str,
    targets: str,
    encoding: str,
    executor: str,
    threads: int,
    seconds: float,
) -> None:
    """Plan, then do it, on the same machine; the ratios are of the plan by what it took."""
    model = ["--teacher", teacher, "--teacher-pretrained", pretrained]
    print(f"load in the last 5 minutes: {os.getloadavg()[1]:.1f}")
    print("| views | shards, bytes | store, bytes | cache, seconds | planned | took |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for number in views.split(","):
        how = ["--views", number, "--targets", targets, "--encoding", encoding]
        where = ["--executor", executor, "--workers", "1", "--threads", str(threads)]
        with tempfile.TemporaryDirectory() as folder:
            shards, store = f"{folder}/shards", f"{folder}/store"
            text = called(
                ["plan", str(corpus), *model, *how, *where, "--classes", "own", "--seconds", str(seconds), "--json"]
            )
            plan = json.loads(text)
            called(["shard", str(corpus), "--out", shards, "--executor", "serial"])
            called(["vectors", *model, "--out", store])
            began = time.perf_counter()
            called(["cache", shards, *model, *how, *where, "--out", store])
            took = time.perf_counter() - began
            planned = plan["teacher"]["hours"]["value"] * 3600
            ratios = [
                plan[name]["bytes"]["value"] / size_of(place) for name, place in (("shards", shards), ("store", store))
            ]
            cells = [f"{ratio:.4f}" for ratio in ratios] + [
                f"{planned / took:.2f}",
                f"{planned:.1f} s",
                f"{took:.1f} s",
            ]
            print(f"| {number} | {' | '.join(cells)} |", flush=True)


def called(words: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, "-m", "teachonce", *words], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"teachonce {' '.join(words)}\n{done.stderr}")
    return done.stdout


def size_of(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
