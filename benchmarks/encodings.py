"""What each encoding of logits costs: `python benchmarks/encodings.py STORE [--classes 100]`, of a store with fp32 logits.

One line each: bytes a view on disk in chunks of the measured rows, divergence in nats at T = 1, 2, 4, and CPU microseconds to decode
a row's view. Encodings are fitted to the first half of the rows, 1,024 at most, and measured on the second half, 500 at most.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import zarr
from teachonce.stages.encodings.fitting import Fits
from teachonce.stages.encodings.measure import measure
from teachonce.storage_schemas.encodings.spelling import one
from teachonce.storage_schemas.store_description import TargetSpec

ENCODINGS = (
    "fp16,int8,pca:0.15,pca:0.25,pca:0.35,pca:0.5,pca:0.7,pca:0.8,pca:0.85,pca:1,pca:1.4,"
    "adaptive:0.9,adaptive,adaptive:0.95:63,adaptive:0.99,sampled:25,sampled:40,sampled:50"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--classes", type=int, help="of these so many, drawn with a fixed seed")
    parser.add_argument("--encodings", default=ENCODINGS)
    options = parser.parse_args()
    root: Any = zarr.open_group(options.store, mode="r")
    drawn = np.random.default_rng(0)
    logits = root["logits"][:][root["valid"][:]].astype(np.float32)
    logits = logits[drawn.permutation(len(logits))]
    if options.classes:
        logits = logits[:, :, drawn.permutation(logits.shape[2])[: options.classes]]
    half, classes = len(logits) // 2, logits.shape[2]
    target = TargetSpec(name="logits", axes=("sample", "view", "class"), shape=(classes,))
    fits = Fits(target, np.ascontiguousarray(logits[: min(1024, half)].reshape(-1, classes)))
    rows = np.ascontiguousarray(logits[half:][:500])
    keys = [f"{row:032x}" for row in range(len(rows))]
    for text in options.encodings.split(","):
        encoding = fits.encoding(one(text))
        measured = measure(encoding, target, rows, keys=keys)
        arrays = encoding.encode(target, rows, keys=keys, first_view=0)
        view = {name: np.ascontiguousarray(array[:, 0]) for name, array in arrays.items()}
        encoding.decode(target, view)
        begun = time.process_time()
        for _ in range(10):
            encoding.decode(target, view)
        micro = (time.process_time() - begun) / 10 / len(rows) * 1e6
        kl = "  ".join(f"T={t}: {s.mean:.3g}/{s.p99:.3g}/{s.max:.3g}" for t, s in (measured.kl or {}).items())
        print(
            f"{text:18} {measured.bytes_per_view:7.1f} B + {measured.table_bytes:>8} once  {kl}  decode {micro:.1f} us",
            flush=True,
        )


if __name__ == "__main__":
    main()
