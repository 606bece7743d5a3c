"""Owns what one worker of `recode` does where the output is a store: one shard after another, as chosen, encoded anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...pipeline.ledger import record_outputs
from ...pipeline.storage import Location
from ...pipeline.types import Timer, Unit
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.receipt import Receipt
from ...storage_schemas.store_description import StoreSpec
from ...storage_schemas.target_store import BlockWriter
from .source import SourceReader


@dataclass(frozen=True, kw_only=True)
class StoreWorker:
    """Writes shards of a store.

    Attributes:
        reader: of the store that is recoded.
        out, root: the new store.
        spec: of its rows.
        fingerprint: digest of the stage's.
    """

    reader: SourceReader
    out: Location
    root: Any
    spec: StoreSpec
    fingerprint: str

    def __call__(self, unit: Unit, timer: Timer) -> Receipt:
        number = unit.inputs["shard"]
        with timer("read"):
            shard = self.reader.shard(number)
        writer = BlockWriter(self.root, self.spec, number, shard.keys)
        for part in shard.parts():
            places = [int(place) for place in shard.taken if part.start <= place < part.stop]
            if places:
                with timer("read"):
                    targets = shard.targets(part)
                with timer("write"):
                    for place in places:
                        row = {name: values[place - part.start] for name, values in targets.items()}
                        writer.put(place, shard.params[place], row)
                    writer.settle(part.stop)
            timer.advance(part.stop - part.start)
        self._refuse_nonfinite(writer)
        with timer("write"):
            paths, digest = writer.finish()
            outputs = record_outputs(self.out, paths)
        return Receipt(
            key=unit.key,
            outputs=outputs,
            rows=unit.rows,
            invalid_rows=shard.invalid,
            digest=digest,
            fingerprint=self.fingerprint,
        )

    def _refuse_nonfinite(self, writer: BlockWriter) -> None:
        for name, bad in writer.nonfinite.items():
            raise DamagedError(
                "the store has NaN or infinity in usable rows",
                code="store-not-finite",
                where=f"{self.reader.source.store}, {name}, shard {writer.shard}",
                found=f"{bad} such rows",
                hint=f"see `teachonce inspect {self.reader.source.store}`",
            )
