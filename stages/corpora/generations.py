"""Owns the step from one state of a corpus to the next: what is prepared beside it, the one write that counts, and what follows.

Until then the folder is as it was. In order: the next manifest and the next corpus file, which freeze what will be; shards behind
the old ones, or tars in place of old ones under names that end in the generation; `corpus.json`, from which on all of it
counts; then the files with such names replace the old ones. A kill between the last two leaves files that readers look for, and that
the next command puts in place.
"""

from __future__ import annotations

import contextlib

from ...pipeline.contents import LEDGER
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError
from ...storage_schemas.manifest import Corpus, footer_digest
from ...storage_schemas.samples import shard_name
from .manifest_file import CORPUS, MANIFEST, NEXT_MANIFEST, read_corpus

#: The corpus file of a state that is being prepared.
NEXT_CORPUS = "corpus.next.json"

#: Files of a shard, by their endings.
SHARD_FILES = (".tar", ".index.npy")


def generation_of(corpus: Corpus) -> int:
    """The number of a corpus's state, from 1 on."""
    return len(corpus.states)


def pending(out: Location) -> Corpus | None:
    """The state that is being prepared in a folder of shards; what a kill left behind the last one is finished first."""
    location, present = out / NEXT_CORPUS, read_corpus(out)
    if location.exists():
        following = Corpus.from_bytes(location.read_bytes(), where=location)
        if present != following:
            return following
    if location.exists() or _is_manifest_of(present, out / NEXT_MANIFEST):
        _put_in_place(out, present)
    return None


def freeze(out: Location, corpus: Corpus) -> None:
    """Record what the next state will be; its manifest is there."""
    (out / NEXT_CORPUS).write_bytes(corpus.to_bytes())


def commit(out: Location, corpus: Corpus) -> None:
    """Make the prepared state the present one: all its shards are written, with receipts."""
    (out / CORPUS).write_bytes(corpus.to_bytes())
    _put_in_place(out, corpus)


def sweep(out: Location, corpus: Corpus) -> None:
    """Remove what is left of a state that was prepared and given up, by removing its corpus file."""
    number = generation_of(corpus) + 1
    ledgers = [out / LEDGER / f"{stage}.{number}" for stage in ("shard", "retry-failed")]
    (out / NEXT_MANIFEST).remove()
    if not any(ledger.exists() for ledger in ledgers):
        return
    for name in out.names():
        stem, _, rest = name.partition(".")
        is_shards = stem.isdecimal() and len(stem) >= len(shard_name(0))
        if is_shards and (
            (f".{rest}" in SHARD_FILES and int(stem) >= corpus.num_shards)
            or f".{rest}" in {f"{ending}.{number}" for ending in SHARD_FILES}
        ):
            (out / name).remove()
    for ledger in ledgers:
        ledger.remove_folder()


def _is_manifest_of(corpus: Corpus, manifest: Location) -> bool:
    with contextlib.suppress(FileNotFoundError, DamagedError), manifest.open() as file:
        return footer_digest(file, manifest) == corpus.manifest_footer
    return False


def _put_in_place(out: Location, corpus: Corpus) -> None:
    """Files of the present state that have the names of a prepared one get their own; what is put in place already stays."""
    number = generation_of(corpus)
    for shard in sorted({row // corpus.shard_size for row in corpus.mended}):
        for ending in SHARD_FILES:
            name = f"{shard_name(shard)}{ending}"
            _replace(out / f"{name}.{number}", out / name)
    _replace(out / NEXT_MANIFEST, out / MANIFEST)
    (out / NEXT_CORPUS).remove()


def _replace(new: Location, old: Location) -> None:
    if not new.exists():
        return
    with new.open() as source, old.create() as target:
        while data := source.read(1 << 20):
            target.write(data)
    new.remove()
