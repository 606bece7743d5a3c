"""Owns the encodings that a plan is of: those that `cache` would take, fitted to the rows of the sample, and what others would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.encodings import Encoding
from ...storage_schemas.encodings.spelling import EMBEDDING, KNOWN, LOGITS, MAPS, is_map, one
from ...storage_schemas.errors import InputError
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.store_description import StoreSpec, TargetSpec
from ...storage_schemas.target_store import TargetBlock
from ..encodings.budget import Budget, Choice, Rows, choices, fit
from ..encodings.measure import Measured, Summary, measure
from ..encodings.request import DEFAULT, EncodingRequest
from ..settings.cache import CacheSettings
from .figures import Basis, Figure

#: What a plan tells of a target beside what it is asked for.
_OTHERS = {
    LOGITS: ("fp16", "int8", "pca:0.7", "adaptive:0.95", "sampled:50"),
    EMBEDDING: ("fp16", "int8"),
    MAPS: ("fp16", "int8-channel", "pca:0.15", "pca:0.3"),
}


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    """What an encoding of a target costs on the sample.

    Attributes:
        bytes_per_view: on disk.
        kl: nats lost at T = 1, in the mean; None where nothing gives logits.
        cosine_distance: 1 - cosine, in the mean, of targets other than logits.
    """

    bytes_per_view: Figure
    kl: Figure | None
    cosine_distance: Figure | None

    @staticmethod
    def of(measured: Measured, basis: Basis) -> EncodingCost:
        def mean(summary: Summary | None) -> Figure | None:
            return None if summary is None else Figure(value=summary.mean, basis=basis)

        return EncodingCost(
            bytes_per_view=Figure(value=measured.bytes_per_view, basis=basis),
            kl=mean(None if measured.kl is None else measured.kl[1]),
            cosine_distance=mean(measured.distance),
        )

    def to_json(self) -> Json:
        return {name: figure.to_json() for name, figure in vars(self).items() if figure is not None}


@dataclass(frozen=True, kw_only=True)
class PlannedEncodings:
    """What is told of encodings.

    Attributes:
        label: of those that are planned, as `--encoding` takes them.
        costs: by target and spelling: of those that are planned, and of others.
        notes: why a budget chose what it did.
    """

    label: str = DEFAULT
    costs: Mapping[str, Mapping[str, EncodingCost]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SampledTargets:
    """The targets of a sample.

    Attributes:
        block: fp32.
        basis: where the values of targets come from; of others they are the teacher's.
        vectors: form logits of embeddings, where there are any.
    """

    block: TargetBlock
    basis: Mapping[str, Basis]
    vectors: ClassVectors | None

    def rows(self, target: TargetSpec) -> Rows:
        """The rows with values."""
        block = self.block
        return Rows(
            target=TargetSpec(name=target.name, axes=target.axes, shape=target.shape),
            values=np.asarray(block.targets[target.name])[block.valid],
            keys=[key for key, valid in zip(block.keys, block.valid, strict=True) if valid],
            vectors=self.vectors,
        )

    def is_drawn(self, target: TargetSpec) -> bool:
        """Whether no teacher gave the values."""
        return self.basis.get(target.name) == Basis.TABLE


def choose_own(spec: StoreSpec, sample: SampledTargets, settings: CacheSettings) -> tuple[str, dict[str, Choice]]:
    """(encoding of the whole store, encodings of targets that have their own), as `cache` would take them.

    Raises:
        InputError: not an encoding; none keeps the budget; one that is fitted to a teacher's outputs, where none runs.
    """
    request = _request(spec, settings)
    if request.of_all is not None:
        return request.of_all.name, {}
    for target in spec.targets:
        spelled = request.spelled[target.name]
        if sample.is_drawn(target) and (spelled is None or spelled.known.fitted):
            raise InputError(
                "what this encoding takes depends on the teacher's outputs, and no teacher runs",
                code="encoding-not-planned",
                where="--max-kl, --max-bytes" if spelled is None else f"--encoding {target.name}={spelled.text}",
                expected="a teacher with its class vectors; or fp32, fp16, int8, adaptive:P, sampled:N",
                found="drawn numbers in their place",
                hint="add --teacher and --classes, or choose another encoding",
            )
    rows_of = [sample.rows(target) for target in spec.targets]
    return DEFAULT, choices(rows_of, request.spelled, request.budget)


def _request(spec: StoreSpec, settings: CacheSettings) -> EncodingRequest:
    return EncodingRequest.of(
        [target.name for target in spec.targets],
        settings.encoding,
        budget=Budget(max_kl=settings.max_kl, max_bytes=settings.max_bytes),
        fit_views=settings.fit_views,
    )


def rows_to_fit(spec: StoreSpec, settings: CacheSettings) -> int:
    """Rows that encodings are fitted to and chosen by, as `cache` has them: few of large maps.

    Raises:
        InputError: not an encoding.
    """
    return _request(spec, settings).rows(spec.targets, spec.num_views)


def views_to_fit(settings: CacheSettings) -> int:
    """Views that encodings are fitted to and chosen by, before their size is known; 0 where no encoding depends on any."""
    words = (settings.encoding or "").split(",")
    names = {word.rpartition("=")[2].partition(":")[0] for word in words}
    has_budget = settings.max_kl is not None or settings.max_bytes is not None
    return settings.fit_views if has_budget or any(KNOWN[name].fitted for name in names & KNOWN.keys()) else 0


def tell_encodings(spec: StoreSpec, sample: SampledTargets, notes: tuple[str, ...] = ()) -> PlannedEncodings:
    """What the encodings of a store cost, and others in their place."""
    costs: dict[str, dict[str, EncodingCost]] = {}
    for target in spec.targets:
        rows, encoding = sample.rows(target), spec.encoding_of(target)
        basis = Basis.TABLE if sample.is_drawn(target) else Basis.MEASURED
        found = {encoding.text: _measured(encoding, rows)}
        for other in _OTHERS.get(MAPS if is_map(target.name) else target.name, ()):
            if sample.is_drawn(target) and one(other).known.fitted:
                continue
            choice = fit(rows, one(other))
            found.setdefault(choice.encoding.text, choice.measured)
        costs[target.name] = {text: EncodingCost.of(measured, basis) for text, measured in found.items()}
    own = [f"{target.name}={target.encoding.text}" for target in spec.targets if target.encoding is not None]
    return PlannedEncodings(label=",".join(own) or spec.encoding.name, costs=costs, notes=notes)


def _measured(encoding: Encoding, rows: Rows) -> Measured:
    """On rows that nothing is fitted to, as `fit` does."""
    _, to_measure = rows.split()
    return measure(encoding, rows.target, to_measure.values, keys=to_measure.keys, vectors=rows.vectors)
