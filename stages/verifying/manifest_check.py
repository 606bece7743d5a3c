"""Owns the full check of a manifest: its keys are those of its paths, in order, and all of it is what `corpus.json` names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ...storage_schemas.errors import MismatchError, TeachonceError
from ...storage_schemas.manifest import Corpus, Entry, ManifestReader, add_to_digest
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
    for shard, entries in enumerate(_by_shard(manifest)):
        add_to_digest(digest, entries)
        last = "" if shard in begins else last  # what came later is ordered among itself
        for entry in entries:
            wrong = _wrong_key(corpus, entry, last)
            if wrong:
                yield MismatchError(
                    "the manifest's keys are not those of its rows",
                    code="manifest-keys-differ",
                    where=f"{where}, row {row}, {entry.path}",
                    expected=wrong,
                    found=entry.key,
                    hint=hint,
                )
                return
            last, row = entry.key, row + 1
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


def _by_shard(manifest: ManifestReader) -> Iterator[list[Entry]]:
    for shard in range(manifest.num_shards):
        yield manifest.shard(shard)


def _wrong_key(corpus: Corpus, entry: Entry, last: str) -> str:
    """What the key should be; '' where it is right."""
    key = sample_key(corpus.name, entry.path)
    if key != entry.key:
        return key
    return f"more than {last}" if corpus.order == "hash" and key <= last else ""
