"""How well names that were given without labels fit those of a corpus: `python benchmarks/s3a.py VOCABULARY STORE STORE …`.

VOCABULARY is the store whose class vectors the names are; each STORE has centre-view embeddings, of the teacher (the same store) or of a
student (`cache --teacher bundle:…`). The corpus must have labels, and its shards be where they were. Two figures: images that lie right
when each group gets one label (Hungarian method); and, of images whose label is a name of the vocabulary, those that got that name.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from teachonce.pipeline.storage import Location
from teachonce.stages.inputs.class_match import ClassMatcher
from teachonce.stages.measures.stored import Stored
from teachonce.stages.naming.accuracy import LabelNumbers, matched_accuracy
from teachonce.stages.naming.clusters import cluster
from teachonce.stages.naming.embeddings import CentreEmbeddings
from teachonce.stages.naming.votes import best_names, rounds
from teachonce.stages.pairs.store import open_store, read_vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary")
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--classes", type=int, required=True)
    given = parser.parse_args()
    source = Location.of(given.vocabulary)
    vectors = read_vectors(open_store(source), source)
    matcher = ClassMatcher(vectors.names)
    print("| store | names | lie right | got their own name |\n| --- | --- | ---: | ---: |")
    for store in given.stores:
        embeddings, stored = CentreEmbeddings.of(Location.of(store)), Stored.open(store)
        true: list[str | None] = []
        for shard in range(stored.rows.num_shards):
            valid_N = stored.keys_and_valid(shard)[1]
            labels = stored.labels(shard) or [None] * len(valid_N)
            true += [label for label, valid in zip(labels, valid_N.tolist(), strict=True) if valid]
        true_N = LabelNumbers().of(true)
        found = [None if label is None else matcher.match(label).class_id for label in true]
        ids_N = np.array([-1 if one is None else one for one in found])

        def line(
            what: str,
            names_N: NDArray[np.int64],
            named: bool = True,
            store: str = store,
            true_N: NDArray[np.int32] = true_N,
            ids_N: NDArray[np.int64] = ids_N,
        ) -> None:
            right, known = matched_accuracy(names_N, true_N)
            own = f"{(names_N == ids_N)[ids_N >= 0].mean():.1%} of {(ids_N >= 0).sum()}" if named else ""
            print(f"| {store} | {what} | {right / known:.1%} | {own} |", flush=True)

        line("best of all", best_names(embeddings, vectors))
        partition_N = cluster(embeddings, given.classes, seed=0)
        line("none: k-means alone", partition_N, named=False)
        line("of its clusters, three rounds", rounds(embeddings, vectors, partition_N).labels_N)


if __name__ == "__main__":
    main()
