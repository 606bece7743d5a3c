"""Owns the full check of a manifest: its keys are those of its paths, in order, and all of it is what `corpus.json` names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from operator import lt

from ...storage_schemas.errors import MismatchError, TeachonceError
from ...storage_schemas.manifest import Corpus, add_rows_to_digest
from ...storage_schemas.samples import sample_key
from ..corpora.corpus import corpus_id
from ..corpora.shards import ShardSet


def manifest_errors(shards: ShardSet) -> Iterator[TeachonceError]:
    """What is wrong with the manifest of some shards. Reads it whole, a shard's rows at a time.

    Whatever the state of the corpus that these are of: there is one manifest, that of the present state.
    """
    shards = ShardSet(shards.location)
    corpus, manifest = shards.corpus, shards.manifest()
    where = f"{shards.location}/manifest.parquet"
    hint = "restore corpus.json and manifest.parquet from a copy"
    if manifest.num_shards != corpus.num_shards:
        yield MismatchError(
            "the manifest is of another corpus than corpus.json",
            code="manifest-other-corpus",
            where=f"{where}: number of shards",
            expected=corpus.num_shards,
            found=manifest.num_shards,
            hint=hint,
        )
        return
    digest, last, row = hashlib.blake2b(digest_size=16), "", 0
    begins = {state.num_shards for state in corpus.states}
    for shard in range(manifest.num_shards):
        keys, paths, *others = manifest.columns(shard, ["key", "path", "size", "digest", "label"])
        add_rows_to_digest(digest, zip(paths, *others, strict=True))
        last = "" if shard in begins else last  # what came later is ordered among itself
        wrong = _first_wrong(corpus, keys, paths, last)
        if wrong is not None:
            at, expected = wrong
            yield MismatchError(
                "the manifest's keys are not those of its rows",
                code="manifest-keys-differ",
                where=f"{where}, row {row + at}, {paths[at]}",
                expected=expected,
                found=keys[at],
                hint=hint,
            )
            return
        last, row = keys[-1] if keys else last, row + len(keys)
    found = corpus_id(corpus.name, corpus.layout, digest.hexdigest(), corpus.order, corpus.sample_kind)
    if (row, found) != (corpus.num_samples, corpus.corpus_id):
        yield MismatchError(
            "the manifest is of another corpus than corpus.json",
            code="manifest-other-corpus",
            where=where,
            expected=f"{corpus.num_samples} rows of corpus {corpus.corpus_id}",
            found=f"{row} rows of corpus {found}",
            hint=hint,
        )


def _first_wrong(corpus: Corpus, keys: Sequence[str], paths: Sequence[str], last: str) -> tuple[int, str] | None:
    """The place of the first wrong key, and what it should be; None where all are right. `last` is the key before them."""
    expected = [sample_key(corpus.name, path) for path in paths]
    is_sorted = corpus.order != "hash" or all(map(lt, [last, *keys], keys))
    if is_sorted and expected == keys:
        return None
    before = [last, *keys]
    for at, key in enumerate(keys):
        if key != expected[at]:
            return at, expected[at]
        if corpus.order == "hash" and key <= before[at]:
            return at, f"more than {before[at]}"
    return None
