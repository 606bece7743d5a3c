"""`teachonce --help` against importing click; `cache`, `vectors` and `distill` until their first batch against a plain script."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from corpora import take
from first_batch import until_first_batch
from harness import Bench, Cost, Line, cost, median_ms, pairs, slownesses
from stores import make_shards, make_store

TEACHER, STUDENT = "ViT-L-14", "ViT-B-16"

#: Imports the two libraries, and reads a file of weights into memory of its own: no model is built, no image is read.
PLAIN = """
import sys
import open_clip, torch
from safetensors.torch import load_file
weights = {name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}
"""


def run(bench: Bench) -> Iterator[Line]:
    """Whole processes. First batches are of one image or text, where the weights' file is known from before, and where it is not."""
    yield from _help(bench)
    weights = {model: _write_weights(model, bench.scratch / f"{model}.safetensors") for model in (TEACHER, STUDENT)}
    name, corpus = bench.corpora[0]
    shards, store = bench.scratch / "shards", bench.scratch / "store.zarr"
    make_shards(take(corpus, 64, bench.scratch / "images"), shards, shard_size=64)
    make_store(shards, store, views=1, threads=bench.threads)
    names = bench.scratch / "names.txt"
    names.write_text("a photograph\n")
    threads = ["--threads", str(bench.threads)]
    teacher = ["--teacher", TEACHER, "--teacher-pretrained", str(weights[TEACHER]), "--executor", "serial", *threads]
    student = ["--student", STUDENT, "--student-pretrained", str(weights[STUDENT]), *threads]
    commands = {
        "cache": (weights[TEACHER], ["cache", str(shards), *teacher, "--batch-size", "1"]),
        "vectors": (weights[TEACHER], ["vectors", *teacher, "--classes", str(names)]),
        "distill": (
            weights[STUDENT],
            ["distill", str(shards), str(store), *student, "--recipe", "kd", "--batch-size", "1"],
        ),
    }
    outputs, caches = count(), count()
    for command, (file, words) in commands.items():
        for known in (True, False):

            def ours(words: list[str] = words, known: bool = known) -> Cost:
                cache = "known" if known else f"unknown-{next(caches)}"
                return until_first_batch(
                    [sys.executable, "-m", "teachonce", *words, "--out", str(bench.scratch / f"out-{next(outputs)}")],
                    {"XDG_CACHE_HOME": str(bench.scratch / cache)},
                )

            found = pairs(ours, lambda file=file: _run([sys.executable, "-c", PLAIN, str(file)]), min(3, bench.repeats))
            wall, cpu = slownesses(found)
            times = f"{median_ms([o for o, _ in found])}, the script {median_ms([f for _, f in found])}"
            yield Line(
                what=f"{command}, start to first batch{'' if known else ', weights not known'}, by a script that reads them",
                corpus=name,
                ratios=wall,
                cpu_ratios=cpu,
                at_most=1.3 if known else None,
                note=f"{TEACHER if command != 'distill' else STUDENT}, fp32, safetensors: {times}",
            )


def _help(bench: Bench) -> Iterator[Line]:
    """The module, and the installed command where there is one beside this Python."""
    commands = {"python -m teachonce --help": [sys.executable, "-m", "teachonce", "--help"]}
    installed = Path(sys.executable).with_name("teachonce")
    if installed.exists():
        commands["teachonce --help"] = [str(installed), "--help"]
    for what, command in commands.items():
        found = pairs(
            lambda c=command: _run(c),
            lambda: _run([sys.executable, "-c", "import click"]),
            max(7, bench.repeats),
        )
        wall, cpu = slownesses(found)
        note = f"{median_ms([o for o, _ in found])}, import click {median_ms([f for _, f in found])}"
        yield Line(what=what, corpus="", ratios=wall, cpu_ratios=cpu, at_most=2.5, note=note)


def _run(command: list[str]) -> Cost:
    return cost(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def _write_weights(model: str, file: Path) -> Path:
    """Random weights of a model, as open_clip draws them."""
    import open_clip
    from safetensors.torch import save_file

    save_file(open_clip.CLIP(**open_clip.get_model_config(model)).state_dict(), file)
    return file
