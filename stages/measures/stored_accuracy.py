"""Owns the accuracy of models on labelled images, read from stores that `cache` made of their centre views."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location
from ...storage_schemas.class_vectors import ClassVectors
from ...storage_schemas.errors import IncompleteError, MismatchError
from ..corpora.shards import ShardSet
from ..inputs.class_match import ClassMatcher, base_classes
from .evaluation import Evaluation
from .metrics import Accuracy, Agreement
from .stored import Stored

#: The images are cached at their centre view alone.
_VIEW = 0


def stored_accuracy(
    shards: Location, model: Location, *, base: str | None = None, teacher: Location | None = None
) -> Evaluation:
    """Measure a model by its outputs in a store, as `evaluate` measures a student.

    Args:
        shards: labelled images.
        model: finished store of their centre views; its class vectors are the model's own.
        base: base classes, see `class_match.base_classes`; None leaves that to the class vectors.
        teacher: the teacher's store of the same views, to measure agreement with; None measures none.

    Raises:
        IncompleteError: a store without logits, or one that is not finished.
    """
    vectors, shard_set, logits_NC, valid_N = _stored_logits(model, shards)
    result = Evaluation(
        class_names=vectors.names,
        accuracy=Accuracy(vectors.num_classes, vectors.base_C if base is None else base_classes(base, vectors.names)),
    )
    matcher = ClassMatcher(vectors.names)
    manifest = shard_set.manifest()
    entries = [e for shard in range(shard_set.corpus.num_shards) for e in manifest.shard(shard)]
    result.found = len(entries)
    class_ids = []
    for entry, valid in zip(entries, valid_N.tolist(), strict=True):
        class_id = None
        if entry.label is None:
            result.unlabelled += 1
        else:
            result.labels[entry.label] += 1
            if entry.label not in result.matches:
                result.matches[entry.label] = matcher.match(entry.label)
            class_id = result.matches[entry.label].class_id
        if not valid:
            result.unusable.append((entry.path, "not usable when the store was made"))
        class_ids.append(-1 if class_id is None else class_id)
    labels_N = np.array(class_ids, np.int64)
    counted_N = valid_N & (labels_N >= 0)
    result.accuracy.add(logits_NC[counted_N], labels_N[counted_N])
    if teacher is not None:
        _, teacher_shards, teacher_NC, both_N = _stored_logits(teacher, shards)
        if teacher_shards.corpus.corpus_id != shard_set.corpus.corpus_id:
            raise MismatchError(
                "the two stores are of the same shards at two times",
                code="stores-other-states",
                where=teacher,
                expected=f"corpus {shard_set.corpus.corpus_id} (as in {model})",
                found=teacher_shards.corpus.corpus_id,
                hint="grow the older store",
            )
        both_N &= valid_N
        result.agreement = Agreement()
        result.agreement.add(teacher_NC[both_N], logits_NC[both_N])
    return result


def _stored_logits(
    store: Location, shards: Location
) -> tuple[ClassVectors, ShardSet, NDArray[np.float32], NDArray[np.bool_]]:
    """Class vectors; shards as they were cached; logits (sample, class) of all samples in order; which are valid, bool (sample,)."""
    stored = Stored.open(store, shards)
    if stored.no_logits or stored.vectors is None or stored.shards is None:
        raise IncompleteError("no logits to measure", code="store-without-logits", where=store, found=stored.no_logits)
    stored.receipts.require_complete()
    done = stored.shards_done()
    valid_N = np.concatenate([stored.keys_and_valid(shard)[1] for shard in done])
    logits_NC = np.concatenate([stored.logits(shard, _VIEW) for shard in done])
    return stored.vectors, stored.shards, logits_NC, valid_N
