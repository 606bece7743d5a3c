"""Owns the costs of a data set in the protocol: what its finished stages took."""

from __future__ import annotations

from collections.abc import Sequence

from ...pipeline.ledger import Ledger
from ...pipeline.storage import Location
from ...storage_schemas.fingerprint import Json
from ..measures.costs import Costs
from ..measures.training_time import training_time
from .folders import SOURCE, DatasetFolders
from .request import Request
from .settings import CROSS


def costs_of(request: Request, dataset: str, bundles: Sequence[Location]) -> Costs | None:
    """What the finished stages of a data set took, and the training of these students; None where it is not recorded."""
    targets = DatasetFolders(root=request.out, dataset=dataset).targets
    times = [time for bundle in bundles if (time := training_time(bundle, "distill")) is not None]
    cache = Ledger(targets, "cache")
    cached = cache.plan()
    if not times or cached is None:
        return None
    trained = Ledger(bundles[0], "distill").plan()
    assert trained is not None  # it has a training time
    samples = sum(receipt.rows - len(receipt.invalid_rows) for receipt in cache.receipts())
    return Costs(
        device=_device(cached.fingerprint.fields),
        pretrain=None if request.protocol == CROSS else pretrain_seconds(request, dataset),
        text=Ledger(targets, "vectors").timings().get("forward", 0.0),
        images=cache.timings().get("forward", 0.0),
        samples=samples,
        views=int(cached.fingerprint.fields["views"]["count"]),
        students=tuple(time.seconds for time in times),
        student_device=_device(trained.fingerprint.fields),
        steps=times[0].steps,
        epochs=int(trained.fingerprint.fields["settings"]["epochs"]),
    )


def pretrain_seconds(request: Request, dataset: str) -> float | None:
    """Seconds of learning the prompts; None where they were there before. In the cross-dataset protocol, for all."""
    if request.prompts is not None:
        return None
    folder = DatasetFolders(root=request.out, dataset=SOURCE if request.protocol == CROSS else dataset).prompts
    time = training_time(folder, "pretrain")
    if time is None:
        return None
    return time.seconds + Ledger(folder, "pretrain").timings().get("text", 0.0)


def _device(fields: Json) -> str:
    return str(fields["compute"]["device"])
