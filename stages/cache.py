"""`teachonce cache`: runs the frozen teacher once over every view of every sample and stores what it said."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.ledger import Ledger, record_outputs
from ..pipeline.output import check_output, claim_output
from ..pipeline.storage import Location
from ..pipeline.types import Resources, RunUnit, Timer, Unit
from ..storage_schemas.class_vectors import ClassVectors, origin_model
from ..storage_schemas.errors import DamagedError, InputError, MismatchError
from ..storage_schemas.fingerprint import Fingerprint, Json
from ..storage_schemas.formats import TARGET_STORE
from ..storage_schemas.plain_text import counted, typed
from ..storage_schemas.receipt import InvalidRow, Receipt
from ..storage_schemas.samples import shard_name
from ..storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ..storage_schemas.target_store import (
    TargetBlock,
    check_version,
    create_arrays,
    open_root,
    write_block,
)
from ..storage_schemas.view_params import Views, no_views
from .corpora.images import BadImage, one_image
from .corpora.shards import ShardReader, ShardSet
from .models.compute import Compute, keep_freed_memory
from .pairs.store import read_description, read_vectors, vectors_if_any
from .pairs.store_root import refuse_lost_root
from .samples.ahead import Pixels, Ready, decoding_threads, in_order
from .samples.kind import SampleKind, draw_views
from .samples.pixel_sample import PixelSample
from .samples.registry import kind_named
from .teachers import TeacherConfig, TeacherSpec, load_teacher
from .views.spec import ViewSpec
from .views.versions import other_versions, versions_text

#: A row as the decoding threads hand it over: its views' parameters and arrays (view, …), or why there are none.
_Rendered = Ready[int, tuple[Views, Pixels]]


@dataclass(frozen=True, kw_only=True)
class CacheStage:
    """Shard *i* of the corpus becomes row block *i* of every array of the store.

    Attributes:
        pixels: rendered views of the corpus; a worker that renders them otherwise does nothing.
        notes: lines that a person should see before it starts.
    """

    shards: ShardSet
    store: Location
    config: TeacherConfig
    teacher: TeacherSpec
    views: ViewSpec
    spec: StoreSpec
    vectors: ClassVectors | None
    compute: Compute
    batch_size: int
    pixels: PixelSample
    notes: tuple[str, ...] = ()

    name = "cache"

    @property
    def resources(self) -> Resources:
        return Resources(
            cpus=self.compute.threads, gpus=float(self.compute.device == "cuda"), units_at_once=2
        )

    @property
    def fingerprint(self) -> Fingerprint:
        fields: dict[str, Json] = {
            "schema_version": TARGET_STORE.version,
            "corpus_id": self.shards.corpus.corpus_id,
            "teacher": {
                "model": self.teacher.model,
                "architecture": self.teacher.architecture,
                "weights": self.teacher.weights_digest,
                "preprocess": self.teacher.preprocess.to_json(),
            },
            "views": self.views.to_json(),
            "pixels": self.pixels.digest,
            "targets": [target.name for target in self.spec.targets],
            "encoding": self.spec.encoding.name,
            "compute": self.compute.to_json() | {"batch_size": self.batch_size},
        }
        if self.vectors is not None:
            fields["class_vectors"] = self.vectors.digest
        return Fingerprint(fields=fields)

    def plan(self) -> Iterator[Unit]:
        for shard in range(self.spec.num_shards):
            rows = self.spec.rows(shard)
            yield Unit(key=shard_name(shard), rows=rows.stop - rows.start, inputs={"shard": shard})

    def create(self) -> None:
        """Make the store's arrays. The driver's work, before any worker starts; never once the ledger has a plan."""
        description = StoreDescription(
            spec=self.spec,
            fingerprint=self.fingerprint.fields,
            views=self.views.to_json(),
            teacher=self.teacher.to_json(),
            shards=self.shards.location.address,
            pixels=self.pixels.to_json(),
            versions=other_versions(),
            sample_kind=self.kind.name,
        )
        create_arrays(open_root(self.store.zarr_store(), mode="a", where=self.store), description)

    def open(self) -> RunUnit:
        import torch

        if self.compute.device == "cpu":
            keep_freed_memory()
        self.pixels.check(
            self.shards, self.views, where=self.store, hint="give every node the same versions of everything"
        )
        teacher = load_teacher(self.config)
        if teacher.spec.weights_digest != self.teacher.weights_digest:
            raise MismatchError(
                "this machine has other weights of the teacher", where=self.config.model,
                expected=f"{self.teacher.weights_digest} (the plan)", found=f"{teacher.spec.weights_digest} (this machine)",
                hint="give every node the same weights file",
            )  # fmt: skip
        device = torch.device(self.compute.device)
        teacher.to(device)
        root = open_root(self.store.zarr_store(), mode="a", where=self.store)
        read_description(root, self.store).check_planned(self.fingerprint, where=self.store)
        threads = decoding_threads(self.compute.threads)
        one_at_a_time = threading.Lock()
        vectors_CD = bias_C = None
        if self.vectors is not None:
            # Copies: on Ray these arrays lie in memory that others share, which torch takes for an oversight.
            vectors_CD = torch.tensor(self.vectors.vectors_CD, device=device)
            bias_C = None if self.vectors.bias_C is None else torch.tensor(self.vectors.bias_C, device=device)

        def embed(images_NCHW: Pixels) -> dict[str, NDArray[np.float32]]:
            with self.compute.inference():
                embedding_ND = teacher.embed(torch.from_numpy(images_NCHW).to(device))
                said = {"embedding": embedding_ND}
                if self.vectors is not None:
                    assert vectors_CD is not None
                    with torch.autocast(device.type, enabled=False):
                        logits_NC = self.vectors.logit_scale * (embedding_ND @ vectors_CD.T)
                        said["logits"] = logits_NC if bias_C is None else logits_NC + bias_C
                return {t.name: said[t.name].cpu().numpy() for t in self.spec.targets}

        def run(unit: Unit, timer: Timer) -> Receipt:
            shard = unit.inputs["shard"]
            with (
                closing(self.shards.reader(shard)) as reader,
                closing(self._render(reader, shard, threads, timer)) as rendered,
            ):
                # Decoding starts here, while another unit may still be in the model.
                first = next(rendered, None)
                with one_at_a_time:
                    block, invalid = self._collect(reader, shard, first, rendered, embed, timer)
            with timer("write"):
                outputs = record_outputs(self.store, write_block(root, self.spec, shard, block))
            return Receipt(
                key=unit.key, outputs=outputs, rows=unit.rows, invalid_rows=invalid,
                digest=block.digest, fingerprint=self.fingerprint.digest,
            )  # fmt: skip

        return run

    def _render(
        self, reader: ShardReader, shard: int, threads: ThreadPoolExecutor, timer: Timer
    ) -> Generator[_Rendered]:
        """Rows with their views, in order; decoding runs a bounded window ahead of what the model takes."""
        kind, size, limit = self.kind, self.teacher.preprocess.size, self.shards.corpus.max_pixels

        def work(row: int) -> tuple[Views, Pixels]:
            if row in reader.invalid:
                raise BadImage(reader.invalid[row])
            with timer("read"):
                key, data = reader.key(row), reader.read(row)
            with timer("decode"), one_image(f"{self.shards.location}, row {row}"):
                sample = kind.decode(data, limit)
                params = kind.params(sample, key, self.views)
                return params, draw_views(kind, sample, params, size, self.views)

        rows = self.spec.rows(shard)
        ahead = 2 * self.samples_per_batch + self.compute.threads
        return in_order(range(rows.start, rows.stop), work, threads, ahead)

    @property
    def kind(self) -> SampleKind:
        return kind_named(self.shards.corpus.sample_kind, where=self.shards.location)

    @property
    def samples_per_batch(self) -> int:
        """Whole samples only, so that a batch's composition depends on nothing but the shard."""
        return max(1, self.batch_size // self.views.count)

    def _collect(
        self,
        reader: ShardReader,
        shard: int,
        first: _Rendered | None,
        rendered: Iterator[_Rendered],
        embed: Callable[[Pixels], dict[str, NDArray[np.float32]]],
        timer: Timer,
    ) -> tuple[TargetBlock, tuple[InvalidRow, ...]]:
        rows = self.spec.rows(shard)
        count, views = rows.stop - rows.start, self.views.count
        entries = self.shards.manifest().shard(shard)
        valid = np.zeros(count, np.bool_)
        params = no_views(count, views)
        targets = {t.name: np.full((count, views, t.width), np.nan, np.float32) for t in self.spec.targets}
        invalid: list[InvalidRow] = []
        batch: list[tuple[int, Pixels]] = []

        def flush() -> None:
            with timer("forward"):
                offsets = [offset for offset, _ in batch]
                said = embed(np.concatenate([images for _, images in batch]))
                for name, values in said.items():
                    targets[name][offsets] = values.reshape(len(batch), views, -1)
            timer.advance(len(batch))
            batch.clear()

        def chain() -> Iterator[_Rendered]:
            if first is not None:
                yield first
            while True:
                with timer("wait"):
                    item = next(rendered, None)
                if item is None:
                    return
                yield item

        for ready in chain():
            row, offset = ready.item, ready.item - rows.start
            if ready.result is None:
                invalid.append(InvalidRow(row=row, path=entries[offset].path, reason=ready.reason))
                timer.advance(1)
                continue
            if reader.key(row) != entries[offset].key:
                raise DamagedError(
                    "tar and manifest are out of line", where=f"{self.shards.location}, row {row}",
                    expected=entries[offset].key, found=reader.key(row),
                )  # fmt: skip
            params[offset], images = ready.result
            valid[offset] = True
            batch.append((offset, images))
            if len(batch) == self.samples_per_batch:
                flush()
        if batch:
            flush()
        _refuse_nonfinite(targets, valid, shard)
        block = TargetBlock(keys=[e.key for e in entries], valid=valid, view_params=params, targets=targets)
        return block, tuple(invalid)


def _refuse_nonfinite(targets: dict[str, NDArray[np.float32]], valid: NDArray[np.bool_], shard: int) -> None:
    for name, values in targets.items():
        bad = int((~np.isfinite(values[valid])).any(axis=(1, 2)).sum()) if valid.any() else 0
        if bad:
            raise InputError(
                "the teacher said NaN or infinity", where=f"{name} of {counted(bad, 'sample')} in shard {shard}",
                hint="run `teachonce cache` with --precision fp32",
            )  # fmt: skip


def plan_cache(
    shards: Location | str,
    config: TeacherConfig,
    *,
    out: Location | str,
    views: ViewSpec | None,
    targets: str,
    encoding: Any,
    compute: Compute,
    batch_size: int,
    view_interpolation: str | None = None,
) -> CacheStage:
    """The stage that caches a teacher's targets; makes the store's arrays if they are not there.

    Args:
        shards: folder of finished shards.
        config: the teacher.
        out: the target store.
        views: None for the teacher's own centre crop.
        targets: `logits`, `embedding`, `both`, or `auto`: logits where there are class vectors and no more classes
            than channels, else the embedding.
        encoding: an `Encoding`.
        compute: device, precision, threads.
        batch_size: images (views) in one forward pass; its composition decides low bits, hence it is fingerprinted.
        view_interpolation: resampling filter of random views; None for the teacher's.

    Raises:
        InputError: bad shards or teacher; logits asked for without class vectors.
        MismatchError: the store was begun where views were rendered otherwise. What else it may not fit (another
            teacher, corpus, view spec, …) is for the runner to refuse, by the fingerprint.
    """
    store = Location.of(out)
    models = (config.model, config.pretrained, config.backbone)
    check_output(store, CacheStage.name, inputs=(shards,), names=models)
    refuse_lost_root(store)
    shard_set = ShardSet.open(shards)
    _refuse_unusable(shard_set)
    loaded = load_teacher(config)
    teacher = loaded.spec
    claim_output(store, CacheStage.name)
    root = open_root(store.zarr_store(), mode="a", where=store)
    check_version(root, where=store)
    vectors = _vectors_for(root, store, teacher, targets)
    names = _target_names(targets, teacher, vectors)
    if views is None:
        views = teacher.preprocess.center_view()
    else:
        views = replace(views, interpolation=view_interpolation or teacher.preprocess.interpolation)
    spec = StoreSpec(
        num_samples=shard_set.corpus.num_samples,
        shard_size=shard_set.corpus.shard_size,
        num_views=views.count,
        targets=tuple(_target(name, teacher, vectors) for name in names),
        encoding=encoding,
        colors=views.has_colors,
    )
    plan = Ledger(store, CacheStage.name).plan()
    described = None if plan is None else read_description(root, store)
    recorded = None if described is None else PixelSample.of_store(described, store)
    stage = CacheStage(
        shards=shard_set,
        store=store,
        config=config,
        teacher=teacher,
        views=views,
        spec=spec,
        vectors=vectors if "logits" in names else None,
        compute=compute,
        batch_size=batch_size,
        pixels=recorded or PixelSample.take(shard_set, views, teacher.preprocess.size),
        notes=(f"teacher {loaded.loaded}",),
    )
    if plan is None or described is None:
        stage.create()
        return stage
    if recorded is not None and not stage.fingerprint.differences(plan.fingerprint.fields):
        recorded.check(
            shard_set, views, where=store,
            hint="give another --out; a store is finished by machines that render as the first one",
        )  # fmt: skip
        stage = replace(stage, notes=stage.notes + _other_versions(described, recorded, stage.kind))
    return stage


def _refuse_unusable(shards: ShardSet) -> None:
    for shard in range(shards.corpus.num_shards):
        receipt = shards.receipt(shard)
        if len(receipt.invalid_rows) < receipt.rows:
            return
    raise InputError(
        "not one image can be used", where=shards.location, expected="at least one usable image",
        found=f"{shards.corpus.num_samples} unusable", hint=f"see `teachonce status {typed(shards.location)}`",
    )  # fmt: skip


def _other_versions(described: StoreDescription, recorded: PixelSample, kind: SampleKind) -> tuple[str, ...]:
    """What to say where a store was begun with other versions of the libraries."""
    there = {**recorded.versions, **(described.versions or {})}
    here = {**kind.versions(), **other_versions()}
    if there == here:
        return ()
    return (
        f"the store was begun with other versions ({versions_text(there, here)}); pixels are the same, but low bits "
        "of targets may differ",
    )


def _vectors_for(root: Any, store: Location, teacher: TeacherSpec, targets: str) -> ClassVectors | None:
    if targets == "embedding":
        return None
    vectors = vectors_if_any(root, store) if targets == "auto" else read_vectors(root, store)
    if vectors is None:
        return None
    origin = origin_model(root, store)
    if origin.weights_digest != teacher.weights_digest:
        raise MismatchError(
            "the store's class vectors are another teacher's", where=f"{store}: field 'teacher.weights'",
            expected=f"{teacher.model} {teacher.weights_digest} (this teacher)",
            found=f"{origin.model} {origin.weights_digest} (the class vectors)",
            hint="use that teacher, or another --out",
        )  # fmt: skip
    return vectors


def _target_names(targets: str, teacher: TeacherSpec, vectors: ClassVectors | None) -> tuple[str, ...]:
    if targets == "both":
        return ("embedding", "logits")
    if targets != "auto":
        return (targets,)
    return ("logits",) if vectors is not None and vectors.num_classes <= teacher.embed_dim else ("embedding",)


def _target(name: str, teacher: TeacherSpec, vectors: ClassVectors | None) -> TargetSpec:
    if name == "embedding":
        return TargetSpec(name=name, axes=("sample", "view", "channel"), width=teacher.embed_dim)
    assert vectors is not None
    return TargetSpec(name=name, axes=("sample", "view", "class"), width=vectors.num_classes)
