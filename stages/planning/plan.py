"""Owns a plan: every figure of it, each with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...storage_schemas.fingerprint import Json
from ...storage_schemas.store_description import StoreSpec
from ..measures.costs import Costs
from .corpus import PlannedCorpus
from .figures import MEANINGS, Figure
from .money import Money
from .planned_encodings import EncodingCost
from .schedule import Schedule
from .shard_sizes import ShardSizes
from .store_sizes import StoreSizes
from .training import Feed


@dataclass(frozen=True, kw_only=True)
class Left:
    """What of a store that was begun is left to do.

    Attributes:
        shards, rows: without a receipt.
        bytes: of the store, to be written.
    """

    shards: int
    rows: int
    bytes: Figure


@dataclass(frozen=True, kw_only=True)
class StorePart:
    """What the store takes beside its arrays.

    Attributes:
        vectors: class vectors, with what `vectors` keeps of its run: files, and bytes.
        ledger: plan and timings of `cache`: files, and bytes. Receipts are in the sizes.
    """

    sizes: StoreSizes
    vectors: tuple[int, Figure]
    ledger: tuple[int, int]

    @property
    def objects(self) -> int:
        sizes = self.sizes
        return sizes.chunk_objects + sizes.metadata_objects + sizes.num_shards + self.vectors[0] + self.ledger[0]

    @property
    def bytes(self) -> Figure:
        sizes, (_, vectors) = self.sizes, self.vectors
        rest = sizes.metadata_bytes + sizes.receipt_bytes + self.ledger[1]
        return Figure.of(sizes.chunk_bytes.value + vectors.value + rest, sizes.chunk_bytes, vectors)


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """What a plan tells.

    Attributes:
        names: of what it is a plan: `teacher`, `corpus`, `store`.
        encoding: what is planned, as `--encoding` takes it.
        encodings: what the arrays would take in it, and in others for the whole store.
        budgets: what each of the others may cost in KL.
        target_costs: what encodings of a target cost on the sample, by target and spelling.
        notes: why a budget chose what it did.
        timed: how the rate was found, in words.
        workers: that the hours are of.
        needed: workers for the deadline.
    """

    names: Mapping[str, str]
    corpus: PlannedCorpus
    spec: StoreSpec
    shards: ShardSizes | None
    store: StorePart
    encoding: str
    encodings: Mapping[str, StoreSizes]
    budgets: Mapping[str, float]
    target_costs: Mapping[str, Mapping[str, EncodingCost]]
    notes: tuple[str, ...] = ()
    bundle: Figure | None = None
    schedule: Schedule | None = None
    timed: str = ""
    workers: int = 1
    deadline: float | None = None
    needed: int | None = None
    left: Left | None = None
    feed: Feed | None = None
    costs: Costs | None = None
    students: int = 1
    money: Money | None = None

    @property
    def total_bytes(self) -> Figure:
        parts = [
            self.store.bytes,
            *([self.shards.bytes] if self.shards else []),
            *([self.bundle] if self.bundle else []),
        ]
        return Figure.of(sum(part.value for part in parts), *parts)

    def to_json(self) -> Json:
        fields: dict[str, Json] = {
            "of": dict(self.names),
            "images": {
                "count": self.corpus.num_samples.to_json(),
                "image_bytes": _json(self.corpus.image_bytes),
                "unusable": self.corpus.unusable,
                "shards": self.spec.num_shards,
                "shard_size": self.corpus.shard_size,
            },
            "views": self.spec.num_views,
            "shards": None
            if self.shards is None
            else _sizes(self.shards.objects, self.shards.bytes, self.shards.parts),
            "store": self._store(),
            "bundle_bytes": _json(self.bundle),
            "total_bytes": self.total_bytes.to_json(),
            "encoding": self.encoding,
            "encodings": {name: self._encoding(name, sizes) for name, sizes in self.encodings.items()},
            "target_encodings": {
                target: {text: cost.to_json() for text, cost in costs.items()}
                for target, costs in self.target_costs.items()
            },
            "notes": list(self.notes) or None,
            "left": None
            if self.left is None
            else {"shards": self.left.shards, "images": self.left.rows, "bytes": self.left.bytes.to_json()},
            "teacher": self._teacher(),
            "training": self._training(),
            "break_even": None if self.costs is None else self._break_even(self.costs),
            "cost": None
            if self.money is None or self.money.is_empty
            else {name: _json(part) for name, part in self.money.__dict__.items()},
            "from": {basis.word: meaning for basis, meaning in MEANINGS.items()},
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _store(self) -> Json:
        store, sizes = self.store, self.store.sizes
        return {
            **_sizes(store.objects, store.bytes, {}),
            "arrays": {
                array.name: {
                    "shape": list(array.shape),
                    "chunks": list(array.chunks),
                    "dtype": array.dtype,
                    "codecs": list(array.codecs),
                    "objects": array.objects,
                    "bytes": array.bytes.to_json(),
                    "bytes_a_row": array.row_bytes,
                }
                for array in sizes.all_arrays
            },
            "class_vectors": {"objects": store.vectors[0], "bytes": store.vectors[1].to_json()},
            "metadata_bytes": sizes.metadata_bytes,
            "receipt_bytes": sizes.receipt_bytes,
            "ledger_bytes": store.ledger[1],
        }

    def _encoding(self, name: str, sizes: StoreSizes) -> Json:
        return {
            "bytes": sizes.chunk_bytes.to_json(),
            "bytes_a_view": sizes.chunk_bytes.value / self.corpus.rows / self.spec.num_views,
            "objects": sizes.chunk_objects,
            "kl_budget": self.budgets.get(name),
            "chosen": name == self.encoding,
        }

    def _teacher(self) -> Json | None:
        if self.schedule is None:
            return None
        schedule, took = self.schedule, self.schedule.seconds(self.workers)
        return {
            "views_per_second_a_worker": schedule.rate.to_json() | {"how": self.timed},
            "start_seconds": schedule.start.to_json(),
            "work_hours": Figure.of(schedule.work_seconds.value / 3600, schedule.work_seconds).to_json(),
            "workers": self.workers,
            "hours": Figure.of(took.value / 3600, took).to_json(),
            "deadline_hours": self.deadline,
            "workers_for_deadline": self.needed,
        }

    def _training(self) -> Json | None:
        if self.feed is None:
            return None
        return {
            "images_per_second": self.feed.images_per_second.to_json(),
            "bytes_per_second": self.feed.bytes_per_second.to_json(),
            "image_bytes": _json(self.feed.image_bytes),
            "target_bytes": self.feed.target_bytes.to_json(),
            "pairs_per_second_a_core": _json(self.feed.pairs_per_core),
            "loader_cores": _json(self.feed.cores),
        }

    def _break_even(self, costs: Costs) -> Json:
        return {
            "epochs": costs.epochs,
            "students": self.students,
            "teacher_once_hours": costs.once / 3600,
            "teacher_online_hours_a_student": costs.online / 3600,
            "break_even_students": costs.break_even,
            "student_hours": costs.students[0] / 3600 if costs.students else None,
            "speed_up": costs.speed_up if costs.students else None,
        }


def _json(figure: Figure | None) -> Json | None:
    return None if figure is None else figure.to_json()


def _sizes(objects: int, size: Figure, parts: Mapping[str, Figure]) -> dict[str, Json]:
    fields: dict[str, Json] = {"objects": objects, "bytes": size.to_json()}
    return fields | ({"parts": {name: part.to_json() for name, part in parts.items()}} if parts else {})
