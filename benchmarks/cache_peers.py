"""`cache` against what else makes embeddings of a folder: clip-retrieval, Ray Data, a plain DataLoader loop; on the CPU.

Whole commands, from start to exit, with the same weights (random, one file), batches, torch threads and loader processes.
Their embeddings are compared with the store's, so that all do the same work.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpora import take
from harness import Bench, Cost, Line, pairs, rate, speeds
from numpy.typing import NDArray
from peer_environment import SCRIPTS, versions_text
from peer_process import command
from stores import fresh, make_shards

MODEL, SIZE, BATCH = "ViT-B-32", 224, 64

#: Images of a measurement; fewer with TEACHONCE_BENCH_IMAGES, to try the benchmark.
IMAGES = int(os.environ.get("TEACHONCE_BENCH_IMAGES", "2000"))

#: Peer: bound, and the precisions that it has on the CPU. clip-retrieval has autocast on CUDA only.
PEERS = {
    "clip_retrieval": (1.5, ("fp32",)),
    "ray_data": (1.2, ("fp32", "bf16")),
    "plain_loop": (1.0, ("fp32", "bf16")),
}

#: Each can be run alone, as `--only cache_peers:plain_loop-fp32`.
CASES = tuple(f"{peer}-{precision}" for peer, (_, precisions) in PEERS.items() for precision in precisions)


def run(bench: Bench, cases: tuple[str, ...] = CASES) -> Iterator[Line]:
    """One line a peer and precision."""
    weights = bench.scratch / "weights.safetensors"
    _random_weights(weights)
    loaders = max(1, os.cpu_count() or 1)
    for name, corpus in bench.corpora:
        own = bench.scratch / name.replace("/", "-")
        images = take(corpus, IMAGES, own / "images")
        count = sum(1 for _ in images.rglob("*.jpg"))
        # As many tars as loader processes, at least: webdataset needs them.
        make_shards(images, own / "shards", shard_size=max(1, min(250, count // loaders)))
        for case in cases:
            peer, _, precision = case.partition("-")
            python = bench.environments.python(peer)
            store, out = own / "store.zarr", own / case
            given = {
                "model": MODEL,
                "weights": str(weights),
                "images": str(images),
                "shards": str(own / "shards"),
                "out": str(out),
                "size": SIZE,
                "batch": BATCH,
                "threads": bench.threads,
                "loaders": loaders,
                "precision": precision,
            }
            mine = [sys.executable, "-m", "teachonce", "cache", str(own / "shards"), "--out", str(store)]
            mine += ["--teacher", MODEL, "--teacher-pretrained", str(weights), "--targets", "embedding"]
            mine += ["--batch-size", str(BATCH), "--precision", precision, "--device", "cpu"]
            mine += ["--executor", "serial", "--threads", str(bench.threads)]
            theirs = [python, str(SCRIPTS / f"cache_{peer}.py"), json.dumps(given)]

            def ours(mine: list[str] = mine, store: Path = store, own: Path = own) -> Cost:
                fresh(store)
                return command(mine, own / "cache.log", bench.threads)

            def other(theirs: list[str] = theirs, out: Path = out, own: Path = own, peer: str = peer) -> Cost:
                fresh(out).mkdir()
                return command(theirs, own / f"{peer}.log", bench.threads)

            found = pairs(ours, other, bench.repeats, warm=False)
            alike = _alike(own / "shards", store, out)
            wall, cpu = speeds(found)
            mine_rate, peer_rate = (rate(count, [costs[i] for costs in found]) for i in (0, 1))
            versions = json.loads((out / "versions.json").read_text())
            yield Line(
                what=f"cache to {peer}, {precision}",
                corpus=name,
                ratios=wall,
                # Ray's processes are not children of the script, so their processor time is not known.
                cpu_ratios=() if peer == "ray_data" else cpu,
                at_least=PEERS[peer][0],
                note=f"{count} images: {mine_rate}, {peer} {peer_rate}; embeddings correlate by {alike:.4f}; "
                + versions_text(versions),
            )


def _random_weights(file: Path) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    logging.disable()  # it says that these weights are random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(MODEL, pretrained=None, load_weights=False)
    logging.disable(logging.NOTSET)
    save_file(model.state_dict(), file)


def _alike(shards: Path, store: Path, out: Path) -> float:
    """Median cosine of both embeddings of an image, each without its mean over all images: those of random weights are alike.

    Raises:
        AssertionError: the peer left images out, or embedded something else.
    """
    ours, theirs = _by_path(shards, store), np.load(out / "embeddings.npy").astype(np.float32)
    names = json.loads((out / "names.json").read_text())
    assert len(names) == len(theirs) == len(ours) // 2, f"{len(names)} names, {len(theirs)} of {len(ours) // 2} images"
    mine = np.stack([ours[name] for name in names])
    mine, theirs = mine - mine.mean(0), theirs - theirs.mean(0)
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    found = float(np.median(cosines))
    assert found > 0.9, f"the peer embeds other images: {found:.3f}"
    return found


def _by_path(shards: Path, store: Path) -> dict[str, NDArray[np.float32]]:
    """The stored embeddings, under the path and under the key of each image."""
    import zarr

    embedding_NVD = zarr.open_group(str(store), mode="r")["embedding"][:]  # type: ignore[index]
    found = {}
    for tar in sorted(shards.glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                if member.name.endswith(".json"):
                    facts = json.load(members.extractfile(member))  # type: ignore[arg-type]
                    row = np.asarray(embedding_NVD[facts["row"], 0], np.float32)
                    found[facts["path"]] = found[member.name.removesuffix(".json")] = row
    return found
