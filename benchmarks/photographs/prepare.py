"""The script that makes a base-to-novel task of photographs: their split in CoOp's layout, a CLIP teacher and a student.

    python benchmarks/photographs/prepare.py --photographs CALTECH101 --out DIRECTORY

No CLIP's weights can be had where this project is built, so both models are trained here, on the photographs of the
pre-training part, in a faded style: what they meet later has full colours. Zero-shot accuracy on the validation part
goes to stdout, progress to stderr. One machine with one number of threads makes the same models again. Needs torch 2.9 (Muon).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from photo_clip import zero_shot
from pool import Pool
from pretraining import RECIPES, train
from split import Split

VIEWS, SEED = 12, 0


def main(arguments: list[str] | None = None) -> int:
    """Write DIRECTORY/data, DIRECTORY/teacher and DIRECTORY/student; print what the models reach."""
    parser = argparse.ArgumentParser(description="Split the photographs and train a teacher and a student.")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of CLASS/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets data/, teacher/ and student/")
    parser.add_argument("--threads", type=int, default=1, help="of torch; the models depend on it a little")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train one of the two")
    parser.add_argument("--test", action="store_true", help="measure on the test part too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    split = Split.of(options.photographs)
    print(f"layout: {split.write(options.out / 'data')}", flush=True)
    started = time.monotonic()
    pool = Pool.draw(split.pretrain, views=VIEWS, seed=SEED)
    print(f"pool: {len(pool.labels_N)} crops, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    for role, recipe in RECIPES.items():
        if options.only not in (None, role):
            continue
        print(f"{role}: {json.dumps(asdict(recipe))}", file=sys.stderr, flush=True)
        seconds = train(role, recipe, pool, split.names, options.out / role)
        for part in ("val", "test") if options.test else ("val",):
            accuracy = zero_shot(options.out / role, getattr(split, part), split.names, split.num_base)
            shown = ", ".join(f"{name} {value:.1f}" for name, value in accuracy.items())
            print(f"{role}, zero-shot, {part}: {shown}", flush=True)
        print(f"{role}: trained in {seconds:.0f} s", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
