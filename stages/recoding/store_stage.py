"""Owns the stage that makes another store: what the new one says of itself, and one unit a shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...pipeline.storage import Location
from ...pipeline.types import Resources, RunUnit, Unit
from ...storage_schemas.encodings import ENCODINGS, Encoding
from ...storage_schemas.fingerprint import Fingerprint, Json
from ...storage_schemas.params_form import DERIVED
from ...storage_schemas.store_description import StoreDescription, StoreSpec, TargetSpec
from ...storage_schemas.target_store import create_arrays, open_root
from ..encodings.request import DEFAULT
from ..pairs.store import read_description, read_generations
from .class_list import ClassList, copy_classes
from .lost import lost_in
from .new_encodings import NewEncodings
from .source import LOGITS, Source, shard_units
from .taking import Taken


@dataclass(frozen=True, kw_only=True)
class StoreStage:
    """Shard *i* of one store becomes shard *i* of another.

    Attributes:
        out: the new store.
        source: what is read.
        description: of the new store.
        classes: the class vectors that it gets; None for none.
        notes: lines that a person should see before it starts.
    """

    out: Location
    source: Source
    description: StoreDescription
    classes: ClassList | None
    notes: tuple[str, ...] = ()

    name = "recode"
    ledger = "cache"  # what it makes is a store as `cache` makes it

    @property
    def resources(self) -> Resources:
        return Resources(units_at_once=2)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(fields=self.description.fingerprint)

    def plan(self) -> Iterator[Unit]:
        yield from shard_units(self.source.spec)

    def create(self) -> None:
        """Make the store's arrays. The driver's work, before any worker starts; never once the ledger has a plan."""
        root = open_root(self.out.zarr_store(), mode="a", where=self.out)
        if self.classes is not None:
            copy_classes(self.classes, self.out)
        create_arrays(root, self.description)

    def open(self) -> RunUnit:
        """
        Raises:
            MismatchError: the arrays are another run's.
        """
        from .store_worker import StoreWorker

        root = open_root(self.out.zarr_store(), mode="a", where=self.out)
        read_description(root, self.out).check_planned(self.fingerprint, where=self.out)
        return StoreWorker(
            reader=self.source.open(),
            out=self.out,
            root=root,
            spec=self.description.spec,
            fingerprint=self.fingerprint.digest,
        )


def describe(taken: Taken, encodings: NewEncodings, view_params: str | None = None) -> StoreDescription:
    """What the new store says of itself: all that the old one says, but for what is another now.

    Args:
        view_params: what becomes of the parameters of views, one of `VIEW_PARAMS`; None for what the old one does.
    """
    old, source = taken.description, taken.source
    spec = replace(
        old.spec,
        num_views=len(source.views),
        encoding=encodings.whole or ENCODINGS[DEFAULT],
    )
    own = encodings.whole is None
    targets = tuple(_target(old.spec, spec, source, name, encodings.of[name], own=own) for name in source.targets)
    views = taken.facts.views.some(source.views)
    derives = (view_params or old.spec.view_params) == DERIVED
    spec = replace(spec, targets=targets, drawing=views.drawing if derives else None)
    fields: dict[str, Json] = {
        **old.fingerprint,
        "schema_version": spec.version,
        "views": views.to_json(),
        "targets": [target.name for target in spec.targets],
        "encoding": encodings.to_json(),
        "recoded": taken.origin.to_json(),
    }
    fields.pop("growth", None)  # the digest of the store that was read stands for it
    fields.pop("chunk_views", None)
    fields.pop("view_params", None)
    if derives:
        fields["view_params"] = DERIVED
    if spec.views_together < spec.num_views:
        fields["chunk_views"] = spec.views_together
    if LOGITS not in source.targets:
        fields.pop("class_vectors", None)
    elif source.vectors is not None:
        fields["class_vectors"] = source.vectors.digest
    return replace(
        old,
        spec=spec,
        fingerprint=fields,
        views=views.to_json(),
        growth=None,
        measured=dict(encodings.measured) or None,
        recoded={
            "from": source.store.address,
            **taken.origin.to_json(),
            "lost": lost_in(read_generations(source.store).chain(source.generation), source, encodings.of),
        },
    )


def _target(old: StoreSpec, new: StoreSpec, source: Source, name: str, encoding: Encoding, *, own: bool) -> TargetSpec:
    """A target of the new store; one that stays as it is keeps its chunks."""
    before = next((target for target in old.targets if target.name == name), None)
    shape, same_views = source.width_of(name), source.views == tuple(range(old.num_views))
    if before is not None and same_views and before.shape == shape and old.encoding_of(before) == encoding:
        return replace(before, encoding=encoding if own else None)
    return TargetSpec.of(
        name,
        ("class",) if before is None else before.axes[2:],
        shape,
        shard_size=old.shard_size,
        num_rows=old.num_rows,
        num_views=new.views_together,
        encoding=encoding,
        own=own,
    )
