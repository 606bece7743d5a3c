"""Runs the benchmarks and prints a table. Exits with 0 even when a bound is missed: the table shows it."""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import cache_peers
import click
from corpora import draw
from harness import Bench, Line, table
from peer_environment import Environments, default_folder

NAMES = (
    "startup",
    "shard",
    "stream",
    "peer",
    "resume",
    "open_teacher",
    "cache",
    "precision",
    "distill",
    "pretrain",
    "many_students",
    "memory",
    "batch_size",
    "row_order",
    "recode",
    "growth",
)

#: Not without being named: peers install packages, the others take minutes.
ON_DEMAND = ("bucket", "cache_peers", "shard_peers", "stream_peers", "scaling", "decoders")

#: Names for several at once.
GROUPS = {"peers": ("cache_peers", "shard_peers", "stream_peers")}

#: Parts of one that can be measured alone.
CASES = tuple(f"cache_peers:{case}" for case in cache_peers.CASES)

PACKAGES = ("torch", "open_clip_torch", "timm", "pillow", "webdataset", "zarr", "numpy")


@click.command()
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Folder or plain tar of images (repeat for more). Without it, images are drawn on the fly.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice((*NAMES, *ON_DEMAND, *GROUPS, *CASES)),
    metavar="NAME",
    help=f"Only this one (repeat for more): {', '.join((*NAMES, *ON_DEMAND))}; "
    f"or {', '.join((*GROUPS, *CASES))}. Without it all from startup to {NAMES[-1]}.",
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Pairs of runs to measure.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Torch threads, and decoding threads. One is the fairest on a machine with other work to do.",
)
@click.option(
    "--peers",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_folder,
    show_default="$XDG_CACHE_HOME/teachonce-peers, or .venv/peers",
    help="Where the peers' virtual environments are, and are made.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    corpora: tuple[Path, ...], only: tuple[str, ...], repeats: int, threads: int, peers: Path, as_json: bool
) -> None:
    """Measure teachonce against plain loops that do the same work, pair by pair.

    Every ratio compares two runs of the same moment in one process or on one machine, and the table shows the median
    over the pairs. On a busy machine, the ratio in CPU time is steadier than the one on the clock.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    lines = []
    with tempfile.TemporaryDirectory(prefix="teachonce-bench-") as folder:
        scratch = Path(folder)
        named = [(_name(corpus), corpus) for corpus in corpora] or [
            ("drawn 300x200", draw(scratch / "drawn-300x200", 2000, width=300, height=200)),
            ("drawn 32x32", draw(scratch / "drawn-32x32", 3000, width=32, height=32)),
        ]
        for name in [one for chosen in only or NAMES for one in GROUPS.get(chosen, (chosen,))]:
            own = scratch / name.replace(":", "-")
            own.mkdir()
            bench = Bench(
                corpora=named, scratch=own, repeats=repeats, threads=threads, environments=Environments(peers.resolve())
            )
            for line in _lines(name, bench):
                lines.append(line)
                print(
                    f"{name}: {line.what}, {line.corpus or 'no corpus'}: {line.ratio:.3f}",
                    file=sys.stderr,
                    flush=True,
                )
    facts = _facts(threads)
    if as_json:
        json.dump({"facts": facts, "lines": [line.to_json() for line in lines]}, sys.stdout, indent=1)
        print()
        return
    print(*(f"{name}: {value}" for name, value in facts.items()), "", *table(lines), sep="\n")
    missed = [line for line in lines if line.met is False]
    bounds = sum(line.met is not None for line in lines)
    print(
        f"\n{bounds - len(missed)} of {bounds} bounds are met."
        + "".join(
            f"\nMissed{' on the clock only' if line.met_in_cpu_time else ''}: {line.what}, {line.corpus}: {line.ratio:.3f}"
            for line in missed
        )
    )


def _lines(name: str, bench: Bench) -> Iterator[Line]:
    module, _, case = name.partition(":")
    measure = importlib.import_module(module).run
    yield from measure(bench, (case,)) if case else measure(bench)


def _name(corpus: Path) -> str:
    return f"{corpus.parent.name}/{corpus.name}" if corpus.is_file() else corpus.name


def _facts(threads: int) -> dict[str, str]:
    """The machine and the versions that these figures were measured with."""
    cpu = "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["benchmarks/run.py", *sys.argv[1:]]),
        "CPU": f"{cpu}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} in the last 5 minutes",
        "threads": str(threads),
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in PACKAGES)]),
    }


if __name__ == "__main__":
    main()
