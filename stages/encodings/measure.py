"""Owns what an encoding costs: bytes a view on disk, and how far the decoded values are from those in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.encodings import Encoding, Target
from ...storage_schemas.encodings.sampled import Sampled
from ...storage_schemas.encodings.spelling import EMBEDDING, LOGITS
from ...storage_schemas.fingerprint import Json
from ...storage_schemas.target_store import stored_bytes

if TYPE_CHECKING:
    from ...storage_schemas.encodings import Floats

#: Temperatures at which divergences are measured.
TEMPERATURES = (1, 2, 4)

#: Rows at a time, of classes by the thousand.
_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of one number a view."""

    mean: float
    p99: float
    max: float

    @staticmethod
    def of(numbers: NDArray[np.float64]) -> Summary:
        return Summary(mean=float(numbers.mean()), p99=float(np.quantile(numbers, 0.99)), max=float(numbers.max()))

    def to_json(self) -> Json:
        """To three digits: more are not the encoding's, but the sample's."""
        return {name: float(f"{value:.3g}") for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one encoding of one target costs.

    Attributes:
        encoding: as `Encoding.to_json`.
        views: that were measured.
        bytes_per_view: on disk, with all codecs.
        table_bytes: of what lies in the store once for all rows.
        kl: divergence (nats) KL(fp32 ‖ decoded), by temperature; None where the target gives no logits. Of draws, which have no
            probability for most classes, it is KL(decoded ‖ fp32) at T = 1 alone.
        distance: 1 - cosine between decoded values and those in fp32; of logits without their mean over the classes. None for draws.
    """

    encoding: Json
    views: int
    bytes_per_view: float
    table_bytes: int = 0
    kl: Mapping[int, Summary] | None = None
    distance: Summary | None = None

    def to_json(self) -> Json:
        facts: dict[str, Json] = {"views": self.views, "bytes_per_view": float(f"{self.bytes_per_view:.4g}")}
        if self.table_bytes:
            facts["table_bytes"] = self.table_bytes
        if self.kl is not None:
            facts["kl"] = {str(temperature): summary.to_json() for temperature, summary in self.kl.items()}
        if self.distance is not None:
            facts["cosine_distance"] = self.distance.to_json()
        return facts


def measure(
    encoding: Encoding,
    target: Target,
    values: Floats,
    *,
    keys: Sequence[str],
    vectors: ClassVectors | None = None,
) -> Measured:
    """What an encoding costs on some rows.

    Args:
        values: of the target, fp32 (row, view, …), finite; at best rows that it was not fitted to.
        keys: of the rows' samples.
        vectors: form logits from embeddings; without them, embeddings have no divergence.
    """
    arrays = encoding.encode(target, values, keys=keys, first_view=0)
    num_rows, num_views = values.shape[:2]
    flat = values.reshape(num_rows * num_views, *values.shape[2:])
    decoded = np.empty_like(flat).reshape(values.shape)
    for view in range(num_views):
        decoded[:, view] = encoding.decode(target, {name: array[:, view] for name, array in arrays.items()})
    decoded = decoded.reshape(flat.shape)
    logits, again = _logits(target, flat, vectors), _logits(target, decoded, vectors)
    kl: dict[int, Summary] | None = None
    if logits is not None and again is not None:
        drawn = isinstance(encoding, Sampled)
        by_t = {
            t: divergence(*((again, logits) if drawn else (logits, again)), t)
            for t in ((1,) if drawn else TEMPERATURES)
        }
        kl = {t: Summary.of(divergences) for t, divergences in by_t.items()}
    return Measured(
        encoding=encoding.to_json(),
        views=len(flat),
        bytes_per_view=stored_bytes(encoding, target, arrays) / len(flat),
        table_bytes=0 if encoding.table is None else encoding.table.nbytes,
        kl=kl,
        distance=None
        if isinstance(encoding, Sampled)
        else Summary.of(_distances(flat, decoded, centered=target.name == LOGITS)),
    )


def divergence(p_logits_NC: NDArray[Any], q_logits_NC: NDArray[Any], temperature: float = 1) -> NDArray[np.float64]:
    """KL(p ‖ q) of two rows of logits each, in nats, fp64 (row,). Where p is 0 it costs nothing."""
    found = np.empty(len(p_logits_NC))
    for first in range(0, len(found), _ROWS):
        here = slice(first, first + _ROWS)
        p, q = _log_softmax(p_logits_NC[here] / temperature), _log_softmax(q_logits_NC[here] / temperature)
        found[here] = (np.exp(p) * (p - q)).sum(axis=1)
    return np.maximum(found, 0)


def _log_softmax(logits_NC: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted  # type: ignore[no-any-return]


def _logits(target: Target, values: Floats, vectors: ClassVectors | None) -> Floats | None:
    if target.name == LOGITS:
        return values
    fits = target.name == EMBEDDING and vectors is not None and vectors.embed_dim == target.shape[0]
    return vectors.logits(values) if fits and vectors is not None else None


def _distances(values: Floats, decoded: Floats, *, centered: bool) -> NDArray[np.float64]:
    one, other = (array.reshape(len(array), -1).astype(np.float64) for array in (values, decoded))
    if centered:
        one, other = (array - array.mean(axis=1, keepdims=True) for array in (one, other))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return 1 - (one * other).sum(axis=1) / np.maximum(norms, 1e-30)  # type: ignore[no-any-return]
