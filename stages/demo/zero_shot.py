"""Owns what models say of held-out images before any training, read from stores that `cache` made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import IncompleteError
from ..corpora.shards import ShardSet
from ..evaluate import Evaluation
from ..reports.class_match import ClassMatcher, base_classes
from ..reports.metrics import Accuracy, Agreement
from ..reports.stored import Stored

#: Held-out images are cached at their centre view alone.
_VIEW = 0


def zero_shot(shards: Location, model: Location, teacher: Location, base: str) -> Evaluation:
    """Measure a model by its answers in a store, as `evaluate` measures a student.

    Args:
        shards: labelled images.
        model: store of their centre views; its class vectors are the model's own.
        teacher: the teacher's store of the same views.
        base: base classes, see `class_match.base_classes`.

    Raises:
        IncompleteError: a store without logits.
    """
    vectors, logits_NC = _stored_logits(model, shards)
    _, teacher_NC = _stored_logits(teacher, shards)
    result = Evaluation(
        class_names=vectors.names,
        accuracy=Accuracy(vectors.num_classes, base_classes(base, vectors.names)),
        agreement=Agreement(),
    )
    shard_set, matcher = ShardSet.open(shards), ClassMatcher(vectors.names)
    manifest = shard_set.manifest()
    entries = [e for shard in range(shard_set.corpus.num_shards) for e in manifest.shard(shard)]
    for entry in entries:
        assert entry.label is not None  # held-out images lie in class folders
        result.labels[entry.label] += 1
    result.found = len(entries)
    result.matches = {label: matcher.match(label) for label in result.labels}
    labels_N = np.array([result.matches[entry.label].class_id for entry in entries if entry.label], np.int64)
    result.accuracy.add(logits_NC, labels_N)
    assert result.agreement is not None
    result.agreement.add(teacher_NC, logits_NC)
    return result


def _stored_logits(store: Location, shards: Location) -> tuple[ClassVectors, NDArray[np.float32]]:
    """Class vectors, and logits (sample, class) of all rows in order."""
    stored = Stored.open(store, shards)
    if stored.no_logits or stored.vectors is None:
        raise IncompleteError("no logits to measure", where=store, found=stored.no_logits)
    return stored.vectors, np.concatenate([stored.logits(shard, _VIEW) for shard in stored.shards_done()])
