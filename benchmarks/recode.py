"""`recode` against reading all arrays with plain Zarr and writing them again, chunk by chunk, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bench, Cost, Line, cost, pairs, rate, speeds
from stores import fresh

ROWS, SHARD_SIZE, VIEWS, CLASSES, CHANNELS = 16_000, 500, 4, 1000, 768


def run(bench: Bench) -> Iterator[Line]:
    """One store of random numbers, in fp32; recoded to fp16, to a copy, and to half of its views."""
    from teachonce.pipeline.executors.serial import SerialExecutor
    from teachonce.pipeline.runner import run_stage
    from teachonce.stages.recode import plan_recode
    from teachonce.stages.settings.recode import RecodeSettings

    store = bench.scratch / "numbers.zarr"
    make_numbers(store)
    cases = {
        "recode, fp32 to fp16": ({"encoding": "fp16"}, range(VIEWS), "float16"),
        "recode, a copy in fp32": ({}, range(VIEWS), "float32"),
        "recode, 2 of 4 views": ({"views": "2"}, range(2), "float32"),
    }
    for what, (settings, views, dtype) in cases.items():
        out, plain = bench.scratch / "recoded.zarr", bench.scratch / "plain.zarr"

        def ours(out: Path = out, settings: dict[str, Any] = settings) -> Cost:
            fresh(out)

            def work() -> None:
                stage = plan_recode(str(store), out=str(out), settings=RecodeSettings(**settings))
                run_stage(stage, stage.out, SerialExecutor(), progress=False)

            return cost(work)

        for flushed in (True, False):

            def floor(
                plain: Path = plain, out: Path = out, views: range = views, dtype: str = dtype, flushed: bool = flushed
            ) -> Cost:
                fresh(plain)
                return cost(lambda: read_and_write(store, plain, out, views, dtype, flushed=flushed))

            found = pairs(ours, floor, bench.repeats)
            wall, cpu = speeds(found)
            note = f"{ROWS} rows, {VIEWS} views: {rate(ROWS, [o for o, _ in found])}, plain Zarr {rate(ROWS, [f for _, f in found])}"
            yield Line(
                what=what if flushed else f"{what}; plain Zarr does not wait for the disk",
                corpus="random numbers",
                ratios=wall,
                cpu_ratios=cpu,
                at_least=0.7 if flushed else None,
                note=note,
            )


def make_numbers(out: Path) -> None:
    """A finished store of random logits and embeddings in fp32, with its receipts."""
    from teachonce.pipeline.ledger import Ledger, Plan, record_outputs
    from teachonce.pipeline.storage import Location
    from teachonce.stages.views.spec import ViewSpec
    from teachonce.storage_schemas.encodings import ENCODINGS
    from teachonce.storage_schemas.fingerprint import Fingerprint
    from teachonce.storage_schemas.receipt import Receipt
    from teachonce.storage_schemas.samples import shard_name
    from teachonce.storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
    from teachonce.storage_schemas.target_store import TargetBlock, create_arrays, open_root, write_block
    from teachonce.storage_schemas.view_params import VIEW

    encoding = ENCODINGS["fp32"]

    def target(name: str, axis: str, width: int) -> TargetSpec:
        sizes = {"shard_size": SHARD_SIZE, "num_rows": ROWS, "num_views": VIEWS}
        return TargetSpec.of(name, (axis,), (width,), **sizes, encoding=encoding)

    spec = StoreSpec(
        num_samples=ROWS,
        shard_size=SHARD_SIZE,
        num_views=VIEWS,
        targets=(target("logits", "class", CLASSES), target("embedding", "channel", CHANNELS)),
        encoding=encoding,
    )
    fingerprint = Fingerprint(fields={"corpus_id": "0", "teacher": {"model": "none", "weights": "0"}})
    views = ViewSpec(kind="random_resized_crop", count=VIEWS).to_json()
    root = open_root(str(fresh(out)), mode="a")
    described = StoreDescription(spec=spec, fingerprint=fingerprint.fields, views=views, teacher={}, shards="/nowhere")
    create_arrays(root, described)
    ledger = Ledger(Location.of(out), "cache")
    ledger.begin(Plan(stage="cache", fingerprint=fingerprint, units=spec.num_shards, rows=ROWS), hint="")
    rng = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        rows = spec.rows(shard)
        shape = (rows.stop - rows.start, VIEWS)
        embedding = rng.normal(size=(*shape, CHANNELS)).astype(np.float32)
        block = TargetBlock(
            keys=[f"{row:032x}" for row in range(rows.start, rows.stop)],
            valid=np.ones(shape[0], np.bool_),
            view_params=np.zeros(shape, VIEW),
            targets={"embedding": embedding, "logits": rng.normal(0, 5, (*shape, CLASSES)).astype(np.float32)},
        )
        outputs = record_outputs(Location.of(out), write_block(root, spec, shard, block))
        receipt = Receipt(
            key=shard_name(shard),
            outputs=outputs,
            rows=shape[0],
            invalid_rows=(),
            digest=block.digest,
            fingerprint=fingerprint.digest,
        )
        ledger.commit(receipt, {})


def read_and_write(store: Path, out: Path, like: Path, views: range, dtype: str, *, flushed: bool = True) -> None:
    """Every array of rows, a shard at a time, into arrays with the chunks and codecs of those that `recode` wrote.

    Views that are not kept are not read.

    Args:
        flushed: whether files are flushed to the disk, as `recode` flushes its own.
    """
    import zarr

    source, model = zarr.open_group(str(store), mode="r"), zarr.open_group(str(like), mode="r")
    made = zarr.open_group(str(out), mode="w")
    for name, array in model.arrays():
        if name == "logits_max":
            continue
        copy = made.create_array(
            name,
            shape=array.shape,
            chunks=array.chunks,
            dtype=array.dtype,
            compressors=array.compressors,
            fill_value=array.fill_value,
        )
        for start in range(0, ROWS, SHARD_SIZE):
            rows = slice(start, start + SHARD_SIZE)
            of_views = (slice(views.start, views.stop),) if array.ndim > 2 else ()
            values = np.asarray(source[name][(rows, *of_views)])  # type: ignore[index]
            copy[rows] = values.astype(dtype) if name in ("logits", "embedding") else values
            for file in (out / name / "c" / str(start // SHARD_SIZE)).rglob("*") if flushed else ():
                flush(file)


def flush(file: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
