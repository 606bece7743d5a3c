"""Owns freezing a corpus: from sources to the manifest that decides every row before any work starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ...pipeline.progress import Progress
from ...pipeline.storage import Location, scratch_file
from ...storage_schemas.errors import InputError, MismatchError, Unreachable
from ...storage_schemas.fingerprint import Fingerprint, Json, canonical_json
from ...storage_schemas.manifest import Corpus, Entry, footer_digest, write_manifest
from ...storage_schemas.plain_text import counted
from ...storage_schemas.samples import IMAGE, Order, content_digest, sample_key
from .draft import DRAFT, Draft
from .images import MAX_BYTES, BadImage
from .key_order import by_key
from .label import NoLabels
from .left_out import LeftOut, left_out_text
from .manifest_file import MANIFEST, open_manifest
from .reading import is_unreachable, read_source_file, unreachable, unreachable_reason
from .source import Source, SourceFile

#: Files that a reading thread takes at once.
_FILES_A_TASK = 64


def freeze_corpus(
    sources: Sequence[Source],
    out: Location,
    *,
    name: str | None,
    shard_size: int,
    resize: int | None,
    max_pixels: int,
    sample_kind: str = IMAGE,
    max_bytes: int = MAX_BYTES,
    order: Order | None = None,
    give_up_on_unreachable: bool = False,
) -> Corpus:
    """Write `manifest.parquet`, then `corpus.json` under `out`; or check that the frozen ones still describe `sources`.

    Memory does not grow with the corpus, but for the names in one folder or one tar. Images are read in the sources' order,
    whatever that of the rows. Nothing is frozen while images cannot be read at the moment; a draft of the manifest then keeps
    what URLs gave, so that the next call asks for the others alone.

    Args:
        sample_kind: of the samples, as in `Corpus`.
        order: of the rows; None takes that of the frozen manifest, `hash` for a new one.

    Raises:
        InputError: no images.
        Unreachable: some cannot be read at the moment, and are not given up.
        MismatchError: `out` holds another corpus or other settings, or the sources have changed since.
    """
    name = name or "+".join(source.name for source in sources)
    settings = {
        "name": name,
        "shard_size": shard_size,
        "resize": resize,
        "max_pixels": max_pixels,
        "max_bytes": max_bytes,
        "sample_kind": sample_kind,
    }
    if order is not None:
        settings["order"] = order
    frozen = out / "corpus.json"
    if frozen.exists():
        (out / DRAFT).remove()
        corpus = Corpus.from_bytes(frozen.read_bytes(), where=frozen)
        Fingerprint(fields=settings).check(
            {k: getattr(corpus, k) for k in settings},
            what=f"{out} holds other shards",
            code="output-other-settings",
            where=frozen,
            hint="use the options of the first run, or another --out",
            whose=("this command", "the folder"),
        )
        listing = _Listing(sources)
        for _ in listing:
            pass
        if listing.digest != corpus.listing_id and listing.missed is not None:
            raise listing.missed
        if listing.digest != corpus.listing_id:
            raise MismatchError(
                "the corpus has changed since its manifest was frozen",
                code="corpus-changed",
                where=", ".join(s.name for s in sources),
                expected=f"{counted(corpus.num_samples, 'image')}, as in the manifest",
                found=f"{counted(listing.count, 'image')} with other names or sizes",
                hint="write the changed corpus to another --out",
            )
        return corpus
    out.make_dir()
    settings["order"] = order = order or "hash"
    listing, missed = _Listing(sources), _UnreachableCount()
    manifest = out / MANIFEST
    with Progress("manifest", None) as bar, (manifest if order == "source" else out / DRAFT).create() as file:
        shards = missed.watch(_entries(listing, sources, name, shard_size, max_bytes, Draft(out), bar))
        digest, count = write_manifest(file, shards)
        if count == 0:
            raise _no_images(sources, listing.left_out)
    if missed.count and not give_up_on_unreachable:
        raise missed.error(count)
    if order == "hash":
        digest = _write_by_key(out, count, shard_size)
    corpus = Corpus(
        **settings,  # type: ignore[arg-type]
        corpus_id=corpus_id(name, shard_size, digest, order, sample_kind),
        listing_id=listing.digest,
        num_samples=count,
        num_shards=-(-count // shard_size),
        manifest_footer=_footer(manifest),
        skipped=listing.left_out.skipped,
        left_out=listing.left_out.to_json(),
        no_labels=listing.no_labels.to_json(),
    )
    frozen.write_bytes(corpus.to_bytes())
    (out / DRAFT).remove()
    return corpus


def corpus_id(name: str, shard_size: int, entries: str, order: Order, sample_kind: str) -> str:
    """What names a corpus: blake2b-128 over its name, shard size, the digest of all its entries, order and kind.

    Args:
        entries: what `write_manifest` gave, or `entries_digest`.
    """
    identity: list[Json] = [name, shard_size, entries]
    if order == "hash":
        identity.append(order)
    if sample_kind != IMAGE:
        identity.append(sample_kind)
    return hashlib.blake2b(canonical_json(identity), digest_size=16).hexdigest()


def _footer(manifest: Location) -> str:
    with manifest.open() as file:
        return footer_digest(file, manifest)


def _write_by_key(out: Location, count: int, shard_size: int) -> str:
    """Write the manifest from its draft, in order of the keys. Returns the digest over all entries."""
    draft = open_manifest(out, None, DRAFT)
    with (
        Progress("rows in order", count, brief=True) as bar,
        scratch_file(out) as scratch,
        (out / MANIFEST).create() as file,
    ):
        rows = by_key(draft, count, scratch)

        def shards() -> Iterator[list[Entry]]:
            while entries := list(islice(rows, shard_size)):
                yield entries
                bar.advance(len(entries))

        digest, _ = write_manifest(file, shards())
    return digest


class _Listing:
    """Iterates (source index, path within the corpus, file) over all images, hashing paths and sizes as they pass."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._state = hashlib.blake2b(digest_size=16)
        self.count = 0
        self.left_out = LeftOut()
        self.no_labels = NoLabels()
        self.missed: Unreachable | None = None

    @property
    def digest(self) -> str:
        return self._state.hexdigest()

    def __iter__(self) -> Iterator[tuple[int, str, SourceFile]]:
        for index, source in enumerate(self._sources):
            for found in source.walk():
                path = found.path if len(self._sources) == 1 else f"{source.name}/{found.path}"
                if not found.is_image:
                    self.left_out.add(found.left_out, path)
                    continue
                self._state.update(canonical_json([path, found.size]))
                self.count += 1
                if self.missed is None and is_unreachable(found.problem):
                    self.missed = unreachable(path, found.problem)
                if found.no_label:
                    self.no_labels.add(found.no_label, path)
                yield index, path, found


class _UnreachableCount:
    """Counts the entries that could not be read at the moment."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Entry | None = None

    def watch(self, shards: Iterator[list[Entry]]) -> Iterator[list[Entry]]:
        for entries in shards:
            missed = [entry for entry in entries if is_unreachable(entry.problem)]
            self.count += len(missed)
            self._first = self._first or next(iter(missed), None)
            yield entries

    def error(self, total: int) -> Unreachable:
        assert self._first is not None
        return Unreachable(
            f"{self.count} of {counted(total, 'image')} cannot be read at the moment",
            code="unreachable-now",
            where=f"the first is {self._first.path}",
            found=str(self._first.problem).partition(": ")[2],
            hint="run the same command again, or add --give-up-on-unreachable to leave such images out",
        )


def _entries(
    listing: _Listing,
    sources: Sequence[Source],
    name: str,
    shard_size: int,
    max_bytes: int,
    draft: Draft,
    bar: Progress,
) -> Iterator[list[Entry]]:
    """One list a shard; files are read and hashed by a few threads (both release the interpreter lock)."""

    def entry(item: tuple[int, str, SourceFile, Entry | None]) -> Entry:
        index, path, found, known = item
        size, digest, problem = max(found.size, 0), "", None
        try:
            if known is not None:
                size, digest, problem = known.size, known.digest, known.problem
            elif found.size > max_bytes:
                problem = f"file too large: {found.size} bytes, more than {max_bytes}"
            else:
                data = read_source_file(sources[index], found)
                size, digest = len(data), content_digest(data)
        except BadImage as bad:
            problem = str(bad)
        except Unreachable as error:
            problem = unreachable_reason(error)
        return Entry(
            key=sample_key(name, path),
            path=path,
            source=index,
            offset=found.offset,
            size=size,
            digest=digest,
            label=found.label,
            problem=problem,
        )

    def entries_of(chunk: Sequence[tuple[int, str, SourceFile, Entry | None]]) -> list[Entry]:
        return [entry(item) for item in chunk]

    items = ((index, path, found, draft.known(path, found)) for index, path, found in listing)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while batch := list(islice(items, shard_size)):
            # A task for each file would cost more than a small file's reading.
            chunks = [batch[i : i + _FILES_A_TASK] for i in range(0, len(batch), _FILES_A_TASK)]
            entries = [e for part in threads.map(entries_of, chunks) for e in part]
            bar.advance(len(entries))
            yield entries


def _no_images(sources: Sequence[Source], left_out: LeftOut) -> InputError:
    names = ", ".join(source.name for source in sources)
    found = left_out_text(left_out.to_json()).partition(": ")[2] or "nothing"
    return InputError(
        "no images",
        code="images-missing",
        where=names,
        expected="at least one image file",
        found=found,
        hint="for a folder of tars, name the tars: teachonce shard FOLDER/*.tar --out …",
    )
