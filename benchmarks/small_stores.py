"""Where the bytes of a small store are: by part, with parameters of views that are stored and that are derived.

    python benchmarks/small_stores.py [--images 1000 10000] [--views 1 2 4] [--draws 50 25]

Draws from the teacher's distribution are stored (`--encoding sampled:DRAWS`). Keys are hashes, images have sizes between 200 and 500 pixels a side, logits of 1,000 classes are random with an entropy as
EfficientNet-Lite0's on random crops of photographs (2.7 nats), shards have 1,000 images. Bytes a view, as files have them (`bytes`) and in
blocks of 4 KiB (`blocks`). Class vectors are left out: 5.1 MB for 1,280 channels, whatever the number of images.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
from teachonce.pipeline.storage import Location
from teachonce.stages.views.spec import ViewSpec
from teachonce.storage_schemas.encodings.floats import ENCODINGS
from teachonce.storage_schemas.encodings.sampled import Sampled
from teachonce.storage_schemas.fingerprint import Fingerprint
from teachonce.storage_schemas.receipt import Receipt
from teachonce.storage_schemas.samples import shard_name
from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
from teachonce.storage_schemas.view_drawing import ViewDrawing

SHARD_SIZE, CLASSES, BLOCK = 1000, 1000, 4096

#: Of the normal distribution of logits: so their entropy is 2.7 nats.
DEVIATION = 3.6

#: Colours as many recipes have them.
COLORS: dict[str, Any] = {"jitter": (0.4, 0.4, 0.4, 0.1), "grayscale": 0.2}


def random_logits(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.normal(0, DEVIATION, (*shape, CLASSES)).astype(np.float32)


def make(out: Path, *, images: int, views: ViewSpec, draws: int, derived: bool) -> StoreSpec:
    """A finished store, as `cache` makes it, but for class vectors."""
    rng = np.random.default_rng(0)
    drawing = ViewDrawing.from_json(views.to_json(), out)
    sizes = {"shard_size": SHARD_SIZE, "num_rows": images, "num_views": views.count}
    target = TargetSpec.of("logits", ("class",), (CLASSES,), encoding=Sampled(draws=draws), own=True, **sizes)
    spec = StoreSpec(
        num_samples=images,
        shard_size=SHARD_SIZE,
        num_views=views.count,
        targets=(target,),
        encoding=ENCODINGS["fp16"],
        colors=views.has_colors,
        drawing=drawing if derived else None,
    )
    fingerprint = Fingerprint(fields={"corpus_id": "0" * 32, "teacher": {"model": "none", "weights": "0" * 64}})
    root = open_root(str(out), mode="a")
    described = StoreDescription(
        spec=spec, fingerprint=fingerprint.fields, views=views.to_json(), teacher={}, shards="/nowhere"
    )
    create_arrays(root, described)
    ledger = Ledger(Location.of(out), "cache")
    ledger.begin(Plan(stage="cache", fingerprint=fingerprint, units=spec.num_shards, rows=images), hint="")
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        keys = [hashlib.blake2b(str(row).encode(), digest_size=16).hexdigest() for row in range(rows.start, rows.stop)]
        sizes_N2 = rng.integers(200, 501, (len(keys), 2)).astype(np.int32)
        block = TargetBlock(
            keys=keys,
            valid=np.ones(len(keys), np.bool_),
            view_params=drawing.params(keys, sizes_N2, range(views.count)),
            targets={"logits": random_logits(rng, (len(keys), views.count))},
            sizes=sizes_N2 if derived else None,
        )
        outputs = record_outputs(Location.of(out), write_block(root, spec, shard, block))
        receipt = Receipt(
            key=shard_name(shard),
            outputs=outputs,
            rows=len(keys),
            invalid_rows=(),
            digest=block.digest,
            fingerprint=fingerprint.digest,
        )
        ledger.commit(receipt, {"read": 1.234567, "decode": 1.234567, "forward": 1.234567, "write": 1.234567})
    return spec


def by_part(out: Path) -> dict[str, tuple[int, int]]:
    """Bytes of files, and of the blocks that they take, by what they are of."""
    found: dict[str, tuple[int, int]] = {}
    for file in out.rglob("*"):
        if not file.is_file():
            continue
        first = file.relative_to(out).parts[0]
        part = "zarr.json" if file.name == "zarr.json" else first
        part = f"ledger/{file.relative_to(out).parts[2]}" if part == "ledger" else part
        size, blocks = found.get(part, (0, 0))
        length = file.stat().st_size
        found[part] = size + length, blocks + -(-length // BLOCK) * BLOCK
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--draws", type=int, nargs="+", default=[50, 25])
    given = parser.parse_args()
    for images, views, draws, colors in itertools.product(given.images, given.views, given.draws, (False, True)):
        spec = ViewSpec(kind="random_resized_crop", count=views, **(COLORS if colors else {}))
        parts: dict[str, dict[str, tuple[int, int]]] = {}
        with tempfile.TemporaryDirectory() as top:
            for derived in (False, True):
                out = Path(top) / f"{derived}.zarr"
                make(out, images=images, views=spec, draws=draws, derived=derived)
                parts["derived" if derived else "stored"] = by_part(out)
        cells = images * views
        line: dict[str, Any] = {"images": images, "views": views, "draws": draws, "colors": colors}
        for form, found in parts.items():
            line[form] = {part: [round(n / cells, 2) for n in sizes] for part, sizes in sorted(found.items())}
            line[form]["all"] = [round(sum(sizes[i] for sizes in found.values()) / cells, 2) for i in (0, 1)]
        line["derived / stored"] = [round(line["derived"]["all"][i] / line["stored"]["all"][i], 3) for i in (0, 1)]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
