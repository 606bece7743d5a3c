"""The stream against webdataset, litdata and MosaicML streaming, each reading what its own writer wrote: bytes only, and decoded.

The same photographs, with a label of 1,000 numbers in fp16 each. Every stream lives in a process of its own, in its own
environment; an epoch's processor time is that of the process with all that it has started.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from corpora import take
from harness import Bench, Line, pairs, rate, speeds
from peer_environment import versions_text
from peer_process import Peer

IMAGES, SHARD_SIZE = 2000, 1000

#: name, script, environment.
PEERS = (
    ("webdataset", "stream_webdataset.py", "webdataset"),
    ("litdata", "stream_litdata.py", "litdata"),
    ("MosaicML streaming", "stream_streaming.py", "streaming"),
)

#: Mode, loader processes, and epochs at a time: processor time is counted in hundredths of a second.
MODES = (("bytes", 0, 10), ("decoded", 0, 1), ("decoded", 2, 1))


def run(bench: Bench) -> Iterator[Line]:
    """One line a peer and mode; the bound is on processor time."""
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        images = take(corpus, IMAGES, own / "images")
        count = sum(1 for _ in images.rglob("*.jpg"))
        most = -(-count // 2)  # webdataset needs a shard for each loader process
        with ExitStack() as open_peers:

            def start(
                script: str, python: str, own: Path = own, most: int = most, stack: ExitStack = open_peers
            ) -> Peer:
                out = own / script.removesuffix(".py")
                out.mkdir()
                given = {"images": str(own / "images"), "out": str(out), "shard_size": min(SHARD_SIZE, most)}
                peer = Peer(python, script, given, own / f"{script}.log")
                stack.callback(peer.close)
                return peer

            ours = start("stream_teachonce.py", sys.executable)
            for peer_name, script, environment in PEERS:
                peer = start(script, bench.environments.python(environment))
                for mode, workers, epochs in MODES:
                    request = (mode, workers, epochs, count)
                    found = pairs(
                        lambda o=ours, r=request: o.read(*r), lambda p=peer, r=request: p.read(*r), bench.repeats
                    )
                    wall, cpu = speeds(found)
                    mine, theirs = (rate(count * epochs, [costs[i] for costs in found]) for i in (0, 1))
                    yield Line(
                        what=f"stream to {peer_name}, {mode}, {workers or 'no'} loader processes, by CPU time",
                        corpus=name,
                        ratios=cpu,
                        at_least=1.0,
                        note=f"on the clock {statistics.median(wall):.2f}: {mine}, {peer_name} {theirs}; "
                        + versions_text(peer.versions),
                    )
