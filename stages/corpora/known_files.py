"""Owns which files of a walk a corpus has already: by key, holding nothing of the corpus in memory but a mark a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Set
from functools import lru_cache
from itertools import islice
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...pipeline.storage import Location, scratch_file
from ...storage_schemas.errors import InputError
from ...storage_schemas.manifest import Corpus, SourceName
from ...storage_schemas.plain_text import typed
from ...storage_schemas.samples import KEY_LENGTH, sample_key
from .key_order import tables_by_key
from .listing import Found
from .manifest_file import open_manifest
from .tally import Tally

#: Files that are looked up together.
_AT_ONCE = 4096

#: What a walk can show of a file without reading it. `label` is a digest, empty for none.
_FACTS = np.dtype([("size", "<i8"), ("source", "<i4"), ("label", "S8")])

#: Kinds of change: the row keeps what it has.
OTHER_SIZE, OTHER_LABEL = "another size", "another label"


class KnownFiles:
    """The files of a corpus, to compare with what lies there now.

    Args:
        out: the folder of its shards, whose disk takes 76 bytes a sample meanwhile.
        corpus: as it is.
        failed: paths of images that could not be used.

    Attributes:
        known: files of the walk that the corpus has.
        changed: those of them that are other files now, by kind.
        num_sources: that the corpus has.
        maybe_mended: those that could not be used, and are other files now: path of the first, and how many.
    """

    def __init__(self, out: Location, corpus: Corpus, failed: Set[str]) -> None:
        self._out, self._corpus, self._failed = out, corpus, failed
        self.known = 0
        self.changed = Tally()
        self.maybe_mended = Tally()
        manifest = open_manifest(out, corpus)
        with scratch_file(out) as scratch, scratch_file(out) as keys, scratch_file(out) as facts:
            for table in tables_by_key(manifest, corpus.num_samples, scratch):
                keys.write(table["key"].to_numpy().astype(f"S{KEY_LENGTH}").tobytes())
                rows = np.empty(len(table), _FACTS)
                rows["size"], rows["source"] = table["size"].to_numpy(), table["source"].to_numpy()
                rows["label"] = [_label_digest(label) for label in table["label"].to_pylist()]
                facts.write(rows.tobytes())
            self._keys = _mapped(keys, f"S{KEY_LENGTH}")
            self._facts = _mapped(facts, _FACTS)
        self._seen = np.zeros(len(self._keys), np.bool_)
        self.num_sources = max(len(corpus.sources), int(self._facts["source"].max()) + 1)

    def unknown(self, listing: Iterable[Found], sources: Iterable[SourceName]) -> Iterator[Found]:
        """The images of a walk that the corpus does not have, in their order; the others are counted.

        Args:
            sources: all that the corpus has, new ones too.

        Raises:
            InputError: an image of one source has the path of another source's.
        """
        prefixes = tuple(source.prefix for source in sources if source.prefix)
        items = iter(listing)
        while batch := list(islice(items, _AT_ONCE)):
            keys = np.array([sample_key(self._corpus.name, path) for _, path, _ in batch], f"S{KEY_LENGTH}")
            places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            hit = self._keys[places] == keys
            self._seen[places[hit]] = True
            self.known += int(hit.sum())
            for item, place, is_known in zip(batch, places.tolist(), hit.tolist(), strict=True):
                source, path, _ = item
                if is_known:
                    self._compare(item, self._facts[place])
                elif not source.prefix and path.startswith(prefixes):
                    raise _two_sources(path, source.source.name)
                else:
                    yield item

    def vanished(self, sources: Set[int]) -> tuple[int, str]:
        """Images of these sources that the walk, which is over, did not find: how many, and the path of the first."""
        gone = ~self._seen & np.isin(self._facts["source"], list(sources))
        count = int(gone.sum())
        if not count:
            return 0, ""
        for entry in open_manifest(self._out, self._corpus):
            if gone[np.searchsorted(self._keys, np.bytes_(entry.key))]:
                return count, entry.path
        raise AssertionError("the manifest has all keys")

    def _compare(self, item: Found, facts: np.void) -> None:
        source, path, found = item
        if facts["source"] != source.index:
            raise _two_sources(path, source.source.name)
        other_size = found.problem is None and found.size >= 0 and found.size != facts["size"]
        if other_size and path in self._failed:
            self.maybe_mended.add("", path)
        elif other_size:
            self.changed.add(OTHER_SIZE, path)
        if facts["label"] != _label_digest(found.label):
            self.changed.add(OTHER_LABEL, path)


def _mapped(file: IO[bytes], dtype: object) -> NDArray[np.void]:
    file.flush()
    return np.memmap(file, dtype, "r")  # type: ignore[call-overload,no-any-return]


@lru_cache(maxsize=1 << 16)
def _label_digest(label: str | None) -> bytes:
    if label is None:
        return b""
    # A digest may end in a zero byte, which a fixed-length string would lose.
    return hashlib.blake2b(label.encode(), digest_size=4).hexdigest().encode()


def _two_sources(path: str, name: str) -> InputError:
    return InputError(
        "two sources have an image of one path",
        code="path-in-two-sources",
        where=path,
        found=f"in '{name}', and in another source of this corpus",
        hint=f"give the new source another name: {typed(f'{name}-2')}=PATH",
    )
