"""Owns the stage that writes files for other programs: one unit a shard, in the layout that was asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Resources, RunUnit, Timer, Unit
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.manifest import ManifestReader
from ...storage_schemas.receipt import Receipt
from ..corpora.shards import ShardSet
from .export import ExportShard, Layout
from .origin import Origin
from .source import Source, SourceReader, shard_units

#: What the files are, for people and programs that find them.
DESCRIPTION = "description.json"


@dataclass(frozen=True, kw_only=True)
class ExportStage:
    """Shard *i* of a store becomes one or a few files.

    Attributes:
        out: folder for them.
        source: what is read.
        origin: what the source is of.
        layout: what is written.
        shards: for paths and labels; None where they are not at hand.
        description: of the files, written beside them.
        files: that describe the others, by name.
        notes: lines that a person should see before it starts.
    """

    out: Location
    source: Source
    origin: Origin
    layout: Layout
    shards: ShardSet | None
    description: Json
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()

    name = "recode"

    @property
    def resources(self) -> Resources:
        return Resources(units_at_once=2)

    @property
    def fingerprint(self) -> Fingerprint:
        fields = {
            "version": 1,
            "files": self.layout.to_json(),
            "recoded": self.origin.to_json(),
            "targets": list(self.source.targets),
            "paths": self.shards is not None,
        }
        return Fingerprint(fields=fields)

    def plan(self) -> Iterator[Unit]:
        yield from shard_units(self.source.spec)

    def create(self) -> None:
        """Write what describes the files. The driver's work, before any worker starts."""
        text = json.dumps(self.description, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
        for name, data in {DESCRIPTION: text.encode() + b"\n", **self.files}.items():
            (self.out / name).write_bytes(data)

    def open(self) -> RunUnit:
        """
        Raises:
            DamagedError: the manifest is damaged.
        """
        manifest = None
        if self.shards is not None:
            manifest = self.shards.manifest()
        return _Writing(self, self.source.open(), manifest)


@dataclass(frozen=True)
class _Writing:
    """Writes one shard after another."""

    stage: ExportStage
    reader: SourceReader
    manifest: ManifestReader | None
    reading: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        stage, number = self.stage, unit.inputs["shard"]
        rows = stage.source.spec.rows(number)
        with timer("read"):
            shard = self.reader.shard(number)
            with self.reading:  # one file, which is read at one place at a time
                entries = None if self.manifest is None else self.manifest.shard(number)
        if entries is not None and [entry.key for entry in entries] != shard.keys:
            raise DamagedError(
                "the manifest's keys are not those of the store",
                code="keys-differ",
                where=f"{stage.source.store}, shard {number}",
                hint="pass the shards that the store was made from (--shards)",
            )
        taken = ExportShard(shard=shard, first_row=rows.start, entries=entries, views=stage.source.views)
        with timer("write"):
            names = stage.layout.write(taken, stage.out) if len(taken) else []
            outputs = record_outputs(stage.out, names)
        timer.advance(unit.rows)
        digest = hashlib.blake2b("".join(output.sha256 for output in outputs).encode(), digest_size=16)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=shard.invalid,
            digest=digest.hexdigest(),
            fingerprint=stage.fingerprint.digest,
        )
