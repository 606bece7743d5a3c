"""Decoders against Pillow: are the pixels equal, and how fast is each; alone, and as a whole view at 224.

Runs `peers/decoders.py` in an environment with the other decoders and teachonce.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from harness import Bench, Line
from peer_environment import SCRIPTS


def run(bench: Bench) -> Iterator[Line]:
    """For each decoder: the share of images with other pixels, and images a CPU-second by Pillow's."""
    python = bench.environments.python("decoders", with_teachonce=True)
    for name, corpus in bench.corpora:
        given = {"corpus": str(corpus), "repeats": bench.repeats, "scratch": str(bench.scratch)}
        done = subprocess.run(
            [python, str(SCRIPTS / "decoders.py"), json.dumps(given)], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        for missing, reason in found["missing"].items():
            print(f"decoders: no {missing}: {reason}", file=sys.stderr, flush=True)
        for decoder, facts in found["decoders"].items():
            pixels = facts["corpus"]
            yield Line(
                what=f"pixels of {decoder}: share of images that differ from Pillow's",
                corpus=name,
                ratios=[pixels["differ"] / pixels["images"]],
                note=f"{pixels['differ']} of {pixels['images']}, {_how_much(pixels)}; made: "
                + "; ".join(f"{kind} {_made(one)}" for kind, one in facts["made"].items()),
            )
            for what, ratios in facts["speeds"].items():
                yield Line(
                    what=f"{decoder} by Pillow, {what}",
                    corpus=name,
                    ratios=ratios,
                    note=f"medians; {facts['version']}" if what == "decode" else "",
                )
        yield Line(
            what="decoding in one thread, share of a whole view's CPU time with Pillow",
            corpus=name,
            ratios=found["decode_share"],
            note=f"{statistics.median(found['pillow_rate']):,.0f} images a CPU-second decoded by Pillow {found['pillow']}",
        )


def _how_much(facts: dict) -> str:
    if not facts["differ"]:
        return "all equal"
    return f"mean {facts['mean']:.3f} levels, largest {facts['largest']}, PSNR at least {facts['psnr']:.1f} dB"


def _made(facts: dict) -> str:
    if facts["failed"]:
        return f"fails ({facts['failed']})"
    return "equal" if not facts["differ"] else f"differs (mean {facts['mean']:.2f}, largest {facts['largest']})"
